"""Other rewards in place of LongReward's: a judged row with another reward at each of its candidates.

What makes pairs of them is `pairs.choose` alone, whatever the reward. Rewards that take work are made once
(`make`) and kept in rewards/NAME-HASH/ of the run directory, where HASH is of the settings they depend on;
the others are computed as rows pass.
"""

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

from lr_ray.config import Config
from lr_ray.judge.reward import reward
from lr_ray.retry import settle
from lr_ray.rewards import contrast, direct, srm
from lr_ray.rows import Judged
from lr_ray.runtime import Watch
from lr_ray.store import Store

FOLDER = "rewards"
WITHOUT = "without_"
MADE = {"srm": srm.score, "direct": direct.compare}
"""Rewards that take work."""

Rewarded = tuple[Judged, int] | None
"""The row with its new rewards, and how many more candidates the reward was free to look at; None: it has
nothing on this prompt."""


def check(config: Config) -> None:
    """Find what would stop the reward of `pairs.reward` later.

    Raises:
        ValueError: one sentence naming the key and the fault.
    """
    name = config.pairs.reward
    if name.startswith(WITHOUT):
        weights = config.judge.weights.model_dump()
        if not weights.pop(name.removeprefix(WITHOUT)):
            left_out = name.removeprefix(WITHOUT)
            raise ValueError(f"pairs.reward: judge.weights.{left_out} is 0, so {name} is longreward itself")
        if not any(weights.values()):
            raise ValueError(f"pairs.reward: {name} leaves no dimension with weight in judge.weights")
    elif name == "srm":
        srm.check(config.rewards.srm)
    elif name == "contrast":
        contrast.answers(config.rewards.contrast)
    elif name == "direct":
        direct.check(config, folder(config, Store(config.run_dir)))


def settings(config: Config) -> dict[str, Any]:
    """What the rewards depend on beside the judged rows."""
    rewards = config.rewards
    if config.pairs.reward == "random":
        return {"seed": rewards.seed}
    if config.pairs.reward == "srm":
        return rewards.srm.model_dump(include={"model", "label", "max_length"})
    if config.pairs.reward == "contrast":
        return rewards.contrast.model_dump()
    if config.pairs.reward == "direct":
        model = rewards.direct.model or config.judge.model
        return {"seed": rewards.seed, "model": model, "context": rewards.direct.context}
    return {}


def folder(config: Config, store: Store) -> Store:
    """Where a reward that takes work is kept, for the run in `store`."""
    made_with = json.dumps(settings(config), sort_keys=True)
    digest = hashlib.sha256(made_with.encode()).hexdigest()[:8]
    return store.sub(FOLDER, f"{config.pairs.reward}-{digest}")


def lost(config: Config, store: Store) -> int:
    """How many rows of the reward of `pairs.reward` have failed for good."""
    if config.pairs.reward not in MADE:
        return 0
    there = folder(config, store)
    return len(there.index("failed").keys() - there.index("rewarded").keys())


def make(config: Config, store: Store, watch: Watch, *, retry: bool = False) -> int:
    """Make what `pairs.reward` needs for the judged rows in `store` and does not have yet; with `retry`,
    take up again what failed.

    Returns:
        Rows that failed for good.

    Raises:
        Stopped: the endpoint's calls stopped early; what was paid is kept.
    """
    work = MADE.get(config.pairs.reward)
    if work is None:
        return 0
    there = folder(config, store)
    there.write(json.dumps(settings(config), indent=2).encode(), "settings.json")
    before = there.files("failed")
    try:
        return work(config, store, there, watch, retry=retry)
    finally:
        settle(there, before, there.index("rewarded").keys())


def rewarder(config: Config, store: Store) -> Callable[[Judged], Rewarded]:
    """What gives the judged rows in `store` the rewards of `pairs.reward`, which are made."""
    name, seed = config.pairs.reward, config.rewards.seed
    if name == "longreward":
        return lambda row: (row, 0)
    if name.startswith(WITHOUT):
        weights = config.judge.weights.model_copy(update={name.removeprefix(WITHOUT): 0.0})
        return lambda row: (_with(row, [reward(one["scores"], weights) for one in row["candidates"]]), 0)
    if name == "length":
        return lambda row: (_with(row, [float(len(one["text"])) for one in row["candidates"]]), 0)
    if name == "random":
        return lambda row: (_with(row, _drawn(row, seed)), 0)
    if name == "contrast":
        return contrast.rewarder(config.rewards.contrast)
    return _kept(folder(config, store))


def _drawn(row: Judged, seed: int) -> list[float | None]:
    """From 0 to 1; a candidate's does not depend on what else is in the run."""
    return [
        random.Random(f"{seed} random {row['prompt_id']} {one['index']}").random()
        for one in row["candidates"]
    ]


def _with(row: Judged, rewards: list[float | None]) -> Judged:
    pairs = zip(row["candidates"], rewards, strict=True)
    return {**row, "candidates": [{**one, "reward": value} for one, value in pairs]}


def _kept(there: Store) -> Callable[[Judged], Rewarded]:
    found: dict[str, tuple[dict[int, float], int]] = {}
    for row in there.rows("rewarded"):
        given = {one["index"]: one["reward"] for one in row["candidates"] if one["reward"] is not None}
        unasked = sum(one["unscored"] == direct.NOT_ASKED for one in row["candidates"])
        found[row["prompt_id"]] = (given, unasked)

    def look_up(row: Judged) -> Rewarded:
        given, unasked = found.get(row["prompt_id"], ({}, 0))
        if not given:
            return None
        return _with(row, [given.get(one["index"]) for one in row["candidates"]]), unasked

    return look_up
