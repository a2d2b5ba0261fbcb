"""Means of means with 95% intervals: over strata that count alike, of parts that weigh differently.

A macro mean over data sets is resampled within each of them, since the sets are fixed; an average over
instructions is a ratio of sums over prompts. Both are paired: a prompt is drawn for both models at once.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lr_ray.benchmarks import wins
from lr_ray.statistics import RESAMPLES, Comparison, compare

FITS = 1000  # resamples of a regression
DRAWS = 4_000_000  # numbers in memory at once

Numbers = NDArray[np.float64]


class Point(NamedTuple):
    """What was measured on a unit: a value, how many things it is about, and a difference of lengths."""

    value: float
    weight: float = 1.0
    length: float = 0.0


Points = Mapping[str, Point]
Statistic = Callable[[Numbers], Numbers]
"""How often each unit was drawn, shape (samples, units) → the statistic of each sample."""


def paired(before: Points, after: Points, strata: Mapping[str, str] | None = None) -> Comparison:
    """Before against after over the units measured both times; weighted, and by strata of equal share.

    Args:
        before: unit → what the model before got.
        after: the same for the model after.
        strata: the stratum of every unit, of those that were not measured too; none: all are one. A stratum
            without a paired unit leaves the mean unknown.
    """
    return shared(before, after, strata, None)


def shared(
    before: Points, after: Points, strata: Mapping[str, str] | None, shares: Mapping[str, float] | None
) -> Comparison:
    """As `paired`, with the share in the mean of each stratum that has to be there; they add up to 1."""
    ids = sorted(before.keys() & after.keys())
    if strata is None and all(before[one].weight == after[one].weight == 1 for one in ids):
        return compare({one: before[one].value for one in ids}, {one: after[one].value for one in ids})
    of = {one: strata[one] if strata else "" for one in ids}
    names = sorted(shares or set((strata or of).values()))
    if not ids or set(of.values()) != set(names):
        return _nothing(len(ids))
    part = {name: 1 / len(names) for name in names} if shares is None else shares
    columns = {name: [i for i, one in enumerate(ids) if of[one] == name] for name in names}
    draws = [(part[name], np.array(column)) for name, column in columns.items()]
    sides = [_arrays(points, ids) for points in (before, after)]

    def mean(counts: Numbers, side: tuple[Numbers, Numbers]) -> Numbers:
        values, weights = side
        total = np.zeros(len(counts))
        for portion, column in draws:
            weight = counts[:, column] * weights[column]
            total += portion * (weight @ values[column]) / weight.sum(axis=1)
        return total

    return _bootstrapped(
        lambda counts: mean(counts, sides[0]),
        lambda counts: mean(counts, sides[1]),
        [column for _, column in draws],
        RESAMPLES,
    )


def controlled(before: Points, after: Points) -> Comparison:
    """Length-controlled win rates of both models against the same answers; see `wins.controlled`."""
    ids = sorted(before.keys() & after.keys())
    if not ids:
        return _nothing(0)

    def rate(points: Points) -> Statistic:
        values = [points[one].value for one in ids]
        lengths = [points[one].length for one in ids]
        return lambda counts: wins.controlled(values, lengths, counts)

    return _bootstrapped(rate(before), rate(after), [np.arange(len(ids))], FITS)


def duel(points: Points, control: bool) -> Comparison:
    """The win rate of the model after against the model before, whose rate is the rest to 100."""
    ids = sorted(points)
    if not ids:
        return _nothing(0)
    values, lengths = (np.array([points[one][i] for one in ids]) for i in (0, 2))

    def rate(counts: Numbers) -> Numbers:
        if control:
            return wins.controlled(list(values), list(lengths), counts)
        return counts @ values / counts.sum(axis=1)

    columns = [np.arange(len(ids))]
    return _bootstrapped(lambda c: 100 - rate(c), rate, columns, FITS if control else RESAMPLES)


def _arrays(points: Points, ids: list[str]) -> tuple[Numbers, Numbers]:
    return np.array([points[one].value for one in ids]), np.array([points[one].weight for one in ids])


def _bootstrapped(
    before: Statistic, after: Statistic, columns: list[NDArray[np.int64]], resamples: int
) -> Comparison:
    """Both statistics of all units, and the percentile interval of their difference; columns are strata."""
    units = sum(len(column) for column in columns)
    whole = np.ones((1, units))
    first, second = float(before(whole)[0]), float(after(whole)[0])
    low = high = None
    if units > 1:
        random = np.random.default_rng(0)
        step, found = max(1, DRAWS // units), []
        for start in range(0, resamples, step):
            size = min(step, resamples - start)
            counts = np.empty((size, units))
            for column in columns:
                alike = np.full(len(column), 1 / len(column))
                counts[:, column] = random.multinomial(len(column), alike, size=size)
            found.append(after(counts) - before(counts))
        low, high = (float(edge) for edge in np.percentile(np.concatenate(found), [2.5, 97.5]))
    return {
        "before": first,
        "after": second,
        "difference": second - first,
        "low": low,
        "high": high,
        "prompts": units,
    }


def _nothing(units: int) -> Comparison:
    return {
        "before": None,
        "after": None,
        "difference": None,
        "low": None,
        "high": None,
        "prompts": units,
    }
