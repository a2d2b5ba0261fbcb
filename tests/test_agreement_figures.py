"""Figures of an agreement against hand-computed ones, and how they are shown."""

from typing import Any

import pytest

from lr_ray import agreement
from lr_ray.agreement import cases, figures
from lr_ray.agreement.inputs import Item, Label
from lr_ray.agreement.outcomes import Outcome, accuracy, chance, choice, outcome
from lr_ray.config import DIMENSIONS, Weights
from lr_ray.data import Place, Pointer

PAIR = Label([0], [1], "s")
Scores = tuple[float | None, ...]


@pytest.mark.parametrize(
    ("values", "label", "expected"),
    [
        ([3.0, 2.0], PAIR, "right"),
        ([2.0, 3.0], PAIR, "wrong"),
        ([2.0, 3.0], Label([1], [0], "s"), "right"),
        ([2.0, 2.0 + 1e-12], PAIR, "tie"),
        ([None, 2.0], PAIR, "unscored"),
        ([None, None], PAIR, "unscored"),
        # Several answers: the worst of the better ones against the best of the worse ones.
        ([5.0, 4.0, 3.0, 1.0], Label([0, 1], [2, 3], "s"), "right"),
        ([5.0, 3.0, 3.0, 1.0], Label([0, 1], [2, 3], "s"), "tie"),
        ([5.0, 1.0, 3.0, 1.0], Label([0, 1], [2, 3], "s"), "wrong"),
        # It is lost already, but what is not known is not guessed.
        ([1.0, 9.0, None], Label([0], [1, 2], "s"), "unscored"),
        ([1.0, 0.0, None], PAIR, "right"),
    ],
)
def test_outcomes(values: list[float | None], label: Label, expected: str) -> None:
    assert outcome(values, label) == expected


def test_choices_and_chance() -> None:
    label = Label([2], [0, 3], "s")
    assert choice([9.0, 99.0, 10.0, 1.0], label) == 2
    assert choice([10.0, 99.0, 10.0, 1.0], label) == "tie"
    assert choice([None, 99.0, 10.0, 1.0], label) is None
    assert chance(PAIR) == 0.5
    assert chance(label) == pytest.approx(1 / 3)
    assert chance(Label([0, 1], [2, 3], "s")) == pytest.approx(1 / 6)


def test_an_accuracy_by_hand() -> None:
    kinds: list[Outcome] = ["right"] * 6 + ["wrong"] * 2 + ["tie"] * 2 + ["unscored"] * 5
    got = accuracy((f"p{number}", kind) for number, kind in enumerate(kinds))
    assert (got["n"], got["accuracy"], got["ties"], got["unscored"]) == (10, 0.6, 2, 5)
    assert got["untied"] == 0.75
    # Wilson for 6 of 10, by hand: (0.6 + 0.19207 ± 1.96 * sqrt(0.024 + 0.009604)) / 1.38415
    assert (got["low"], got["high"]) == (pytest.approx(0.31267, abs=1e-4), pytest.approx(0.83182, abs=1e-4))
    # Two pairs of each prompt that go together are not twice as many.
    twice = accuracy((f"p{number}", kind) for number, kind in enumerate(kinds) for _ in range(2))
    assert (twice["n"], twice["accuracy"]) == (20, 0.6)
    assert twice["low"] == pytest.approx(got["low"], abs=0.02)
    nothing = accuracy([("p", "unscored")])
    assert (nothing["n"], nothing["accuracy"], nothing["low"], nothing["untied"]) == (0, None, None, None)


def item(prompt_id: str, *labels: Label, lengths: tuple[int, ...] = (10, 20), **changes: Any) -> Item:
    pointer = Pointer(prompt_id, Place("f", -1, 0, 0, 1), [])
    hashes = [f"{prompt_id}{index}" for index in range(len(lengths))]
    given = {"short": False, "tokens": 1000, **changes}
    return Item(pointer=pointer, lengths=list(lengths), hashes=hashes, labels=list(labels or [PAIR]), **given)


def judged(*answers: Scores, repeats: dict[str, list[float]] | None = None) -> list[dict[str, Any]]:
    """Answers with their four scores, and the reward at equal weights."""
    return [
        {
            "reward": None if None in scores else sum(filter(None, scores)) / 4,
            "scores": dict(zip(DIMENSIONS, scores, strict=True)),
            "repeats": [
                {"dimension": name, "scores": found, "missing": 0, "variance": None}
                for name, found in (repeats or {}).items()
            ],
        }
        for scores in answers
    ]


def made(
    items: list[Item], *judgings: dict[str, Any], said: Any = None, other: Any = None, weights: Any = None
) -> dict[str, Any]:
    found = list(cases.cases(items, list(judgings), said, weights or Weights()))
    return figures.figures(found, said, other)


