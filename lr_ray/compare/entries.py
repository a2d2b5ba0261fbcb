"""What is compared: the config's runs, each with every seed, as configs of their own."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from lr_ray.config import Config
from lr_ray.store import Store

FREE = ("pairs", "rewards", "training")
"""Sections that runs may differ in. The others say what all of them share."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Entry(NamedTuple):
    """One training: the run's name, its seed, and the config, whose run_dir is that of the comparison."""

    name: str
    seed: int
    config: Config

    @property
    def folder(self) -> str:
        """Of the run in compare/."""
        return f"{self.name}-seed{self.seed}"

    def store(self, base: Store) -> Store:
        """Its run directory in that of the comparison."""
        return base.sub("compare", self.folder)


def names(config: Config) -> dict[str, dict[str, Any]]:
    """Each run's changes of the config, by its name.

    Raises:
        ValueError: there is no run, one is there twice, or a name cannot be a folder's.
    """
    runs: dict[str, dict[str, Any]] = {}
    for reward in config.compare.rewards:
        if reward in runs:
            raise ValueError(f"compare.rewards names {reward} twice")
        runs[reward] = {"pairs.reward": reward}
    for name, changes in config.compare.runs.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"compare.runs: {name!r} cannot name a folder (letters, digits, . - _)")
        if name in runs:
            raise ValueError(f"compare.runs: {name} is in compare.rewards too")
        runs[name] = changes
    if not runs:
        raise ValueError("compare.rewards and compare.runs name nothing to compare")
    return runs


def against(config: Config) -> str:
    """The run that the others are compared with.

    Raises:
        ValueError: there is none of that name.
    """
    runs = names(config)
    chosen = config.compare.against or next(iter(runs))
    if chosen not in runs:
        raise ValueError(f"compare.against: no run is called {chosen!r}")
    return chosen


def entries(config: Config) -> list[Entry]:
    """All trainings, every run with the first seed before any with the second.

    Raises:
        ValueError: one sentence naming the run and the key.
    """
    seeds = config.compare.seeds
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError("compare.seeds must name at least one seed, and none twice")
    changed = {name: change(config, name, changes) for name, changes in names(config).items()}
    return [Entry(name, seed, _seeded(one, seed)) for seed in seeds for name, one in changed.items()]


def change(config: Config, name: str, changes: Mapping[str, Any]) -> Config:
    """The config with the `changes` of the run `name`, keys as section.key.

    Raises:
        ValueError: a key that is not there, that the runs share, or a value that does not fit.
    """
    tree = config.model_dump()
    for key, value in changes.items():
        section, *path = key.split(".")
        if section not in FREE or not path or key == "training.seed":
            raise ValueError(
                f"compare.runs.{name}: {key} cannot differ between runs, only {', '.join(FREE)} "
                "(seeds are in compare.seeds)"
            )
        node = tree[section]
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
            if not isinstance(node, dict):
                raise ValueError(f"compare.runs.{name}: {key}: {part} is not a section")
        node[path[-1]] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise ValueError(f"compare.runs.{name}: {where}: {what}") from error


def _seeded(config: Config, seed: int) -> Config:
    return config.model_copy(update={"training": config.training.model_copy(update={"seed": seed})})
