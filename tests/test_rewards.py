"""Rewards to compare LongReward with: what they say of a judged row, and what pairs come of it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from lr_ray import data, pairs, pipeline, rewards, rows, schemas, simulated
from lr_ray.config import Config
from lr_ray.rewards import contrast, direct
from lr_ray.store import Store
from tests.test_judge_actor import Tally

SCORES = [(2.0, 8.0, 6.0, 4.0), (4.0, 4.0, 10.0, 2.0), (10.0, 10.0, 0.0, 10.0)]
DIMENSIONS = ("helpfulness", "logicality", "faithfulness", "completeness")


def row(prompt_id: str = "p", texts: tuple[str, ...] = ("one.", "three.", "five words.")) -> rows.Judged:
    candidates = [
        {
            **{"index": index, "text": text, "finish_reason": "stop", "reward": 5.0},
            "scores": dict(zip(DIMENSIONS, SCORES[index % 3], strict=True)),
            **{"unscored": [], "statements": [], "repeats": []},
            "analyses": {"helpfulness": "", "logicality": "", "completeness": ""},
        }
        for index, text in enumerate(texts)
    ]
    made: Any = {
        **{"prompt_id": prompt_id, "context": "Mira bakes. Toben sings.", "question": "What does Mira do?"},
        **{"reference_answer": None, "prompt": [{"role": "user", "content": "?"}], "candidates": candidates},
        **{"extracts": [], "language": "en", "sampled_at": 0.0, "first_call_at": 0.0, "judged_at": 0.0},
        "usage": rows.no_usage(),
    }
    return made


def settings(tmp_path: Path, reward: str, **sections: Any) -> Config:
    tree = {"run_dir": str(tmp_path), "pairs": {"reward": reward, "min_candidates": 2}, **sections}
    return Config.model_validate(tree)


def given(config: Config, one: rows.Judged) -> list[float | None]:
    found = rewards.rewarder(config, Store(config.run_dir))(one)
    assert found
    return [candidate["reward"] for candidate in found[0]["candidates"]]


def test_without_a_dimension_the_reward_is_the_mean_of_the_others(tmp_path: Path) -> None:
    assert given(settings(tmp_path, "longreward"), row()) == [5.0, 5.0, 5.0]
    found = given(settings(tmp_path, "without_faithfulness"), row())
    assert found == pytest.approx([14 / 3, 10 / 3, 10.0])
    weights = {"helpfulness": 2, "logicality": 1, "faithfulness": 5, "completeness": 1}
    weighted = given(settings(tmp_path, "without_faithfulness", judge={"weights": weights}), row())
    assert weighted == pytest.approx([(4 + 8 + 4) / 4, (8 + 4 + 2) / 4, 10.0])
    other = given(settings(tmp_path, "without_completeness"), row())
    assert other == pytest.approx([16 / 3, 6.0, 20 / 3])


def test_a_missing_score_matters_only_where_it_counts(tmp_path: Path) -> None:
    one = row()
    one["candidates"][1]["scores"]["faithfulness"] = None
    assert given(settings(tmp_path, "without_faithfulness"), one)[1] == pytest.approx(10 / 3)
    assert given(settings(tmp_path, "without_logicality"), one)[1] is None


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"faithfulness": 0}, "without_faithfulness is longreward itself"),
        ({"helpfulness": 0, "logicality": 0, "completeness": 0}, "leaves no dimension"),
    ],
)
def test_an_ablation_that_is_none_is_refused(tmp_path: Path, weights: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        rewards.check(settings(tmp_path, "without_faithfulness", judge={"weights": weights}))


def test_length_counts_characters(tmp_path: Path) -> None:
    assert given(settings(tmp_path, "length"), row()) == [4.0, 6.0, 11.0]


def test_random_depends_on_seed_prompt_and_candidate_alone(tmp_path: Path) -> None:
    config = settings(tmp_path, "random")
    first = given(config, row())
    assert len(set(first)) == 3
    assert given(config, row(texts=("other", "three."))) == first[:2]
    assert given(config, row("q")) != first
    assert given(settings(tmp_path, "random", rewards={"seed": 1}), row()) != first
    many = [value for number in range(300) for value in given(config, row(f"p{number}"))]
    assert all(value is not None and 0 <= value < 1 for value in many)
    assert sum(value > 0.5 for value in many if value is not None) == pytest.approx(450, abs=60)


def stronger(tmp_path: Path, *lines: dict[str, Any]) -> dict[str, Any]:
    path = tmp_path / "stronger.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"contrast": {"candidates": [str(path)]}}


def test_a_stronger_models_answer_wins_over_the_policys(tmp_path: Path) -> None:
    ours = {"prompt_id": "p", "candidates": ["Mira bakes.", "never taken"]}
    authors = {"idx": "q-0", "query": "?", "answer": "Toben sings."}
    config = settings(tmp_path, "contrast", rewards=stronger(tmp_path, ours, authors))
    rewards.check(config)
    rewarder = rewards.rewarder(config, Store(config.run_dir))
    for name, text in (("p", "Mira bakes."), ("q", "Toben sings.")):
        found = rewarder(row(name))
        assert found
        pair = pairs.choose(found[0], config.pairs)
        assert not isinstance(pair, str)
        assert pair["chosen"][0]["content"] == text
        assert (pair["index_chosen"], pair["index_rejected"]) == (contrast.INDEX, 0)
        assert (pair["score_chosen"], pair["score_rejected"]) == (1.0, 0.0)
    assert rewarder(row("unknown")) is None


def test_the_rules_of_pairs_hold_for_contrast_too(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        "contrast",
        rewards=stronger(tmp_path, {"prompt_id": "p", "candidates": ["one."]}),
        pairs={"reward": "contrast", "min_candidates": 2, "max_length_ratio": 2},
    )
    found = rewards.rewarder(config, Store(config.run_dir))(row())
    assert found
    pair = pairs.choose(found[0], config.pairs)
    assert not isinstance(pair, str)
    assert pair["index_rejected"] == 1  # the first says the same, the third is too long


def test_a_stronger_models_file_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rewards\.contrast\.candidates is not set"):
        rewards.check(settings(tmp_path, "contrast"))
    bad = stronger(tmp_path, {"prompt_id": "p", "candidates": ["x"]}, {"prompt_id": "q", "candidates": []})
    with pytest.raises(ValueError, match=r"stronger.jsonl: line 2: candidates is not a list"):
        rewards.check(settings(tmp_path, "contrast", rewards=bad))
    twice = stronger(tmp_path, *({"prompt_id": "p", "candidates": ["x"]} for _ in range(2)))
    with pytest.raises(ValueError, match="candidate 0 twice"):
        data.answers(twice["contrast"]["candidates"])


def test_two_different_answers_are_drawn(tmp_path: Path) -> None:
    drawn = {direct.draw(row(f"p{number}"), 0) for number in range(200)}
    assert drawn == {(a, b) for a in range(3) for b in range(3) if a != b}  # both orders of every two
    assert direct.draw(row(), 0) == direct.draw(row(), 0)
    assert any(direct.draw(row(f"p{n}"), 0) != direct.draw(row(f"p{n}"), 1) for n in range(20))
    assert direct.draw(row(texts=("same", " same\n", "", " ")), 0) is None
    both = direct.draw(row(texts=("same", "same ", "", "other")), 0)
    assert both
    assert 3 in both
    assert 2 not in both


def compared(tmp_path: Path, *judged: rows.Judged, **changes: Any) -> tuple[list[Any], Tally]:
    tally = Tally()
    with simulated.running() as url:
        config = settings(
            tmp_path, "direct", judge={"model": "sim", "base_url": url}, rewards={"direct": changes}
        )

        async def work() -> list[rows.Packed]:
            actor = direct.Comparer(config, Store(str(tmp_path)), tally)
            try:
                return await asyncio.gather(*(actor(rows.pack("judged", one)) for one in judged))
            finally:
                await actor.close()

        packed = asyncio.run(work())
    assert {one["kind"] for one in packed} == {"rewarded"}
    return [rows.unpack(one) for one in packed], tally


def test_one_call_says_which_of_two_is_better(tmp_path: Path) -> None:
    good, bad = "Mira bakes.", "Mira flies."
    judged = [row(f"p{number}", (good, bad, bad)) for number in range(6)]
    made, tally = compared(tmp_path, *judged)
    assert tally.counts["calls"] == 6
    assert tally.counts["rewarded"] == 6
    for one in made:
        told = {c["index"]: c["reward"] for c in one["candidates"] if c["reward"] is not None}
        assert told[0] == 1.0  # whichever came first
        assert sorted(told.values()) == [0.0, 1.0]
        assert [c["unscored"] for c in one["candidates"] if c["reward"] is None] == [direct.NOT_ASKED]


def test_direct_rewards_make_pairs_by_the_same_rules(tmp_path: Path) -> None:
    judged = row("p", ("Mira bakes.", "Mira flies.", "Mira flies."))
    made, _ = compared(tmp_path, judged, row("equal", ("Same.", "Same.")))
    config = settings(tmp_path, "direct", judge={"model": "sim"})
    there = rewards.folder(config, Store(str(tmp_path)))
    there.write_rows("rewarded", made, schemas.REWARDED)
    rewarder = rewards.rewarder(config, Store(str(tmp_path)))
    found = rewarder(judged)
    assert found
    assert found[1] == 1  # one candidate more that could have been drawn
    three = config.pairs.model_copy(update={"min_candidates": 3})
    pair = pairs.choose(found[0], three, found[1])
    assert not isinstance(pair, str)
    assert pair["index_chosen"] == 0
    equal = rewarder(row("equal", ("Same.", "Same.")))
    assert equal
    assert pairs.choose(equal[0], config.pairs, equal[1]) == pairs.IDENTICAL
    assert rewarder(row("not there")) is None


def test_equal_answers_cost_no_call(tmp_path: Path) -> None:
    made, tally = compared(tmp_path, row("p", ("Same.", "Same. ", "")))
    assert "calls" not in tally.counts
    assert [c["reward"] for c in made[0]["candidates"]] == [0.5, 0.5, 0.5]


def test_the_document_is_shown_unless_it_is_not_wanted(tmp_path: Path) -> None:
    judged = row("p", ("Mira bakes.", "Mira flies."))
    _, seen = compared(tmp_path / "with", judged)
    _, blind = compared(tmp_path / "without", judged, context=False)
    assert seen.counts["prompt_tokens"] > blind.counts["prompt_tokens"]


def test_rewards_of_other_settings_lie_elsewhere(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one = rewards.folder(settings(tmp_path, "direct", judge={"model": "a"}), store)
    same = rewards.folder(settings(tmp_path, "direct", judge={"model": "a", "actors": 4}), store)
    other = rewards.folder(settings(tmp_path, "direct", judge={"model": "b"}), store)
    named = rewards.folder(
        settings(tmp_path, "direct", judge={"model": "a"}, rewards={"direct": {"model": "b"}}), store
    )
    assert one.url == same.url != other.url == named.url


def test_pairs_of_another_reward_are_made_anew_until_they_were_trained_on(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    judged = [row("a", ("Long answer.", "Short.", "Mid one.")), row("b", ("Same.", "Same.", "Same."))]
    store.write_rows("judged", [dict(one) for one in judged], schemas.JUDGED)

    def audit(reward: str, **sections: Any) -> dict[str, Any]:
        pipeline.Run(settings(tmp_path, reward, **sections), None).pairs()  # type: ignore[arg-type]
        return json.loads(store.read("pairs.json") or b"")

    assert audit("longreward")["dropped"] == {"tie": 1, "identical texts": 1}
    made = audit("length")
    assert (made["pairs"], made["dropped"]) == (1, {"identical texts": 1})
    (pair,) = store.rows("pairs")
    assert (pair["score_chosen"], pair["score_rejected"], pair["index_rejected"]) == (12.0, 6.0, 1)
    assert audit("random")["reward"] == {"seed": 0}
    store.write(b"", "checkpoints", "some")
    assert audit("random")["pairs"] == 1
    with pytest.raises(ValueError, match="trained on other pairs"):
        audit("random", rewards={"seed": 1})
    with pytest.raises(ValueError, match="trained on other pairs"):
        audit("length")


def test_pairs_of_a_run_that_knew_one_reward_only_stay(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write_rows("judged", [dict(row("a"))], schemas.JUDGED)
    old = {"prompts": 1, "pairs": 7, "dropped": {}, "rules": {"min_candidates": 2, "margin": 0.0}}
    store.write(json.dumps(old).encode(), "pairs.json")
    pipeline.Run(settings(tmp_path, "longreward"), None).pairs()  # type: ignore[arg-type]
    assert json.loads(store.read("pairs.json") or b"") == old


def test_rewards_that_failed_are_counted_every_time_and_not_taken_up_once_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, store = settings(tmp_path, "direct", judge={"model": "m"}), Store(str(tmp_path))
    there = rewards.folder(config, store)
    failure = {"prompt_id": "a", "stage": "direct", "reason": "a bad day"}
    there.write_rows("failed", [failure], schemas.FAILED)
    store.write_rows("judged", [dict(row("a"))], schemas.JUDGED)
    rules, given = config.pairs.model_dump(), rewards.settings(config)
    audit = {"prompts": 1, "pairs": 0, "dropped": {}, "rules": rules, "reward": given}
    store.write(json.dumps(audit).encode(), "pairs.json")
    for _ in range(2):
        run = pipeline.Run(config, None)  # type: ignore[arg-type]
        run.pairs()
        assert run.failed == rewards.lost(config, store) == 1
    store.write(b"", "checkpoints", "some")
    pipeline.Run(config, None).retry_failed()  # type: ignore[arg-type]
    assert "a model is trained on pairs without them" in capsys.readouterr().err
    assert store.exists("pairs.json")
    assert there.files("failed")
