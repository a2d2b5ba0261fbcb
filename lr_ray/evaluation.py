"""A model before and after on held-out prompts, through the same sampling and judging as the run, and on
benchmarks (`benchmark_runs`)."""

import json
from collections.abc import Iterator, Set
from statistics import fmean
from typing import Any

from lr_ray import benchmark_results, benchmark_runs, data
from lr_ray.config import DIMENSIONS, Config
from lr_ray.reuse import elsewhere, reusing
from lr_ray.rollout import failed, rollout
from lr_ray.runtime import Watch
from lr_ray.statistics import compare
from lr_ray.store import Store

METRICS = ("reward", *DIMENSIONS)
SIDES = ("before", "after")


def evaluate(
    config: Config,
    store: Store,
    pointers: list[data.Pointer],
    watch: Watch,
    source: Store | None = None,
    retry: bool = False,
) -> dict[str, Any]:
    """Sample and judge the held-out prompts with both models, and the benchmarks of the config; compare;
    write `evaluation.json`.

    The model before may be shared by several runs: then it is that of the run directory `source`. With
    `retry`, what failed in the benchmarks is taken up again (for the held-out prompts see `retry`).

    Returns:
        What is written: `table` has a row a metric with the means, the paired difference and its 95%
        interval over prompts (bootstrap); `unscored` counts candidates' dimensions without a score;
        `benchmarks` says of each what was cut, failed and is unscored, and why.
    """
    for name, of_side, there in sides(config, store, source):
        rollout(of_side, there, pointers, watch, name=name)
    prepared = benchmark_runs.prepare(config, store)
    ids = [pointer.prompt_id for pointer in pointers]
    benchmark_runs.run(_both(config, store, source), store, prepared, ids, watch, retry)
    return written(config, store, pointers, source, prepared)


def sides(config: Config, store: Store, source: Store | None = None) -> Iterator[tuple[str, Config, Store]]:
    """Before and after: a name for the display, the config and the run directory of each.

    What a side's judging has paid for by the time the next one is asked for, that one takes.
    """
    paid = elsewhere(config, SIDES)
    for side, of_side in _configs(config, store):
        there = _side(store, side, source)
        yield f"evaluation, {side}", reusing(of_side, paid), there
        paid.append(there)


def _configs(config: Config, store: Store) -> Iterator[tuple[str, Config]]:
    """The config that each side is sampled with."""
    for side, model in zip(SIDES, _models(config, store), strict=True):
        asked = config.evaluation
        update = {
            "model": model,
            "n": asked.n,
            "temperature": asked.temperature,
            "max_tokens": asked.max_tokens,
        }
        update = {name: value for name, value in update.items() if value is not None}
        yield side, config.model_copy(update={"sampling": config.sampling.model_copy(update=update)})


def _both(config: Config, store: Store, source: Store | None) -> list[benchmark_runs.Side]:
    """The two sides as benchmarks know them."""
    roots = {"before": source or store, "after": store}
    return [benchmark_runs.Side(side, of_side, roots[side]) for side, of_side in _configs(config, store)]


def written(
    config: Config,
    store: Store,
    pointers: list[data.Pointer],
    source: Store | None = None,
    prepared: benchmark_runs.Prepared | None = None,
) -> dict[str, Any]:
    """Compare what is judged of the `pointers`; see `evaluate`.

    Rows of prompts that the config named once are passed over.
    """
    ids = {pointer.prompt_id for pointer in pointers}
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
        means[side], result["unscored"][side] = judged_means(_side(store, side, source), ids)
    if pointers:
        result["table"] = [{"metric": m, **compare(means["before"][m], means["after"][m])} for m in METRICS]
    result["failed"] = {side: len(failed(_side(store, side, source)) & ids) for side in SIDES}
    both = _both(config, store, source)
    prepared = prepared or benchmark_runs.prepare(config, store)
    rows, result["benchmarks"], unscored = benchmark_results.results(both, store, prepared.cases, ids)
    result["table"] += rows
    for side in both:
        benchmark_results.keep_rules(side, prepared.cases)
    if pointers:
        result["unscored facts"] = unscored
    for side, lost in benchmark_results.failed(both, store).items():
        result["failed"][side] = result["failed"].get(side, 0) + lost
    store.write(json.dumps(result, indent=2).encode(), "evaluation.json")
    return result


def lost(config: Config, store: Store, source: Store | None = None) -> bool:
    """Whether anything of the benchmarks failed for good."""
    return any(benchmark_results.failed(_both(config, store, source), store).values())


def _models(config: Config, store: Store) -> tuple[str, str]:
    return config.evaluation.baseline or config.sampling.model, config.evaluation.model or store.sub(
        "model"
    ).absolute


def _store(store: Store, side: str) -> Store:
    return store.sub("evaluation", side)


def _side(store: Store, side: str, source: Store | None) -> Store:
    return _store(source if source is not None and side == "before" else store, side)


def judged_means(store: Store, ids: Set[str]) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Metric → prompt id → mean over the prompt's scored candidates; and unscored dimensions counted."""
    means: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    unscored: dict[str, int] = {}
    for row in store.rows("judged", ["prompt_id", "candidates"]):
        if row["prompt_id"] not in ids:
            continue
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