def of(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in result["methods"] if row["method"] == name)


def test_every_dimension_alone_and_left_out() -> None:
    items = [item("a"), item("b"), item("c")]
    given = {
        "a": judged((8, 8, 8, 8), (2, 8, 8, 8)),  # helpfulness decides
        "b": judged((8, 8, 2, 8), (2, 8, 8, 8)),  # and is even with faithfulness
        "c": judged((8, None, 8, 8), (2, 8, 8, 8)),
    }
    result = made(items, given)
    assert (result["n"], result["right"], result["ties"], result["unscored"]) == (2, 1, 1, 1)
    assert (result["accuracy"], result["pairs"], result["prompts"]) == (0.5, 3, 3)
    assert (of(result, "helpfulness")["right"], of(result, "helpfulness")["n"]) == (3, 3)
    assert (of(result, "logicality")["ties"], of(result, "logicality")["unscored"]) == (2, 1)
    assert [of(result, "faithfulness")[kind] for kind in ("right", "wrong", "ties")] == [0, 1, 2]
    # Without helpfulness a is even and b lost; without logicality c is scored, and is right.
    assert [of(result, "without helpfulness")[kind] for kind in ("right", "wrong", "ties")] == [0, 1, 1]
    assert [of(result, "without logicality")[kind] for kind in ("right", "ties", "unscored")] == [2, 1, 0]
    assert of(result, "without faithfulness")["right"] == 2
    assert of(result, "without helpfulness")["longreward_ahead"]["difference"] == 0.5
    # Longer answers win: the second is, everywhere.
    assert of(result, "length")["accuracy"] == 0
    assert result["paper"]["longreward"] == 0.662


def test_weights_count_where_a_dimension_is_left_out() -> None:
    weights = Weights(helpfulness=3, logicality=0, faithfulness=1, completeness=0)
    given = {"a": judged((6, 0, 10, 0), (8, 9, 2, 9))}
    given["a"][0]["reward"], given["a"][1]["reward"] = 7.0, 6.5
    result = made([item("a")], given, weights=weights)
    names = [row["method"] for row in result["methods"]]
    assert names == [
        *("longreward", "helpfulness", "faithfulness"),
        *("without helpfulness", "without faithfulness", "length"),
    ]
    assert of(result, "without helpfulness")["right"] == of(result, "without faithfulness")["wrong"] == 1
    alone = made(
        [item("a")], given, weights=Weights(helpfulness=1, logicality=0, faithfulness=0, completeness=0)
    )
    assert "without helpfulness" not in [row["method"] for row in alone["methods"]]


def test_a_prompt_that_failed_is_unscored() -> None:
    result = made([item("a"), item("b")], {"a": judged((8, 8, 8, 8), (2, 2, 2, 2))})
    assert (result["n"], result["accuracy"], result["unscored"]) == (1, 1.0, 1)
    assert of(result, "faithfulness")["unscored"] == of(result, "without faithfulness")["unscored"] == 1


def test_pairs_without_a_context_are_judged_on_what_needs_none() -> None:
    short = item("s", short=True, tokens=0)
    given = {"s": judged((8, 8, None, None), (2, 8, None, None))}
    given["s"][0]["reward"], given["s"][1]["reward"] = 8.0, 5.0
    result = made([short, item("a")], {**given, "a": judged((1, 1, 1, 1), (2, 2, 2, 2))})
    assert (result["n"], result["unscored"], result["accuracy"]) == (2, 0, 0.5)
    assert (of(result, "faithfulness")["n"], of(result, "faithfulness")["unscored"]) == (1, 0)
    assert [group["name"] for group in result["contexts"]] == ["without a context", "below 4k tokens"]
    assert result["contexts"][0]["methods"]["longreward"]["accuracy"] == 1.0


def test_groups_by_context_and_by_subset() -> None:
    sizes = {"a": 4095, "b": 4096, "c": 20_000, "d": 131_071, "e": 500_000}
    items = [
        item(name, Label([0], [1], "odd" if name in "ace" else "even"), tokens=size)
        for name, size in sizes.items()
    ]
    right, wrong = judged((8, 8, 8, 8), (2, 2, 2, 2)), judged((2, 2, 2, 2), (8, 8, 8, 8))
    result = made(items, {"a": right, "b": wrong, "c": right, "d": right, "e": wrong})
    assert [(group["name"], group["methods"]["longreward"]["accuracy"]) for group in result["contexts"]] == [
        ("below 4k tokens", 1.0),
        ("4k to 8k tokens", 0.0),
        ("16k to 32k tokens", 1.0),
        ("64k to 128k tokens", 1.0),
        ("128k tokens and more", 0.0),
    ]
    assert [(group["name"], group["pairs"]) for group in result["subsets"]] == [("even", 2), ("odd", 3)]


