import math

import numpy as np
import pytest

from lr_ray import statistics


def test_interval_agrees_with_normal_theory() -> None:
    sample = np.random.default_rng(7).normal(3.0, 2.0, 400)
    got = statistics.mean_interval(sample)
    half = 1.96 * sample.std() / math.sqrt(sample.size)
    assert got["mean"] == pytest.approx(sample.mean())
    assert got["low"] == pytest.approx(sample.mean() - half, abs=0.012)
    assert got["high"] == pytest.approx(sample.mean() + half, abs=0.012)


def test_interval_of_two_values_by_hand() -> None:
    """Two values resample to 0, 1/2 or 1 with chances 1/4, 1/2, 1/4: the 95% range is the whole range."""
    assert statistics.mean_interval([0.0, 1.0]) == {"mean": 0.5, "low": 0.0, "high": 1.0, "count": 2}


def test_coverage() -> None:
    """About 95 of 100 intervals hold the true mean."""
    random = np.random.default_rng(11)
    hits = 0
    for trial in range(300):
        got = statistics.mean_interval(random.normal(0.0, 1.0, 60), seed=trial, resamples=1000)
        assert got["low"] is not None
        assert got["high"] is not None
        hits += got["low"] <= 0.0 <= got["high"]
    assert 0.92 <= hits / 300 <= 0.98


def test_compare_is_paired() -> None:
    """Prompts differ by far more than before and after do: only a paired interval excludes zero."""
    base = {f"p{i}": float(i % 10) for i in range(50)}
    got = statistics.compare(base, {key: value + 0.5 for key, value in base.items()})
    assert got["before"] == pytest.approx(4.5)
    assert got["after"] == pytest.approx(5.0)
    assert [got["difference"], got["low"], got["high"]] == pytest.approx([0.5, 0.5, 0.5])
    assert got["prompts"] == 50


def test_compare_takes_the_prompts_in_both() -> None:
    got = statistics.compare({"a": 1.0, "b": 2.0, "c": 100.0}, {"b": 3.0, "a": 4.0, "d": -100.0})
    assert got == {"before": 1.5, "after": 3.5, "difference": 2.0, "low": 1.0, "high": 3.0, "prompts": 2}


def test_same_seed_same_interval() -> None:
    values = list(np.random.default_rng(1).normal(size=37))
    assert statistics.mean_interval(values) == statistics.mean_interval(values)
    assert statistics.mean_interval(values, seed=1) != statistics.mean_interval(values, seed=2)


def test_drawing_in_parts_still_draws_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_DRAWS", 10)
    assert statistics._means(np.arange(4.0), 0, 33).shape == (33,)


def test_too_little_is_none_not_a_number() -> None:
    nothing = statistics.compare({"a": 1.0}, {"b": 1.0})
    assert nothing == dict.fromkeys(("before", "after", "difference", "low", "high"), None) | {"prompts": 0}
    single = statistics.compare({"a": 1.0}, {"a": 2.0})
    assert (single["difference"], single["low"], single["high"]) == (1.0, None, None)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        statistics.mean_interval([1.0, bad])
