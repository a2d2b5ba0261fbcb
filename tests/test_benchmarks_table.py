"""Averages, intervals, win rates and facts against cases worked out by hand and against scipy."""

import math
import random
from typing import Any

import numpy as np
import pytest

from lr_ray.benchmarks import facts, grades, intervals, table, wins
from lr_ray.benchmarks.case import Case, asked
from lr_ray.benchmarks.intervals import Point
from lr_ray.benchmarks.longbench import SETS
from lr_ray.judge.core import NO_STATEMENTS, NO_WEIGHT
from lr_ray.judge.together import Missing
from lr_ray.statistics import compare


def graded(name: str, groups: list[str], *values: float | None, metric: str = "score", **more: Any) -> Any:
    found = [
        grades.given(i, metric, Missing("no grade") if value is None else value, **more)
        for i, value in enumerate(values)
    ]
    case = Case(name, asked("q"), "chat", "q", groups=groups).named("b")
    return grades.graded(case, found)


def points(**values: float) -> dict[str, Point]:
    return {name: Point(value) for name, value in values.items()}


def test_plain_means_are_the_paired_bootstrap() -> None:
    before, after = {"a": 1.0, "b": 2.0, "c": 5.0, "x": 9.0}, {"a": 2.0, "b": 2.0, "c": 9.0}
    found = intervals.paired(*({k: Point(v) for k, v in side.items()} for side in (before, after)))
    assert found == compare(before, after)
    assert found["prompts"] == 3


def test_a_macro_mean_gives_each_stratum_one_share() -> None:
    strata = {"a1": "a", "a2": "a", "a3": "a", "b1": "b"}
    before = points(a1=0, a2=0, a3=0, b1=0)
    after = points(a1=30, a2=60, a3=90, b1=100)
    found = intervals.paired(before, after, strata)
    assert (found["before"], found["after"]) == (0, 80)
    # Stratum b has one prompt and does not vary; of a, three are drawn from 30, 60 and 90.
    assert found["low"] == pytest.approx((30 + 100) / 2, abs=5)
    assert found["high"] == pytest.approx((90 + 100) / 2, abs=5)
    assert found["prompts"] == 4


def test_a_stratum_without_a_pair_leaves_the_mean_unknown() -> None:
    strata = {"a1": "a", "b1": "b"}
    found = intervals.paired(points(a1=1, b1=1), points(a1=1), strata)
    assert found["difference"] is None
    assert found["prompts"] == 1
    assert intervals.paired({}, {})["difference"] is None


def test_a_weighted_mean_is_a_ratio_of_sums() -> None:
    before = {"a": Point(100, 1), "b": Point(0, 3)}
    after = {"a": Point(100, 1), "b": Point(100, 3)}
    found = intervals.paired(before, after)
    assert (found["before"], found["after"]) == (25, 100)


def test_a_weighted_interval_is_that_of_the_plain_one_for_equal_weights() -> None:
    chance = random.Random(0)
    values = {str(i): (chance.random(), chance.random()) for i in range(60)}
    plain = compare({k: v[0] for k, v in values.items()}, {k: v[1] for k, v in values.items()})
    sides = ({k: Point(v[i], 2.0) for k, v in values.items()} for i in range(2))
    weighted = intervals.paired(*sides)
    for key in ("before", "after", "difference"):
        assert weighted[key] == pytest.approx(plain[key])  # type: ignore[literal-required]
    for key in ("low", "high"):
        assert weighted[key] == pytest.approx(plain[key], abs=0.01)  # type: ignore[literal-required]


def test_units_are_averaged_over_answers_and_the_unscored_left_out() -> None:
    rows = [graded("a", ["g"], 10.0, None, 40.0), graded("b", ["g"], None)]
    found = table.points(rows, "score")
    assert [point.value for point in found.values()] == [25.0]
    assert table.unscored(rows) == {"score": {"no grade": 2}}


def test_the_table_has_the_whole_and_each_group() -> None:
    before = [graded("a", ["easy", "x"], 0.0), graded("b", ["hard", "x"], 100.0)]
    after = [graded("a", ["easy", "x"], 100.0), graded("b", ["hard", "x"], 100.0)]
    found = table.rows("longbench_v2", "v2", before, after)
    assert [(r["metric"], r["before"], r["after"]) for r in found] == [
        ("v2: score", 50, 100),
        ("v2, easy: score", 0, 100),
        ("v2, hard: score", 100, 100),
    ]
    assert {row["benchmark"] for row in found} == {"v2"}