def test_rewards_and_the_length_of_answers() -> None:
    """The longer answer always gets more; the labels prefer it twice of three times."""
    items = [
        item("a", Label([1], [0], "s"), lengths=(10, 20)),
        item("b", lengths=(40, 30)),
        item("c", lengths=(50, 60)),
        item("d", lengths=(70, 70)),
    ]
    given = {
        "a": judged((1, 1, 1, 1), (2, 2, 2, 2)),
        "b": judged((4, 4, 4, 4), (3, 3, 3, 3)),
        "c": judged((5, 5, 5, 5), (6, 6, 6, 6)),
        "d": judged((7, 7, 7, 7), (7, 7, 7, 7)),
    }
    found = made(items, given)["answer_length"]
    assert found["answers"]["pearson"] == pytest.approx(1)
    assert found["answers"]["count"] == 8
    assert found["differences"]["spearman"] == pytest.approx(1)
    assert (found["judge_prefers_longer"]["n"], found["judge_prefers_longer"]["share"]) == (3, 1.0)
    assert found["label_prefers_longer"]["share"] == pytest.approx(2 / 3)


def test_direct_calls_beside_the_reward() -> None:
    items = [item("a"), item("b"), item("c")]
    right = judged((8, 8, 8, 8), (2, 2, 2, 2))
    said = {
        "a": {(0, 1): "first", (1, 0): "second"},  # consistent and right
        "b": {(0, 1): "first", (1, 0): "first"},  # whichever comes first
        "c": {(0, 1): "second", (1, 0): None},
    }
    result = made(items, {"a": right, "b": right, "c": right}, said=said)
    assert [of(result, "direct")[kind] for kind in ("right", "wrong", "unscored")] == [2, 1, 0]
    assert [of(result, "direct, both orders")[kind] for kind in ("right", "ties", "unscored")] == [1, 1, 1]
    assert of(result, "direct")["longreward_ahead"]["difference"] == pytest.approx(1 / 3)
    assert (result["direct"]["consistent"]["n"], result["direct"]["consistent"]["share"]) == (2, 0.5)
    assert (result["direct"]["first"]["n"], result["direct"]["first"]["share"]) == (5, 0.6)
    assert [one["with"] for one in result["kappa"]] == ["direct", "direct, both orders"]
    assert result["kappa"][0]["agreement"] == pytest.approx(2 / 3)


def test_repeated_judgings() -> None:
    items = [item("a"), item("b"), item("c")]
    up, down, even = (8, 8, 8, 8), (2, 2, 2, 2), (5, 5, 5, 5)
    first = {"a": judged(up, down), "b": judged(up, down), "c": judged(up, down)}
    second = {"a": judged(up, down), "b": judged(down, up), "c": judged(up, (None, 1, 1, 1))}
    third = {"a": judged(up, even), "b": judged(down, up), "c": judged(up, down)}
    found = made(items, first, second, third)["repeats"]
    assert found["judgings"] == 3
    assert (found["same"]["n"], found["same"]["share"]) == (2, 0.5)  # c was not scored each time
    assert found["flips"] == pytest.approx(2 / 6)
    assert [one["accuracy"] for one in found["accuracies"]] == [1.0, 0.5, pytest.approx(2 / 3)]
    assert (found["mean"]["right"], found["mean"]["wrong"], found["mean"]["unscored"]) == (1, 1, 1)
    assert "repeats" not in made(items, first)


def test_pairs_that_repeated_ratings_turned() -> None:
    """Both have 8 of helpfulness in the end; before, the second was ahead."""
    given = {
        "a": judged((8, 5, 5, 5), repeats={"helpfulness": [6, 10]})
        + judged((7, 5, 5, 5), repeats={"helpfulness": [7, 7]}),
        "b": judged((8, 5, 5, 5), repeats={"helpfulness": [8, 8]})
        + judged((7, 5, 5, 5), repeats={"helpfulness": [7, 7]}),
        "c": judged((8, 8, 8, 8), (2, 2, 2, 2)),
    }
    assert made([item("a"), item("b"), item("c")], given)["settled"] == {"n": 2, "turned": 1}


