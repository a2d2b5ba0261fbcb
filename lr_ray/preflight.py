"""What is looked at before anything is sampled or paid: inputs, settings, and whose run directory it is."""

import hashlib
import json
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from lr_ray import config as configs
from lr_ray import data, labelled, redact
from lr_ray.benchmarks import claim as grading
from lr_ray.benchmarks import sets
from lr_ray.config import Config
from lr_ray.judge.answers import SCHEMAS
from lr_ray.judge.requests import SEVERAL
from lr_ray.lacking import can_pair
from lr_ray.sampling import check_model
from lr_ray.store import Store

ASKED_WITH = "judge-prompts.sha256"
STAGES = ("sample", "judge", "pairs", "train", "evaluate", "report")
RETRY = ("retry_failed",)
KINDS = ("sampled", "judged")
# What the finished rows of a run directory depend on. Everything else may change between two calls.
IDENTITY = {
    "data": {"prompt_template"},
    "sampling": {"model", "n", "temperature", "top_p", "max_tokens", "truncate", "seed"},
    "judge": {
        "model",
        "max_tokens",
        "structured_output",
        "statements_per_call",
        "parameters",
        "extract_chunk_tokens",
        "tokenizer",
        "no_statements_score",
        "repeats",
        "weights",
        "retrieval",
    },
    "evaluation": {"n", "baseline", "model", "temperature", "max_tokens"},
}
# Of DeepSpeed's own: how states are cut, what a worker takes at once, what is shown. An optimizer counts.
FREE_DEEPSPEED = {
    *("zero_optimization", "train_batch_size", "train_micro_batch_size_per_gpu"),
    *("gradient_accumulation_steps", "steps_per_print", "wall_clock_breakdown", "memory_breakdown"),
    *("dump_state", "flops_profiler", "comms_logger", "tensorboard", "wandb", "csv_monitor"),
}
# Of training: how, where and how fast, but not what is learned.
FREE = {
    *("micro_batch_size", "gradient_checkpointing", "tiled_mlp", "offload_activations", "num_workers"),
    *("sequence_parallel_size", "reference_actors", "use_gpu", "num_cpus", "resources"),
    *("checkpoint_steps", "max_failures", "report_to"),
}


class Found(NamedTuple):
    """Checked pointers to the inputs that the stages asked for need."""

    prompts: list[data.Pointer] = []  # noqa: RUF012
    held_out: list[data.Pointer] = []  # noqa: RUF012
    labels: labelled.Labels | None = None


def inputs(config: Config) -> list[data.Pointer]:
    """Checked pointers to every prompt of the config.

    Raises:
        ValueError: bad input, or none named.
    """
    if not config.data.prompts and not config.data.candidates:
        raise ValueError("data.prompts is not set: name jsonl or parquet files of prompts")
    return data.scan(config.data.prompts, config.data.candidates)


def check(config: Config, stages: tuple[str, ...]) -> Found:
    """Find what would stop the stages later, before anything is sampled or paid; and the inputs.

    Raises:
        ValueError: bad prompts, model, judge or training settings, in one sentence.
    """
    prompts = inputs(config) if {"sample", "judge"} & set(stages) else []
    if "sample" in stages and not config.data.candidates:
        check_model(config.sampling.model, "sampling.model")
    if "pairs" in stages and {"sample", "judge"} & set(stages):
        can_pair(config, prompts)
    if "train" in stages:
        from lr_ray.training import launch

        launch.check(config)
        check_model(config.training.model or config.sampling.model, "training.model or sampling.model")
    evaluation = config.evaluation
    asked = evaluation.prompts if "evaluate" in stages else []
    held_out = data.scan(asked) if asked else []
    if "evaluate" in stages:
        if evaluation.prompts or evaluation.benchmarks:
            _evaluable(config)
        sets.check(config, {pointer.prompt_id for pointer in held_out})
    labels = labelled.scan(config) if "agreement" in stages else None
    if {"judge", "agreement"} & set(stages) or ("evaluate" in stages and sets.asks(config)):
        from lr_ray.llm import client

        client.check(config)
    return Found(prompts, held_out, labels)


def _evaluable(config: Config) -> None:
    """Refuse models that cannot be sampled; the run's own may not be there yet."""
    evaluation = config.evaluation
    check_model(evaluation.baseline or config.sampling.model, "evaluation.baseline or sampling.model")
    if evaluation.model:
        check_model(evaluation.model, "evaluation.model")


