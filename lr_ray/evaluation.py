"""A model before and after on held-out prompts, through the same sampling and judging as the run."""

import json
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from lr_ray import data
from lr_ray.config import DIMENSIONS, Config
from lr_ray.rollout import failed, rollout
from lr_ray.runtime import Watch
from lr_ray.statistics import compare
from lr_ray.store import Store

METRICS = ("reward", *DIMENSIONS)
SIDES = ("before", "after")


def evaluate(config: Config, store: Store, pointers: list[data.Pointer], watch: Watch) -> dict[str, Any]:
    """Sample and judge the held-out prompts with both models, compare, write `evaluation.json`.

    Returns:
        What is written: `table` has a row a metric with the means, the paired difference and its 95%
        interval over prompts (bootstrap); `unscored` counts candidates' dimensions without a score.
    """
    for name, of_side, there in sides(config, store):
        rollout(of_side, there, pointers, watch, name=name)
    return written(config, store, pointers)


def sides(config: Config, store: Store) -> Iterator[tuple[str, Config, Store]]:
    """Before and after: a name for the display, the config and the run directory of each."""
    for side, model in zip(SIDES, _models(config, store), strict=True):
        sampling = config.sampling.model_copy(update={"model": model, "n": config.evaluation.n})
        of_side = config.model_copy(update={"sampling": sampling})
        yield f"evaluation, {side}", of_side, _store(store, side)


def written(config: Config, store: Store, pointers: list[data.Pointer]) -> dict[str, Any]:
    """Compare what is judged; see `evaluate`."""
    models = dict(zip(SIDES, _models(config, store), strict=True))
    result: dict[str, Any] = {
        "baseline": models["before"],
        "model": models["after"],
        "prompts": len(pointers),
        "n": config.evaluation.n,
        "table": [],
        "unscored": {},
    }
    means: dict[str, dict[str, dict[str, float]]] = {}
    for side in SIDES:
        means[side], result["unscored"][side] = judged_means(_store(store, side))
    result["table"] = [{"metric": m, **compare(means["before"][m], means["after"][m])} for m in METRICS]
    result["failed"] = {side: len(failed(_store(store, side))) for side in SIDES}
    store.write(json.dumps(result, indent=2).encode(), "evaluation.json")
    return result


def _models(config: Config, store: Store) -> tuple[str, str]:
    return config.evaluation.baseline or config.sampling.model, config.evaluation.model or store.path("model")


def _store(store: Store, side: str) -> Store:
    return store.sub("evaluation", side)


def judged_means(store: Store) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Metric → prompt id → mean over the prompt's scored candidates; and unscored dimensions counted."""
    means: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    unscored: dict[str, int] = {}
    for row in store.rows("judged", ["prompt_id", "candidates"]):
        for metric in METRICS:
            values = [c["reward"] if metric == "reward" else c["scores"][metric] for c in row["candidates"]]
            scored = [value for value in values if value is not None]
            if scored:
                means[metric][row["prompt_id"]] = fmean(scored)
            if metric != "reward":
                unscored[metric] = unscored.get(metric, 0) + len(values) - len(scored)
    return means, unscored


def texts(store: Store, side: str) -> dict[str, list[str]]:
    """The answers of one side, for metrics that need no judge: prompt id → texts."""
    rows = _store(store, side).rows("sampled", ["prompt_id", "candidates"])
    return {row["prompt_id"]: [c["text"] for c in row["candidates"]] for row in rows}


def add_metric(
    store: Store, metric: str, before: dict[str, float], after: dict[str, float]
) -> dict[str, Any]:
    """Append a judge-free metric (prompt id → value) to the table in `evaluation.json`; returns it all."""
    written = store.read("evaluation.json")
    assert written is not None, "evaluate first"
    result = json.loads(written)
    kept = [row for row in result["table"] if row["metric"] != metric]
    result["table"] = [*kept, {"metric": metric, **compare(before, after)}]
    store.write(json.dumps(result, indent=2).encode(), "evaluation.json")
    return result
