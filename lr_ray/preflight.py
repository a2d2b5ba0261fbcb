"""What is looked at before anything is sampled or paid: inputs, settings, and whose run directory it is."""

import hashlib
import json
from importlib.resources import files
from typing import NamedTuple

import yaml

from lr_ray import config as configs
from lr_ray import data, labelled, redact
from lr_ray.benchmarks import claim as grading
from lr_ray.benchmarks import sets
from lr_ray.config import Config
from lr_ray.judge.answers import SCHEMAS
from lr_ray.judge.requests import SEVERAL
from lr_ray.sampling import check_model
from lr_ray.store import Store

ASKED_WITH = "judge-prompts.sha256"
STAGES = ("sample", "judge", "pairs", "train", "evaluate", "report")
RETRY = ("retry_failed",)
KINDS = ("sampled", "judged")
# What the finished rows of a run directory depend on. Everything else may change between two calls.
IDENTITY = {
    "data": {"prompt_template"},
    "sampling": {"model", "n", "temperature", "top_p", "max_tokens", "truncate"},
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
    if "train" in stages:
        from lr_ray.training import launch

        launch.check(config)
    asked = config.evaluation.prompts if "evaluate" in stages else []
    held_out = data.scan(asked) if asked else []
    if "evaluate" in stages:
        sets.check(config, {pointer.prompt_id for pointer in held_out})
    labels = labelled.scan(config) if "agreement" in stages else None
    if {"judge", "agreement"} & set(stages) or ("evaluate" in stages and sets.asks(config)):
        from lr_ray.llm import client

        client.check(config)
    return Found(prompts, held_out, labels)


def claim(config: Config, stages: tuple[str, ...] = STAGES) -> None:
    """Save the resolved config in the run directory, or refuse one that finished rows contradict.

    Raises:
        ValueError: the directory holds rows made under another value of a key in `IDENTITY`, or judged
            or graded with other prompts than this version's.
    """
    store = Store(config.run_dir)
    saved = store.read("config.yaml")
    now = config.model_dump(mode="json")
    compared = _made_with(store)
    if saved is not None and compared:
        before, now = redact.config(yaml.safe_load(saved)), redact.config(now)
        for section, keys in compared.items():
            for key in sorted(keys & before.get(section, {}).keys()):
                was, asked = before[section][key], now[section][key]
                if was != asked:
                    raise ValueError(
                        f"{config.run_dir} holds rows made with {section}.{key}={was!r}; "
                        f"the config now says {asked!r}: use another run_dir"
                    )
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