def test_longbench_by_set_class_and_all() -> None:
    def side(gain: float) -> list[Any]:
        of = {"qasper": [0, 50], "narrativeqa": [100], "musique": [50], "vcsum": [25, 75, 50]}
        return [
            graded(f"{name}{i}", [name], v + gain) for name, all_ in of.items() for i, v in enumerate(all_)
        ]

    found = {row["metric"]: row for row in table.rows("longbench", "lb", side(0), side(10))}
    assert found["lb, qasper: score"]["before"] == 25
    assert found["lb, single-document QA: score"]["before"] == (25 + 100) / 2
    assert found["lb, multi-document QA: score"]["before"] == 50
    assert found["lb: score"]["before"] == pytest.approx((25 + 100 + 50 + 50) / 4)
    assert found["lb: score"]["difference"] == pytest.approx(10)


def test_the_authors_mean_of_four_columns() -> None:
    sets = [[graded(name, [name], 10.0 * i) for i, name in enumerate(SETS)]] * 2
    chat = [[graded("c1", [], 60.0), graded("c2", [], 80.0)]] * 2
    row = table.authors_mean(chat, sets)
    assert row is not None
    assert row["before"] == pytest.approx((70 + 15 + 55 + 95) / 4)
    assert table.authors_mean(chat, [one[1:] for one in sets]) is None
    lost = table.authors_mean([chat[0], []], sets)
    assert lost is not None
    assert (lost["before"], lost["after"]) == (None, None)
    nothing = table.authors_mean([[], []], sets)
    assert nothing is not None
    assert nothing["before"] is None


def test_turns_of_one_conversation_are_one_unit() -> None:
    one = graded("a", ["turn 1"], 4.0)
    two = {**graded("a", ["turn 2"], 8.0), "prompt_id": one["prompt_id"] + "/2", "unit": one["unit"]}
    found = table.rows("mt_bench", "mt", [one, two], [one, two])
    assert [(r["metric"], r["before"], r["prompts"]) for r in found] == [
        ("mt: score", 6, 1),
        ("mt, turn 1: score", 4, 1),
        ("mt, turn 2: score", 8, 1),
    ]


def test_a_turn_that_one_side_lacks_counts_on_neither() -> None:
    """Second turns are harder: without one, a conversation would look better than it was."""

    def turns(first: float, second: float | None) -> list[Any]:
        one, two = graded("a", ["turn 1"], first), graded("a", ["turn 2"], second)
        return [one, {**two, "prompt_id": one["prompt_id"] + "/2", "unit": one["unit"]}]

    found = table.rows("mt_bench", "mt", turns(8.0, 4.0), turns(8.0, None))
    assert [(r["metric"], r["before"], r["after"]) for r in found] == [
        ("mt: score", 8, 8),
        ("mt, turn 1: score", 8, 8),
        ("mt, turn 2: score", None, None),
    ]


def test_a_data_set_that_failed_altogether_is_missed_in_its_means() -> None:
    side = [graded("q", ["qasper"], 50.0), graded("m", ["musique"], 50.0)]
    sets = {row["unit"]: row["groups"][0] for row in side} | {"lost": "narrativeqa"}
    found = {row["metric"]: row["before"] for row in table.rows("longbench", "lb", side, side, sets)}
    assert found == {
        "lb: score": None,
        "lb, single-document QA: score": None,
        "lb, multi-document QA: score": 50,
        "lb, narrativeqa: score": None,
        "lb, qasper: score": 50,
        "lb, musique: score": 50,
    }


def optimum(won: list[float], lengths: list[float]) -> float:
    """The same rate by plain gradient descent on the likelihood."""
    longer = np.tanh(np.asarray(lengths) / np.std(lengths))
    design = np.stack([np.ones_like(longer), longer])
    theta = np.zeros(2)
    for _ in range(20_000):
        chance = 1 / (1 + np.exp(-theta @ design))
        theta += 0.01 * (design @ (np.asarray(won) / 100 - chance) - wins.RIDGE * theta)
    return float(100 / (1 + np.exp(-theta[0])))


