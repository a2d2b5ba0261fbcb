"""What judging other answers has paid for: extracts and embeddings of a document depend on no answer."""

from collections.abc import Iterable

from lr_ray.config import Config
from lr_ray.llm.records import FOLDER, SUFFIX
from lr_ray.store import Store


def reusing(config: Config, earlier: Iterable[Store]) -> Config:
    """The config with the directories `earlier` in `judge.reuse` too, after the user's own.

    Of `earlier` those without calls are left out; of the user's own they are refused (`Paid`).
    """
    found = [there.absolute for there in earlier if there.files(FOLDER, SUFFIX)]
    reuse = list(dict.fromkeys([*config.judge.reuse, *found]))
    return config.model_copy(update={"judge": config.judge.model_copy(update={"reuse": reuse})})


def elsewhere(config: Config, folders: Iterable[str]) -> list[Store]:
    """These folders of evaluations in the runs of `judge.reuse`, which have ledgers of their own."""
    return [Store(run).sub("evaluation", folder) for folder in folders for run in config.judge.reuse]