def test_kappa_with_another_judge_is_of_choices_whatever_their_order() -> None:
    items = [item("a"), item("b"), item("c"), item("d")]
    up, down = (8, 8, 8, 8), (2, 2, 2, 2)
    given = {
        "a": judged(up, down),
        "b": judged(down, up),
        "c": judged(up, up),
        "d": judged(up, (None, 1, 1, 1)),
    }
    keys = {case.item.prompt_id: case.key for case in cases.cases(items, [given], None, Weights())}
    # The other run had b's answers the other way round: it is the same pair all the same.
    turned = Item(items[1].pointer, False, 1000, [20, 10], ["b1", "b0"], [Label([1], [0], "s")])
    assert next(cases.cases([turned], [{}], None, Weights())).key == keys["b"]
    several = [Label([0], [1, 2], "s"), Label([2], [0, 1], "s")]
    threes = [
        Item(turned.pointer, False, 1, [1] * 3, list(texts), [label])
        for texts, label in zip(("xyz", "zyx"), several, strict=True)
    ]
    assert len({case.key for case in cases.cases(threes, [{}], None, Weights())}) == 1
    assert len(set(keys.values())) == 4
    other = {keys["a"]: "a0", keys["b"]: "b1", keys["c"]: "tie", keys["d"]: "d0", "elsewhere": "x"}
    (found,) = made(items, given, other=other)["kappa"]
    assert (found["with"], found["kappa"], found["count"]) == ("other", 1.0, 3)
    (found,) = made(items, given, other={**other, keys["b"]: "b0"})["kappa"]
    # Agreed on 2 of 3; by chance 1/3 * 2/3 + 1/3 * 0 + 1/3 * 1/3 = 1/3.
    assert found["kappa"] == pytest.approx(0.5)


def test_two_pairs_of_one_prompt_are_one_unit_of_resampling() -> None:
    three = item("a", Label([0], [1], "s"), Label([0], [2], "s"), lengths=(1, 2, 3))
    given = {"a": judged((8, 8, 8, 8), (2, 2, 2, 2), (9, 9, 9, 9))}
    result = made([three], given)
    assert (result["pairs"], result["prompts"], result["right"], result["wrong"]) == (2, 1, 1, 1)
    assert of(result, "length")["longreward_ahead"]["prompts"] == 1


def test_longreward_is_ahead_by_the_difference_of_the_accuracies_shown() -> None:
    """A prompt with three pairs that the reward has right, and one with one pair that only length has."""
    up, down = (8, 8, 8, 8), (2, 2, 2, 2)
    labels = [Label([0], [other], "s") for other in (1, 2, 3)]
    three = item("a", *labels, lengths=(1, 2, 3, 4))
    given = {"a": judged(up, down, down, down), "b": judged(down, up)}
    result = made([three, item("b", lengths=(9, 1))], given)
    length = of(result, "length")
    assert (result["accuracy"], length["accuracy"]) == (0.75, 0.25)
    ahead = length["longreward_ahead"]
    assert ahead["difference"] == result["accuracy"] - length["accuracy"]
    assert (ahead["pairs"], ahead["prompts"], ahead["low"], ahead["high"]) == (4, 2, -1.0, 1.0)


def test_the_table_says_where_ahead_is_of_fewer_pairs() -> None:
    """Longreward has no score of b, which length has right."""
    given = {"a": judged((8, 8, 8, 8), (2, 2, 2, 2)), "b": judged((8, None, 8, 8), (2, 8, 8, 8))}
    result = made([item("a"), item("b", lengths=(9, 1))], given)
    text = agreement.render({**result, "judge": "m", "unlabelled": 0, "failed": 0, "other": None})
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert rows["length"].rstrip().endswith("+100.0 on 1")
    assert " on " not in rows["logicality"]


def test_the_table_names_the_papers_figures_as_the_papers() -> None:
    said = {"a": {(0, 1): "first", (1, 0): "first"}}
    right = judged((8, 8, 8, 8), (2, 2, 2, 2))
    result = made([item("a")], {"a": right}, {"a": right}, said=said)
    text = agreement.render({**result, "judge": "m", "unlabelled": 2, "failed": 1, "other": None})
    assert "66.2%" in text
    lines = text.splitlines()
    head = next(line for line in lines if "95% interval" in line)
    row = next(line for line in lines if line.startswith("longreward"))
    assert head.rstrip().endswith("the paper's")
    assert row.split() == ["longreward", "1", "100.0%", "20.7%", "…", "100.0%", "0", "0", "66.2%"]
    assert "464 pairs labelled by people; other pairs and another judge than here" in text
    assert "2 rows have no label" in text
    assert "1 rows failed" in text


def test_names_from_the_data_do_not_move_the_terminal() -> None:
    labels = (Label([0], [1], "\x1b[2J" + "x" * 100), Label([0], [1], "plain"))
    result = made([item("a", *labels)], {"a": judged((8, 8, 8, 8), (2, 2, 2, 2))})
    text = agreement.render({**result, "judge": "m", "unlabelled": 0, "failed": 0, "other": None})
    assert "\x1b" not in text
    assert "\ufffd[2Jxxx" in text
    assert "x" * 50 not in text
