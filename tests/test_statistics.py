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


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # scipy 1.17.1: binomtest(k, n).proportion_ci(method="wilson")
        (307, 464, 0.6174156106727721, 0.7032058245846134),
        (50, 100, 0.4038315303659956, 0.5961684696340044),
        (1, 3, 0.06149194472039626, 0.7923403991979523),
        (0, 10, 0.0, 0.27753279986288926),
        (10, 10, 0.7224672001371109, 1.0),
        (1, 1, 0.20654931437723745, 1.0),
    ],
)
def test_wilson_as_scipy_has_it(successes: int, n: int, low: float, high: float) -> None:
    assert statistics.wilson(successes, n) == pytest.approx((low, high), abs=1e-12)


def test_wilson_without_trials_is_none() -> None:
    assert statistics.wilson(0, 0) is None


def test_kappa_by_hand() -> None:
    """Agreed on 3 of 4; chance agrees on 1/2 * 3/4 + 1/2 * 1/4 = 1/2."""
    got = statistics.kappa(["a", "a", "b", "b"], ["a", "a", "a", "b"])
    assert (got["kappa"], got["agreement"], got["count"]) == (pytest.approx(0.5), 0.75, 4)


def test_kappa_as_scikit_learn_and_statsmodels_have_it() -> None:
    one, other = list("AABBBCCAABCT"), list("ABBBCCCAATCA")
    assert statistics.kappa(one, other)["kappa"] == pytest.approx(0.5339805825242718)
    # statsmodels 0.15's asymptotic interval of the same table twenty times over.
    got = statistics.kappa(one * 20, other * 20)
    assert got["kappa"] == pytest.approx(0.5339805825242718)
    assert got["low"] == pytest.approx(0.4556, abs=0.01)
    assert got["high"] == pytest.approx(0.6124, abs=0.01)
    assert got == statistics.kappa(one * 20, other * 20)


def test_kappa_where_it_is_not_defined() -> None:
    nothing = {"kappa": None, "low": None, "high": None}
    assert statistics.kappa([], []) == {**nothing, "agreement": None, "count": 0}
    assert statistics.kappa(["a"] * 5, ["a"] * 5) == {**nothing, "agreement": 1.0, "count": 5}
    assert statistics.kappa(["a", "b"], ["b", "a"])["kappa"] == -1


def test_correlation_as_scipy_has_it() -> None:
    x, y = [1, 2, 2, 3, 5, 8, 8, 8, 13, 21], [2.0, 1.5, 3, 3, 2.5, 9, 4, 7, 7, 6]
    got = statistics.correlation(x, y)
    # scipy 1.17.1: pearsonr and spearmanr, with ties
    assert got["pearson"] == pytest.approx(0.6346042890464979)
    assert got["spearman"] == pytest.approx(0.7956999561677748)
    assert got["low"] is not None
    assert got["high"] is not None
    assert got["low"] < got["spearman"] < got["high"] <= 1


def test_a_correlations_interval_draws_whole_groups() -> None:
    """Ten copies of each item tell no more than one: drawn by group the interval is as wide as of one."""
    random = np.random.default_rng(3)
    x = random.normal(size=40)
    y = x + random.normal(size=40)
    single = statistics.correlation(list(x), list(y))
    tenfold = [list(np.repeat(side, 10)) for side in (x, y)]
    grouped = statistics.correlation(*tenfold, groups=list(np.repeat(np.arange(40), 10)))
    ungrouped = statistics.correlation(*tenfold)
    assert grouped["spearman"] == pytest.approx(single["spearman"])

    def width(of: statistics.Correlation) -> float:
        assert of["low"] is not None
        assert of["high"] is not None
        return of["high"] - of["low"]

    assert width(grouped) == pytest.approx(width(single), rel=0.1)
    assert width(ungrouped) < 0.5 * width(single)


def test_correlation_where_it_is_not_defined() -> None:
    nothing = dict.fromkeys(("pearson", "spearman", "low", "high"), None)
    assert statistics.correlation([], []) == nothing | {"count": 0}
    assert statistics.correlation([1, 1, 1], [1, 2, 3]) == nothing | {"count": 3}
    assert statistics.correlation([1, 2], [5, 4])["spearman"] == pytest.approx(-1)
    with pytest.raises(ValueError, match="not a finite number"):
        statistics.correlation([1.0, float("nan")], [1.0, 2.0])


