"""What must not go to a cluster with a config: paths of this machine, and keys, which Ray would show."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lr_ray import redact
from lr_ray.config import Config

PATHS = (
    "run_dir",
    "data.prompts",
    "data.candidates",
    "synthesis.documents",
    "judge.reuse",
    "rewards.contrast.candidates",
    "training.data",
    "training.mix.data",
    "evaluation.prompts",
    "evaluation.benchmarks.path",
    "agreement.pairs",
    "agreement.other",
)
MODELS = (
    "sampling.model",
    "judge.tokenizer",
    "serving.model",
    "rewards.srm.model",
    "training.model",
    "evaluation.baseline",
    "evaluation.model",
)
"""Folders, or names on the Hub, which look like relative paths."""

_HUB = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_KEYED_URL = re.compile(r"(?i)https?://[^/]+@|[a-z][a-z0-9+.-]*://[^/@]*:[^/]*@")


def check(config: Config) -> None:
    """Refuse a config whose paths mean something else, or nothing, on another machine, or that holds keys.

    Raises:
        ValueError: one sentence naming the key and the path.
    """
    for where, key, text in _texts(config):
        if _KEYED_URL.match(text):
            raise ValueError(
                f"{where}: {redact.urls(text)}: keys belong in the environment of the cluster's processes, "
                "not in a URL"
            )
        if any(redact.secret(name) for name in key.split(".")):
            raise ValueError(
                f"{where}: Ray shows what a job is sent, so no key is; "
                "keys belong in the environment of the cluster's processes"
            )
        if _elsewhere(key, text):
            raise ValueError(
                f"{where}: {text} is relative to a folder of this machine; "
                "name an absolute path or a URL that the cluster's nodes see"
            )


def _texts(config: Config) -> Iterator[tuple[str, str, str]]:
    """Every text: where it stands, for a message; the key that it is a value of; itself."""
    tree = config.model_dump(mode="json", exclude={"compare": {"runs"}})
    yield from ((key, key, text) for key, text in _leaves(tree))
    for name, changes in config.compare.runs.items():
        yield from ((f"compare.runs.{name}: {key}", key, text) for key, text in _leaves(changes))


def _leaves(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and their texts; all of a list have the list's key."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from _leaves(value, f"{key}.{name}" if key else str(name))
    elif isinstance(tree, list):
        for value in tree:
            yield from _leaves(value, key)
    elif isinstance(tree, str):
        yield key, tree


def _elsewhere(key: str, text: str) -> bool:
    """Whether `text`, the value of `key`, is a path that only this machine's folders give a meaning."""
    if not text or "://" in text or text.startswith("/"):
        return False
    return key in PATHS or (key in MODELS and (not _HUB.fullmatch(text) or Path(text).exists()))
