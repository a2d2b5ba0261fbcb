"""Several trainings on the same candidates, side by side."""

from typing import Any

from lr_ray.config.section import Reward, Section


class Compare(Section):
    rewards: list[Reward] = []
    """Rewards to compare: each a run of its name with no other change than pairs.reward."""
    runs: dict[str, dict[str, Any]] = {}
    """More runs: name → changes of the config, as {short_only: {training.data: [short.jsonl]}}; of pairs.*,
    rewards.* and training.* only, since candidates, scores and the evaluation are shared."""
    seeds: list[int] = [0]
    """Training seeds; each run is trained and evaluated once with each."""
    against: str | None = None
    """The run that all others are compared with, beside the model before; none: the first."""
