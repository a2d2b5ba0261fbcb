"""Means and differences with 95% intervals, by a paired bootstrap over prompts.

The prompt is the unit of resampling: a model's answers to one prompt are not independent, and before
and after answer the same prompts, so that the difference is taken within each of them.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
Z95 = 1.959963984540054
"""The 97.5th percentile of the normal distribution."""
# Values drawn at once: bounds memory to some tens of MB whatever the number of prompts.
_DRAWS = 2_000_000


class Interval(TypedDict):
    """A mean with its 95% interval. `mean` is None without values, `low` and `high` below two."""

    mean: float | None
    low: float | None
    high: float | None
    count: int


class Comparison(TypedDict):
    """Means over the `prompts` measured both times; `difference` is after minus before.

    `low` and `high` bound the difference (95%). What cannot be computed is None: everything without
    prompts, the interval with a single one.
    """

    before: float | None
    after: float | None
    difference: float | None
    low: float | None
    high: float | None
    prompts: int


def mean_interval(
    values: Iterable[float],
    seed: int = 0,
    resamples: int = RESAMPLES,
    groups: Sequence[Hashable] | None = None,
) -> Interval:
    """The mean of `values` and its percentile bootstrap interval, the same for the same seed.

    The interval draws whole `groups` (none: single values), such as a prompt whose pairs are not independent.

    Raises:
        ValueError: a value is not finite.
    """
    sample = np.asarray(list(values), dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError("a value to average is not a finite number")
    mean = float(sample.mean()) if sample.size else None
    low = high = None
    if sample.size > 1 and (groups is None or len(set(groups)) > 1):
        means = (
            _means(sample, seed, resamples) if groups is None else _ratios(sample, groups, seed, resamples)
        )
        low, high = (float(edge) for edge in np.percentile(means, [2.5, 97.5]))
    return {"mean": mean, "low": low, "high": high, "count": int(sample.size)}


def compare(
    before: Mapping[str, float], after: Mapping[str, float], seed: int = 0, resamples: int = RESAMPLES
) -> Comparison:
    """Before against after by prompt id, over the prompts in both.

    Raises:
        ValueError: a value is not finite.
    """
    ids = sorted(before.keys() & after.keys())  # sorted: sets of strings change order between processes
    interval = mean_interval([after[key] - before[key] for key in ids], seed, resamples)
    return {
        "before": float(np.mean([before[key] for key in ids])) if ids else None,
        "after": float(np.mean([after[key] for key in ids])) if ids else None,
        "difference": interval["mean"],
        "low": interval["low"],
        "high": interval["high"],
        "prompts": len(ids),
    }


def compare_items(before: Sequence[float], after: Sequence[float], groups: Sequence[Hashable]) -> Comparison:
    """Before against after, each item counting alike; the interval draws whole `groups` of items (prompts).

    Raises:
        ValueError: a value is not finite.
    """
    apart = [new - old for old, new in zip(before, after, strict=True)]
    interval = mean_interval(apart, groups=groups)
    return {
        "before": float(np.mean(before)) if apart else None,
        "after": float(np.mean(after)) if apart else None,
        "difference": interval["mean"],
        "low": interval["low"],
        "high": interval["high"],
        "prompts": len(set(groups)),
    }


def _means(sample: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Means of `resamples` samples drawn with replacement; shape (resamples,)."""
    random = np.random.default_rng(seed)
    step = max(1, _DRAWS // sample.size)
    parts = [
        sample[random.integers(0, sample.size, (min(step, resamples - start), sample.size))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


def _ratios(
    sample: NDArray[np.float64], groups: Sequence[Hashable], seed: int, resamples: int
) -> NDArray[np.float64]:
    """As `_means`, of samples of whole groups."""
    drawn = _sums(_totals(sample, groups), np.random.default_rng(seed), resamples)
    return drawn[:, 0] / drawn[:, 1]


def _totals(sample: NDArray[np.float64], groups: Sequence[Hashable]) -> NDArray[np.float64]:
    """Sum and number of each group's values, shape (groups, 2)."""
    number: dict[Hashable, int] = {}
    rows = [number.setdefault(group, len(number)) for group in groups]
    totals = np.zeros((len(number), 2))
    np.add.at(totals, rows, np.stack([sample, np.ones_like(sample)], axis=1))
    return totals


def wilson(successes: float, n: float) -> tuple[float, float] | None:
    """Wilson's 95% score interval of a share; None without trials.

    E. B. Wilson, Journal of the American Statistical Association 22 (1927). It holds near 0 and 1 and for
    few trials, where the mean plus or minus two standard errors leaves the range or has no width.
    """
    assert 0 <= successes <= n
    if not n:
        return None
    share, z2 = successes / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n**2))
    # At an edge the interval ends there exactly, but for rounding.
    return (0.0 if not successes else middle - half), (1.0 if successes == n else middle + half)


def clustered_wilson(hits: Sequence[bool], groups: Sequence[Hashable]) -> tuple[float, float] | None:
    """Wilson's interval of the share of `hits` where some of them are of one group; None without any.

    As many trials are counted as independent ones would have to be: their number over the design effect, the
    variance of the share over groups as a multiple of that of independent hits, at least 1 (L. Kish, Survey
    Sampling, 1965). A share of 0 or 1 does not tell it: there a group is one trial.
    """
    n, right = len(hits), sum(hits)
    totals = _totals(np.asarray(hits, dtype=np.float64), groups) if n else np.zeros((0, 2))
    count, share = len(totals), right / n if n else 0.0
    if count == n:
        return wilson(right, n)
    if count == 1 or share in (0.0, 1.0):
        worth = float(count)
    else:
        apart = float(((totals[:, 0] - share * totals[:, 1]) ** 2).sum()) * count / (count - 1) / n**2
        worth = n / max(1.0, apart * n / (share * (1 - share)))
    return wilson(share * worth, worth)


class Kappa(TypedDict):
    """Agreement of two raters beyond chance with its 95% interval; None where it is not defined."""

    kappa: float | None
    low: float | None
    high: float | None
    agreement: float | None
    count: int


def kappa(
    one: Sequence[Hashable],
    other: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Kappa:
    """Cohen's kappa of two raters' categories for the same items, with a percentile bootstrap interval.

    The interval draws whole `groups` (none: single items), as pairs of one prompt are not independent.

    J. Cohen, Educational and Psychological Measurement 20 (1960). It is not defined where chance alone
    would have both agree on everything, as when each uses one and the same category throughout; resamples
    of which that is true are left out of the interval.
    """
    assert len(one) == len(other)
    n = len(one)
    if not n:
        return {"kappa": None, "low": None, "high": None, "agreement": None, "count": 0}
    number: dict[Hashable, int] = {}
    codes = np.asarray(
        [[number.setdefault(item, len(number)) for item in pair] for pair in zip(one, other, strict=True)]
    )
    size = len(number)
    table = np.bincount(codes[:, 0] * size + codes[:, 1], minlength=size * size).reshape(size, size)
    value = float(_kappas(table[None] / n)[0])
    random = np.random.default_rng(seed)
    if groups is None:
        # To draw items with replacement is to draw the cells of their table.
        units, drawn = n, random.multinomial(n, table.ravel() / n, resamples)
    else:
        tables = _tables(groups, codes[:, 0] * size + codes[:, 1], size * size)
        units, drawn = len(tables), _sums(tables, random, resamples)
    values = _kappas((drawn / drawn.sum(axis=1, keepdims=True)).reshape(-1, size, size))
    values = values[np.isfinite(values)]
    defined = math.isfinite(value)
    low = high = None
    if defined and units > 1 and values.size:
        low, high = (float(edge) for edge in np.percentile(values, [2.5, 97.5]))
    return {
        "kappa": value if defined else None,
        "low": low,
        "high": high,
        "agreement": float(np.trace(table) / n),
        "count": n,
    }


def _tables(groups: Sequence[Hashable], cells: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """How often each group's items fall into each cell, shape (groups, size)."""
    number: dict[Hashable, int] = {}
    rows = np.asarray([number.setdefault(group, len(number)) for group in groups])
    tables = np.zeros((len(number), size))
    np.add.at(tables, (rows, cells), 1)
    return tables


def _sums(tables: NDArray[np.float64], random: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """Sums of as many `tables` as there are, drawn with replacement; shape (resamples, cells)."""
    count, step = len(tables), max(1, _DRAWS // len(tables))
    alike = np.full(count, 1 / count)
    return np.concatenate(
        [
            random.multinomial(count, alike, min(step, resamples - start)) @ tables
            for start in range(0, resamples, step)
        ]
    )


def _kappas(tables: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of each table of shares, shape (tables, categories, categories); NaN where not defined."""
    agreed = np.trace(tables, axis1=1, axis2=2)
    chance = (tables.sum(axis=2) * tables.sum(axis=1)).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance < 1 - 1e-12, (agreed - chance) / (1 - chance), np.nan)


class Correlation(TypedDict):
    """Pearson's r and Spearman's rank correlation, the latter with a 95% interval; None where undefined."""

    pearson: float | None
    spearman: float | None
    low: float | None
    high: float | None
    count: int


def correlation(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = 1000,
) -> Correlation:
    """How two measures of the same items go together.

    The interval is a percentile bootstrap that draws whole `groups` (none: single items), as answers to one
    prompt are not independent. Undefined below two items, and where a measure does not vary.

    Raises:
        ValueError: a value is not finite.
    """
    one, other = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    assert one.shape == other.shape
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("a value to correlate is not a finite number")
    keys = list(range(one.size)) if groups is None else list(groups)
    places: dict[Hashable, list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    units = [np.asarray(found) for found in places.values()]
    spearman = _pearson(_ranks(one), _ranks(other))
    low = high = None
    if spearman is not None and len(units) > 2:
        random = np.random.default_rng(seed)
        values: list[float] = []
        for _ in range(resamples):
            taken = np.concatenate([units[i] for i in random.integers(0, len(units), len(units))])
            value = _pearson(_ranks(one[taken]), _ranks(other[taken]))
            if value is not None:
                values.append(value)
        if values:
            low, high = (float(edge) for edge in np.percentile(values, [2.5, 97.5]))
    return {
        "pearson": _pearson(one, other),
        "spearman": spearman,
        "low": low,
        "high": high,
        "count": int(one.size),
    }


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def _pearson(x: NDArray[np.float64], y: NDArray[np.float64]) -> float | None:
    if x.size < 2 or not np.ptp(x) or not np.ptp(y):
        return None
    return float(np.clip(np.corrcoef(x, y)[0, 1], -1, 1))