def test_length_control_is_the_logistic_regression() -> None:
    chance = random.Random(1)
    lengths = [chance.gauss(200, 300) for _ in range(150)]
    won = [chance.choice([0.0, 50.0, 100.0]) if x < 100 else 100.0 for x in lengths]
    assert wins.controlled(won, lengths)[0] == pytest.approx(optimum(won, lengths), abs=1e-3)


def test_a_win_that_is_length_alone_is_discounted() -> None:
    chance = random.Random(2)
    lengths = [chance.gauss(300, 300) for _ in range(400)]
    won = [100.0 if chance.random() < 1 / (1 + math.exp(-x / 100)) else 0.0 for x in lengths]
    plain, fair = sum(won) / len(won), wins.controlled(won, lengths)[0]
    assert plain > 70
    assert fair == pytest.approx(50, abs=8)
    even = wins.controlled(won, [0.0] * 400)[0]
    assert even == pytest.approx(plain, abs=0.5)


def test_winning_everything_stays_finite() -> None:
    assert wins.controlled([100.0] * 30, list(range(30)))[0] > 99
    assert wins.controlled([0.0] * 30, [5.0] * 30)[0] < 1


def test_resamples_are_weights() -> None:
    won, lengths = [100.0, 0.0, 50.0, 100.0], [10.0, -5.0, 30.0, 0.0]
    twice = wins.controlled(won, lengths, np.array([[1.0] * 4, [2.0, 0.0, 1.0, 1.0]]))
    assert twice[0] == pytest.approx(wins.controlled(won, lengths)[0])
    assert twice[1] > twice[0]


def test_a_duel_is_the_rest_to_a_hundred() -> None:
    rows = [graded(str(i), [], v, metric=wins.WIN, length=float(i)) for i, v in enumerate([100, 100, 50, 0])]
    plain, fair = table.duels("b", rows)
    assert (plain["before"], plain["after"], plain["difference"]) == (37.5, 62.5, 25)
    assert plain["low"] < 25 < plain["high"]
    assert fair["metric"] == "b: win rate, length-controlled"
    assert fair["before"] + fair["after"] == pytest.approx(100)
    assert table.duels("b", [])[0]["difference"] is None


def test_how_often_only_the_order_decided() -> None:
    rows = [graded(str(i), [], v, metric=wins.FLIPPED) for i, v in enumerate([100, 0, 0, 0])]
    assert table.order_decided(rows) == {"share": 0.25, "comparisons": 4}
    assert table.order_decided([]) == {}


def judged(*verdicts: str | None, reason: str = "") -> dict[str, Any]:
    statements = [{"verdict": v, "unscored": None if v else "no verdict came"} for v in verdicts]
    return {
        "statements": statements,
        "unscored": [{"dimension": "faithfulness", "reason": reason}] if reason else [],
    }


@pytest.mark.parametrize(
    ("candidate", "count", "supported"),
    [
        (judged("full", "partial", "none", "full"), 4.0, 50.0),
        (judged("full"), 1.0, 100.0),
        (judged(reason=NO_STATEMENTS), 0.0, None),
        (judged(), 0.0, None),
        (judged("full", None, reason="x"), 2.0, "no verdict came"),
        (judged(reason="refused"), "refused", "refused"),
    ],
)
def test_facts_of_an_answer(candidate: dict[str, Any], count: Any, supported: Any) -> None:
    assert facts.of_answer(candidate) == {facts.COUNT: count, facts.SUPPORTED: supported}


def test_facts_of_prompts_and_what_lacks_them() -> None:
    rows = [
        {"prompt_id": "a", "candidates": [judged("full", "none"), judged("full", "full", "full", "full")]},
        {"prompt_id": "b", "candidates": [judged(reason="refused")]},
        {"prompt_id": "c", "candidates": [judged(reason=NO_WEIGHT)]},
        {"prompt_id": "d", "candidates": [judged(reason=NO_STATEMENTS)]},
    ]
    means, unscored = facts.means(rows)
    assert means == {facts.COUNT: {"a": 3.0, "d": 0.0}, facts.SUPPORTED: {"a": 75.0}}
    assert unscored == {facts.COUNT: {"refused": 1}, facts.SUPPORTED: {"refused": 1}}
