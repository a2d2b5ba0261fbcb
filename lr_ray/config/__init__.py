"""Every knob of a run, in one frozen tree.

A config is a YAML file plus ``section.key=value`` overrides. Unknown keys are refused; each field's
docstring is its documentation. Options of vLLM, DeepSpeed and the judge endpoint pass through under
their upstream names in ``sampling.engine``, ``training.deepspeed`` and ``judge.parameters``.
The judge's key never stands in a config, only the *name* of the environment variable that holds it; of what
else is secret by its name (``HF_TOKEN``, ``api_key``) the run directory shows ``***``.

A file may be laid over others: ``base: [OTHER.yaml, …]``, relative to its folder. Sections are merged, later
files and the file itself win, and everything that is no section (a list, a number) is replaced.
"""

import os

import yaml
from pydantic import Field, ValidationError

from lr_ray import redact
from lr_ray.config import reading
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
    tree = reading.tree(path)
    for override in overrides or []:
        reading.apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ValueError(f"{path}: {reading.said(error, tree)}") from error


def dump(config: Config) -> str:
    """The resolved config as YAML, as saved in the run directory. Holds no secret."""
    tree = redact.config(config.model_dump(mode="json"))
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def api_key(config: Config) -> str | None:
    """The judge's key from the environment; None when the variable is not set."""
    return os.environ.get(config.judge.api_key_env)
