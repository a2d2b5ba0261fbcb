"""What a comparison would take: its trainings are what `plan` counts as runs on the same candidates."""

from lr_ray.compare.entries import entries
from lr_ray.config import Config


def runs(config: Config) -> list[Config]:
    """The config of every training, each run with each seed; none where nothing is compared.

    Raises:
        ValueError: the comparison is not one, in one sentence naming the run and the key.
    """
    if not (config.compare.rewards or config.compare.runs):
        return []
    return [entry.config for entry in entries(config)]
