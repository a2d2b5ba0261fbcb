"""Means and differences with 95% intervals, by a paired bootstrap over prompts.

The prompt is the unit of resampling: a model's answers to one prompt are not independent, and before
and after answer the same prompts, so that the difference is taken within each of them.
"""

from collections.abc import Iterable, Mapping
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
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


def mean_interval(values: Iterable[float], seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """The mean of `values` and its percentile bootstrap interval, the same for the same seed.

    Raises:
        ValueError: a value is not finite.
    """
    sample = np.asarray(list(values), dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError("a value to average is not a finite number")
    mean = float(sample.mean()) if sample.size else None
    low = high = None
    if sample.size > 1:
        low, high = (float(edge) for edge in np.percentile(_means(sample, seed, resamples), [2.5, 97.5]))
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


def _means(sample: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    """Means of `resamples` samples drawn with replacement; shape (resamples,)."""
    random = np.random.default_rng(seed)
    step = max(1, _DRAWS // sample.size)
    parts = [
        sample[random.integers(0, sample.size, (min(step, resamples - start), sample.size))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)
