"""The benchmarks' part of a comparison's table, and facts and win rates of the held-out prompts.

A benchmark's result may be a mean of strata or of things that weigh differently, so its interval is made
where it is graded (`benchmark_results`). Of several seeds each case has its mean over those that both sides
have, as in `table`, and the interval is made of these once.
"""

import json
from collections.abc import Mapping, Sequence, Set
from statistics import fmean
from typing import Any

from lr_ray import benchmark_results
from lr_ray.benchmark_results import Facts, Found
from lr_ray.benchmark_runs import Side
from lr_ray.benchmarks import table as graded
from lr_ray.benchmarks.case import Case
from lr_ray.benchmarks.grades import Given, Graded, given
from lr_ray.benchmarks.intervals import Point
from lr_ray.compare import table
from lr_ray.config import Config
from lr_ray.evaluation import METRICS
from lr_ray.judge.together import Missing
from lr_ray.statistics import Comparison
from lr_ray.store import Store

Rows = Mapping[str, Comparison]
"""Metric → its comparison."""
Grades = tuple[list[Graded], list[Graded]]
"""Of the same cases by two models."""
_SIDES = ("before", "after", "difference")
_NOWHERE = "no seed has a grade of both models"


def own(store: Store) -> dict[str, Any]:
    """What a training's evaluation says beside the judge's scores: the model before against the one after."""
    written = json.loads(store.read("evaluation.json") or b"{}")
    return {row["metric"]: row for row in written.get("table", []) if row["metric"] not in METRICS}


def before(
    config: Config, base: Store, seeds: Sequence[Store], cases: list[Case], held_out: Set[str]
) -> dict[str, Any]:
    """The trainings `seeds` of one run together against the model before, whose evaluation is in `base`."""
    pairs = [(Side("before", config, base), Side("after", config, seed)) for seed in seeds]
    return _rows(config, pairs, cases, held_out)


def against(config: Config, pairs: Sequence[tuple[Store, Store]], cases: list[Case]) -> dict[str, Any]:
    """The trainings of two runs, paired by seed, the first ones as the model before."""
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
    sides = [(Side("after", config, one), Side("after", config, other)) for one, other in pairs]
    return _rows(config, sides, cases, frozenset())


def _rows(
    config: Config, pairs: Sequence[tuple[Side, Side]], cases: list[Case], held_out: Set[str]
) -> dict[str, Any]:
    found = [benchmark_results.gathered([*pair], pair[1].store, cases, held_out)[0] for pair in pairs]
    return {row["metric"]: row for row in benchmark_results.rows(config, pooled(found), cases)}


def pooled(seeds: Sequence[Found]) -> Found:
    """What was found with several seeds as one: of each case its mean over the seeds."""
    first = seeds[0]
    return Found(
        {label: _graded([seed.grades[label] for seed in seeds]) for label in first.grades},
        {label: _facts([seed.facts[label] for seed in seeds]) for label in first.facts},
        {label: _graded([(seed.duels[label],) * 2 for seed in seeds])[1] for label in first.duels},
    )


def _facts(seeds: Sequence[tuple[Facts, Facts]]) -> tuple[Facts, Facts]:
    both = {
        metric: table.paired([old[metric] for old, _ in seeds], [new[metric] for _, new in seeds])
        for metric in seeds[0][0]
    }
    one, other = ({metric: sides[i] for metric, sides in both.items()} for i in (0, 1))
    return one, other


def _graded(seeds: Sequence[Grades]) -> Grades:
    """Each grade of a case is its mean over the seeds that have it of both models."""
    rows: tuple[dict[str, Graded], dict[str, Graded]] = ({}, {})
    metrics: dict[str, dict[str, None]] = {}
    points: dict[tuple[str, str], list[tuple[Point, Point]]] = {}
    for seed in seeds:
        of_seed = [{row["prompt_id"]: row for row in side} for side in seed]
        for kept, side in zip(rows, of_seed, strict=True):
            for one, row in side.items():
                kept.setdefault(one, row)
                metrics.setdefault(one, {}).update(dict.fromkeys(g["metric"] for g in row["grades"]))
        for one in of_seed[0].keys() & of_seed[1].keys():
            for metric in metrics[one]:
                both = [graded.points([side[one]], metric).get(side[one]["unit"]) for side in of_seed]
                if both[0] is not None and both[1] is not None:
                    points.setdefault((one, metric), []).append((both[0], both[1]))

    def side(number: int) -> list[Graded]:
        return [
            {**row, "grades": [_mean(m, [p[number] for p in points.get((one, m), ())]) for m in metrics[one]]}
            for one, row in rows[number].items()
        ]

    return side(0), side(1)


def _mean(metric: str, points: Sequence[Point]) -> Given:
    if not points:
        return given(0, metric, Missing(_NOWHERE))
    value, weight, length = (fmean(point[i] for point in points) for i in range(3))
    return given(0, metric, value, weight=weight, length=length)


def rows(name: str, seeds: Sequence[Rows], together: Rows, others: Rows) -> list[dict[str, Any]]:
    """The run's rows as in `table.table`: what its `seeds` found against the model before, several also
    `together`, and what all did against the `others`.

    Of a metric whose values are not kept, several seeds have the mean of theirs and no interval.
    """
    made = []
    for metric in dict.fromkeys(metric for seed in seeds for metric in seed):
        found = [seed.get(metric) for seed in seeds]
        told = _known(together[metric]) if metric in together else _mean_of(found)
        made.append(
            {
                **{"metric": metric, "run": name, "mean": told and told["after"], "low": None, "high": None},
                "count": told["prompts"] if told else 0,
                **{"before": told or _nothing(), "against": _known(others.get(metric))},
                "seeds": [one["difference"] if one else None for one in found],
            }
        )
    return made


def _known(one: Comparison | None) -> dict[str, Any] | None:
    if one is None or one["difference"] is None:
        return None
    found: dict[str, Any] = {**one}
    return {key: found[key] for key in (*_SIDES, "low", "high", "prompts")}


def _mean_of(seeds: Sequence[Comparison | None]) -> dict[str, Any] | None:
    """One seed's comparison, or the means of several."""
    known = [one for one in map(_known, seeds) if one is not None]
    if len(known) < 2:
        return known[0] if known else None
    means = {key: fmean(one[key] for one in known) for key in _SIDES}
    return {**means, "low": None, "high": None, "prompts": max(one["prompts"] for one in known)}


def _nothing() -> dict[str, Any]:
    return {**dict.fromkeys((*_SIDES, "low", "high")), "prompts": 0}