def claim(config: Config, stages: tuple[str, ...] = STAGES, instead: str = "use another run_dir") -> None:
    """Save the resolved config in the run directory, or refuse one that contradicts what is there.

    Args:
        config: the run's.
        stages: what is to be done.
        instead: what the user may do where that is refused.

    Raises:
        ValueError: the directory holds rows made under another value of a key in `IDENTITY`, or a model, or
            its checkpoints, that learned with other settings or from other pairs; or rows judged or graded
            with other prompts than this version's.
    """
    store = Store(config.run_dir)
    saved = store.read("config.yaml")
    if saved is not None:
        before, now = redact.config(yaml.safe_load(saved)), redact.config(config.model_dump(mode="json"))
        rows = _made_with(store)
        _same(_picked(before, rows), _picked(now, rows), f"{config.run_dir} holds rows made", instead)
        if _learning(store):
            _same(_learned(before), _learned(now), f"{config.run_dir} was trained", instead)
    if {"judge", "evaluate", "agreement", *RETRY} & set(stages):
        asked_with, now_with = store.read(ASKED_WITH), prompts_hash().encode()
        judged = store.files("judged") or _labelled(store)
        if asked_with not in (None, now_with) and judged:
            raise ValueError(
                f"{config.run_dir} holds rows judged with the prompts of another version of lr-ray: "
                "use another run_dir, or that version"
            )
        store.write(now_with, ASKED_WITH)
    if {"evaluate", *RETRY} & set(stages):
        grading.claim(config, store)
    store.write(configs.dump(config).encode(), "config.yaml")


def _same(before: dict[str, Any], now: dict[str, Any], what: str, instead: str) -> None:
    for key in sorted(before.keys() & now.keys()):
        if before[key] != now[key]:
            raise ValueError(
                f"{what} with {key}={before[key]!r}; the config now says {now[key]!r}: {instead}"
            )


def _picked(tree: dict[str, Any], keys: dict[str, set[str]]) -> dict[str, Any]:
    """Values by section.key; a config of an older version may lack some."""
    found = {section: tree.get(section, {}) for section in keys}
    return {f"{name}.{key}": found[name][key] for name in keys for key in keys[name] & found[name].keys()}


def _learning(store: Store) -> bool:
    """Whether a training has come as far as a checkpoint."""
    begun = any(name.startswith("step-") for name in store.folders("checkpoints"))
    return begun or store.exists("model")


def _learned(tree: dict[str, Any]) -> dict[str, Any]:
    """What a model depends on, by section.key: what it started from, learned from, and how."""
    training = dict(tree.get("training", {}))
    training["model"] = training.get("model") or tree.get("sampling", {}).get("model")
    deepspeed = training.get("deepspeed", {})
    training["deepspeed"] = {key: value for key, value in deepspeed.items() if key not in FREE_DEEPSPEED}
    sections = {"training": training.keys() - FREE}
    if training.get("method") == "dpo" and not training.get("data"):
        sections["pairs"] = set(tree.get("pairs", {}))
    return _picked({**tree, "training": training}, sections)


def _made_with(store: Store) -> dict[str, set[str]]:
    """What of `IDENTITY` the rows that are there depend on."""
    sides = [f"evaluation/{kind}{side}" for kind in ("", "benchmarks_") for side in ("before", "after")]
    here, there = (
        any(store.files("/".join(filter(None, (where, kind)))) for where in places for kind in KINDS)
        for places in (("",), sides)
    )
    found = {k: keys for k, keys in IDENTITY.items() if there or (here and k != "evaluation")}
    return found | ({"judge": IDENTITY["judge"]} if _labelled(store) else {})


def _labelled(store: Store) -> bool:
    """Whether labelled pairs were judged."""
    return any(store.files(f"{labelled.FOLDER}/{kind}") for kind in ("judged", "short/judged"))


def prompts_hash() -> str:
    """A hash of the judge's own prompts, which scores depend on as they do on the model."""
    folder = files("lr_ray.judge") / "prompts"
    judging = {*SCHEMAS, SEVERAL, "common"}
    texts = sorted(
        (file.name, file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if file.name.endswith(".md") and file.name.partition(".")[0] in judging
    )
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
