"""Every knob of a run, in one frozen tree.

A config is a YAML file plus ``section.key=value`` overrides. Unknown keys are refused; each field's
docstring is its documentation. Options of vLLM, DeepSpeed and the judge endpoint pass through under
their upstream names in ``sampling.engine``, ``training.deepspeed`` and ``judge.parameters``.
Secrets never stand in a config: only the *name* of the environment variable that holds the key does.

A file may be laid over others: ``base: [OTHER.yaml, …]``, relative to its folder. Sections are merged, later
files and the file itself win, and everything that is no section (a list, a number) is replaced.
"""

import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from lr_ray import redact
from lr_ray.config.agreement import Agreement
from lr_ray.config.compare import Compare
from lr_ray.config.evaluation import Benchmark, Evaluation
from lr_ray.config.judge import DIMENSIONS, Judge, Prices, Repeats, Retrieval, Serving, Weights
from lr_ray.config.rewards import Contrast, Direct, Rewards, Srm
from lr_ray.config.section import Data, Log, Pairs, Sampling, Section
from lr_ray.config.suppose import Suppose
from lr_ray.config.synthesis import Synthesis
from lr_ray.config.training import Mix, Training

__all__ = [
    "DIMENSIONS",
    "Agreement",
    "Benchmark",
    "Compare",
    "Config",
    "Contrast",
    "Data",
    "Direct",
    "Evaluation",
    "Judge",
    "Log",
    "Mix",
    "Pairs",
    "Prices",
    "Repeats",
    "Retrieval",
    "Rewards",
    "Sampling",
    "Serving",
    "Srm",
    "Suppose",
    "Synthesis",
    "Training",
    "Weights",
    "api_key",
    "dump",
    "load",
]


class Config(Section):
    run_dir: str
    """Where everything of the run lies: a path, or s3://…, gs://…"""
    wait_for_nodes: float = Field(0.0, ge=0)
    """Seconds a stage waits for a cluster that grows to hold all its actors; then it starts with fewer."""
    data: Data = Data()
    """What goes in."""
    synthesis: Synthesis = Synthesis()
    """Prompts made of documents, by `lr-ray synthesize`."""
    sampling: Sampling = Sampling()
    """The policy and how it is sampled."""
    judge: Judge = Judge()
    """The endpoint that scores, and how."""
    serving: Serving = Serving()
    """An open-weights judge served inside the cluster by `lr-ray serve-judge`."""
    pairs: Pairs = Pairs()
    """Which candidates make a preference pair."""
    rewards: Rewards = Rewards()
    """What rewards other than LongReward need."""
    compare: Compare = Compare()
    """Runs side by side on the same candidates, for `lr-ray compare`."""
    training: Training = Training()
    """DPO or SFT."""
    evaluation: Evaluation = Evaluation()
    """Before and after on held-out prompts and benchmarks."""
    agreement: Agreement = Agreement()
    """How far the judge agrees with labelled pairs, for `lr-ray agreement`."""
    suppose: Suppose = Suppose()
    """What `lr-ray plan` counts with while data and model are not there."""
    log: Log = Log()
    """What actors log, for whoever looks for the cause of something."""


def load(path: str, overrides: list[str] | None = None) -> Config:
    """The config in the YAML file at `path`, with ``section.key=value`` overrides applied.

    Values of overrides are YAML. ``~`` and relative paths stay as written.

    Raises:
        ValueError: one sentence naming the file and the key.
    """
    tree = _tree(path)
    for override in overrides or []:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top)"
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ValueError(f"{path}: {key}: {what}{more}") from error


def _tree(path: str, over: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file at `path`, which the files `over` are laid over, on its own bases."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot read the config: {error.strerror}") from error
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config is a mapping of sections, this is a {type(tree).__name__}")
    bases = tree.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(name, str) for name in bases):
        raise ValueError(f"{path}: base: expected the name of a config file, or a list of them")
    over = (*over, Path(path).resolve())
    below: dict[str, Any] = {}
    for name in bases:
        base = Path(path).parent / name
        if base.resolve() in over:
            raise ValueError(f"{path}: base: {name} is laid over this file itself")
        below = _over(below, _tree(str(base), over))
    return _over(below, tree)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`."""
    merged = dict(below)
    for key, value in above.items():
        there = merged.get(key)
        merged[key] = _over(there, value) if isinstance(there, dict) and isinstance(value, dict) else value
    return merged


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected section.key=value")
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ValueError(f"override {override!r}: {section} is not a section")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML") from error


def dump(config: Config) -> str:
    """The resolved config as YAML, as saved in the run directory. Holds no secret."""
    tree = redact.config(config.model_dump(mode="json"))
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def api_key(config: Config) -> str | None:
    """The judge's key from the environment; None when the variable is not set."""
    return os.environ.get(config.judge.api_key_env)