def test_a_kappas_interval_draws_whole_groups() -> None:
    """Ten copies of each item tell no more than one: drawn by group the interval is as wide as of one."""
    random = np.random.default_rng(4)
    one = list(random.integers(0, 3, 60))
    other = [int(random.integers(0, 3)) if random.random() < 0.4 else item for item in one]
    single = statistics.kappa(one, other)
    tenfold = [list(np.repeat(side, 10)) for side in (one, other)]
    grouped = statistics.kappa(*tenfold, groups=list(np.repeat(np.arange(60), 10)))
    assert grouped["kappa"] == pytest.approx(single["kappa"])
    for edge in ("low", "high"):
        assert grouped[edge] == pytest.approx(single[edge], abs=0.03)  # type: ignore[literal-required]
    apart = statistics.kappa(*tenfold)
    assert apart["high"] - apart["low"] < 0.5 * (single["high"] - single["low"])
    assert statistics.kappa(one, other, groups=["a"] * 60)["low"] is None


def clustered(prompts: int, pairs: int, seed: int) -> tuple[list[bool], list[int]]:
    """Hits of which those of one prompt go together; the mean of them all is 0.7."""
    random = np.random.default_rng(seed)
    hits = [bool(random.random() < share) for share in random.beta(0.7, 0.3, prompts) for _ in range(pairs)]
    return hits, [prompt for prompt in range(prompts) for _ in range(pairs)]


def test_pairs_of_one_prompt_are_no_independent_trials() -> None:
    """About 95 of 100 intervals hold the share; of those that take every pair for itself, far fewer."""
    covered = naive = 0
    for trial in range(300):
        hits, prompts = clustered(60, 6, trial)
        low, high = statistics.clustered_wilson(hits, prompts) or (1.0, 0.0)
        covered += low <= 0.7 <= high
        low, high = statistics.wilson(sum(hits), len(hits)) or (1.0, 0.0)
        naive += low <= 0.7 <= high
    assert 0.92 <= covered / 300 <= 0.98
    assert naive / 300 < 0.8


def test_clustered_intervals_at_their_edges() -> None:
    assert statistics.clustered_wilson([], []) is None
    one_each = [True, False, True, True]
    assert statistics.clustered_wilson(one_each, "abcd") == statistics.wilson(3, 4)
    # Where all hit, or all belong to one prompt, a prompt is one trial.
    assert statistics.clustered_wilson([True] * 6, "aabbcc") == statistics.wilson(3, 3)
    assert statistics.clustered_wilson([True, False], "aa") == statistics.wilson(0.5, 1)
    # Two prompts that are all hits and no hit are two trials or fewer, by hand: 2 * (3/2)^2 * 2/1 / 36 = 1/4
    # is the variance, six independent trials would have 1/24.
    assert statistics.clustered_wilson([True] * 3 + [False] * 3, "aaabbb") == statistics.wilson(0.5, 1)
    # Hits that are spread over the prompts more evenly than by chance are worth no more than they are.
    assert statistics.clustered_wilson([True, False] * 3, "aabbcc") == statistics.wilson(3, 6)


def test_items_count_alike_and_their_groups_are_drawn_whole() -> None:
    before, after = [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0]
    got = statistics.compare_items(before, after, ["a", "a", "a", "b"])
    assert (got["before"], got["after"], got["difference"]) == (0.25, 0.75, 0.5)
    # Drawn are both, a twice or b twice: 1/2, 1 or -1.
    assert (got["low"], got["high"], got["prompts"]) == (-1.0, 1.0, 2)
    alone = statistics.compare_items(before, after, "aaaa")
    assert (alone["difference"], alone["low"], alone["high"], alone["prompts"]) == (0.5, None, None, 1)
    assert statistics.compare_items([], [], [])["difference"] is None
    each = statistics.compare_items(before, after, "abcd")
    whole = statistics.compare(dict(zip("abcd", before, strict=True)), dict(zip("abcd", after, strict=True)))
    assert each["difference"] == whole["difference"]
    assert [each["low"], each["high"]] == pytest.approx([whole["low"], whole["high"]], abs=0.01)
