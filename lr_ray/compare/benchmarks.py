"""The benchmarks' part of a comparison's table.

A benchmark's result may be a mean of strata or of things that weigh differently, so its interval is made
where it is graded (`benchmark_results`), of one training at a time. Of several seeds the table has the mean
of their differences without an interval; each seed's own stands in its `evaluation.json`.
"""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lr_ray import benchmark_results, benchmark_runs
from lr_ray.config import Config
from lr_ray.evaluation import METRICS
from lr_ray.statistics import Comparison
from lr_ray.store import Store

Found = Mapping[str, Comparison]
"""Metric → its comparison."""
_SIDES = ("before", "after", "difference")


def before(store: Store) -> dict[str, Any]:
    """What a training's evaluation says beside the judge's scores: the model before against the one after."""
    written = json.loads(store.read("evaluation.json") or b"{}")
    return {row["metric"]: row for row in written.get("table", []) if row["metric"] not in METRICS}


def against(config: Config, other: Store, store: Store) -> dict[str, Any]:
    """The benchmarks of two trainings, the `other` one as the model before."""
    asked = config.evaluation
    # Facts and win rates belong to a training and the model it started from.
    plain = [
        one.model_copy(update={"facts": False, "win_rate": None})
        for one in asked.benchmarks
        if one.kind != "facts"
    ]
    if not plain:
        return {}
    update = {"evaluation": asked.model_copy(update={"benchmarks": plain, "win_rate": None})}
    config = config.model_copy(update=update)
    sides = [benchmark_runs.Side("after", config, there) for there in (other, store)]
    cases = benchmark_runs.prepare(config, store).cases
    return {row["metric"]: row for row in benchmark_results.results(sides, store, cases)[0]}


def rows(name: str, seeds: Sequence[Found], others: Sequence[Found]) -> list[dict[str, Any]]:
    """The run's rows as in `table.table`: what its seeds found against the model before, and the `others`."""
    metrics = dict.fromkeys(metric for seed in seeds for metric in seed)
    made = []
    for metric in metrics:
        found, compared = _seeds(metric, seeds), _seeds(metric, others)
        told = _mean(found)
        made.append(
            {
                **{"metric": metric, "run": name, "mean": told and told["after"], "low": None, "high": None},
                "count": told["prompts"] if told else 0,
                **{"before": told or _nothing(), "against": _mean(compared)},
                "seeds": [one["difference"] if one else None for one in found],
            }
        )
    return made


def _seeds(metric: str, seeds: Sequence[Found]) -> list[Comparison | None]:
    return [seed.get(metric) for seed in seeds]


def _mean(seeds: Sequence[Comparison | None]) -> dict[str, Any] | None:
    """One seed's comparison, or the means of several."""
    known: list[Any] = [one for one in seeds if one is not None and one["difference"] is not None]
    if not known:
        return None
    if len(known) == 1:
        return {key: known[0][key] for key in (*_SIDES, "low", "high", "prompts")}
    means = {key: fmean(one[key] for one in known) for key in _SIDES}
    return {**means, "low": None, "high": None, "prompts": max(one["prompts"] for one in known)}


def _nothing() -> dict[str, Any]:
    return {**dict.fromkeys((*_SIDES, "low", "high")), "prompts": 0}
