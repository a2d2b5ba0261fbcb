from typing import Any

import pytest

from lr_ray import config, pairs, rows


def judged(*candidates: tuple[str, float | None]) -> rows.Judged:
    """A judged row with candidates of the given (text, reward)."""
    row: dict[str, Any] = {
        "prompt_id": "p1",
        "context": "The mast is 12 m high.",
        "question": "How high is the mast?",
        "reference_answer": None,
        "prompt": [{"role": "user", "content": "The mast is 12 m high.\n\nHow high is the mast?"}],
        "candidates": [
            {
                "index": index,
                "text": text,
                "reward": reward,
                "scores": dict.fromkeys(config.DIMENSIONS, reward),
                "unscored": [],
                "statements": [],
            }
            for index, (text, reward) in enumerate(candidates)
        ],
    }
    return row  # type: ignore[return-value]


def rules(**settings: Any) -> config.Pairs:
    return config.Pairs(**{"min_candidates": 2, **settings})


def picked(row: rows.Judged, limits: config.Pairs) -> tuple[int, int]:
    pair = pairs.choose(row, limits)
    assert not isinstance(pair, str), pair
    return pair["index_chosen"], pair["index_rejected"]


def test_best_against_worst() -> None:
    pair = pairs.choose(judged(("a", 5.0), ("b", 9.0), ("c", 1.0), ("d", None)), rules())
    assert not isinstance(pair, str)
    assert (pair["index_chosen"], pair["index_rejected"]) == (1, 2)
    assert pair["chosen"] == [{"role": "assistant", "content": "b"}]
    assert pair["rejected"] == [{"role": "assistant", "content": "c"}]
    assert (pair["score_chosen"], pair["score_rejected"]) == (9.0, 1.0)
    assert pair["scores_rejected"]["faithfulness"] == 1.0


def test_worst_may_stand_first() -> None:
    """Guards against pairing by position: chosen is not always the first or the last answer."""
    assert picked(judged(("a", 1.0), ("b", 9.0)), rules()) == (1, 0)
    assert picked(judged(("a", 9.0), ("b", 1.0)), rules()) == (0, 1)


def test_equals_break_by_lowest_index_in_any_order() -> None:
    row = judged(("a", 9.0), ("b", 1.0), ("c", 9.0), ("d", 1.0))
    assert picked(row, rules()) == (0, 1)
    row["candidates"].reverse()
    assert picked(row, rules()) == (0, 1)


@pytest.mark.parametrize(
    ("candidates", "settings", "reason"),
    [
        ([("a", 9.0), ("b", 1.0), ("c", None)], {"min_candidates": 3}, pairs.TOO_FEW),
        ([("a", None), ("b", None)], {}, pairs.TOO_FEW),
        ([], {}, pairs.TOO_FEW),
        ([("a", 5.0), ("b", 5.0)], {}, pairs.TIE),
        ([("a", 0.1 + 0.2), ("b", 0.3)], {}, pairs.TIE),
        ([("same", 9.0), (" same\n", 1.0)], {}, pairs.IDENTICAL),
        ([("same", 5.0), ("same", 5.0)], {}, pairs.IDENTICAL),
        ([("a", 5.0), ("b", 4.6)], {"margin": 0.5}, pairs.MARGIN),
        ([("aaaaaa", 9.0), ("bb", 1.0)], {"max_length_ratio": 2.0}, pairs.LENGTH_RATIO),
        ([("aaaaaa", 9.0), (" \n", 1.0)], {}, pairs.TOO_FEW),
    ],
)
def test_reasons(candidates: list[tuple[str, float | None]], settings: dict[str, Any], reason: str) -> None:
    assert pairs.choose(judged(*candidates), rules(**settings)) == reason
    assert reason in pairs.REASONS


def test_limits_are_inclusive() -> None:
    assert picked(judged(("a", 5.0), ("b", 4.5)), rules(margin=0.5)) == (0, 1)
    assert picked(judged(("a", 1.1 + 2.2), ("b", 1.1)), rules(margin=2.2)) == (0, 1)
    assert picked(judged(("aaaa", 9.0), ("bb", 1.0)), rules(max_length_ratio=2.0)) == (0, 1)


def test_next_worst_when_the_worst_cannot_pair() -> None:
    same = judged(("same", 9.0), ("same", 1.0), ("other", 3.0), ("third", 4.0))
    assert picked(same, rules()) == (0, 2)
    long = judged(("aaaa", 9.0), ("b" * 50, 1.0), ("cccc", 3.0))
    assert picked(long, rules(max_length_ratio=2.0)) == (0, 2)


def test_default_rule_is_the_papers() -> None:
    four = [(letter, float(place)) for place, letter in enumerate("abcd")]
    assert pairs.choose(judged(*four), config.Pairs()) == pairs.TOO_FEW
    assert picked(judged(*four, ("e", 4.0)), config.Pairs()) == (4, 0)


def test_what_a_reward_did_not_look_at_counts_for_the_least_number() -> None:
    two = judged(("a", 1.0), ("b", 0.0), ("c", None), ("d", None))
    assert pairs.choose(two, rules(min_candidates=4)) == pairs.TOO_FEW
    pair = pairs.choose(two, rules(min_candidates=4), unasked=2)
    assert not isinstance(pair, str)
    assert pair["index_chosen"] == 0
    assert pairs.choose(two, rules(min_candidates=5), unasked=2) == pairs.TOO_FEW
    assert pairs.choose(judged(("a", None), ("b", None)), rules(), unasked=2) == pairs.TOO_FEW


def test_export_formats() -> None:
    row = judged(("good", 9.0), ("bad", 1.0))
    pair = pairs.choose(row, rules())
    assert not isinstance(pair, str)
    assert pairs.authors(pair, row) == {
        "idx": "p1",
        "context": "The mast is 12 m high.",
        "query": "How high is the mast?",
        "win_response": "good",
        "lose_response": "bad",
    }
    user = {"role": "user", "content": "The mast is 12 m high.\n\nHow high is the mast?"}
    assert pairs.openrlhf(pair) == {
        "chosen": [user, {"role": "assistant", "content": "good"}],
        "rejected": [user, {"role": "assistant", "content": "bad"}],
    }
    assert pairs.nemo_rl(pair) == {
        "context": [user],
        "completions": [
            {"rank": 0, "completion": [{"role": "assistant", "content": "good"}]},
            {"rank": 1, "completion": [{"role": "assistant", "content": "bad"}]},
        ],
    }
