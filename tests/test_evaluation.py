"""The table of an evaluation: from judged rows of both sides, without Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from lr_ray import benchmark_runs, evaluation, schemas, simulated
from lr_ray.benchmark_results import RULES
from lr_ray.benchmarks import facts, wins
from lr_ray.benchmarks.grades import given
from lr_ray.config import Config
from lr_ray.data import Place, Pointer
from lr_ray.judge import chunks
from lr_ray.judge.actor import JudgeActor
from lr_ray.retry import settle
from lr_ray.store import Store
from tests import benchmark_files as files
from tests.report_results import graded
from tests.sampled_row import sampled_row
from tests.test_judge_actor import requests
from tests.test_pipeline import judged
from tests.test_plan_several import through


def told(prompt_id: str, reward: float | None, verdicts: list[str]) -> dict[str, Any]:
    row = judged(prompt_id, [reward])
    (candidate,) = row["candidates"]
    candidate["statements"] = [
        {"text": "t", "verdict": verdict, "analysis": "", "unscored": None, "passages": []}
        for verdict in verdicts
    ]
    return row


def config(folder: Path, **section: Any) -> Config:
    tree = {"run_dir": str(folder / "run"), "sampling": {"model": "old"}, "evaluation": section}
    return Config.model_validate(tree)


def pointers(*ids: str) -> list[Pointer]:
    return [Pointer(one, Place("p.jsonl", -1, 0, 0, 1), []) for one in ids]


def written(asked: Config, *ids: str) -> tuple[dict[str, Any], dict[str, Any]]:
    result = evaluation.written(asked, Store(asked.run_dir), pointers(*ids))
    assert json.loads(Store(asked.run_dir).read("evaluation.json") or b"") == result
    return {row["metric"]: row for row in result["table"]}, result


def test_rewards_and_facts_of_both_sides(tmp_path: Path) -> None:
    asked = config(tmp_path)
    before, after = (Store(asked.run_dir).sub("evaluation", side) for side in evaluation.SIDES)
    before.write_rows("judged", [told("a", 4.0, ["full", "none"]), told("b", 6.0, ["none"])], schemas.JUDGED)
    after.write_rows(
        "judged", [told("a", 8.0, ["full"] * 4), told("b", 9.0, ["full", "none"])], schemas.JUDGED
    )
    table, result = written(asked, "a", "b")
    assert (table["reward"]["before"], table["reward"]["after"]) == (5.0, 8.5)
    assert (table[facts.COUNT]["before"], table[facts.COUNT]["after"]) == (1.5, 3.0)
    assert (table[facts.SUPPORTED]["before"], table[facts.SUPPORTED]["after"]) == (25.0, 75.0)
    assert result["failed"] == {"before": 0, "after": 0}
    assert result["benchmarks"] == {}


def test_a_reward_that_is_missing_is_counted_and_no_zero(tmp_path: Path) -> None:
    asked = config(tmp_path)
    for side, reward in zip(evaluation.SIDES, (None, 7.0), strict=True):
        store = Store(asked.run_dir).sub("evaluation", side)
        store.write_rows("judged", [told("a", reward, []), told("b", 5.0, [])], schemas.JUDGED)
    table, result = written(asked, "a", "b")
    assert (table["reward"]["before"], table["reward"]["after"], table["reward"]["prompts"]) == (5.0, 5.0, 1)
    assert result["unscored"]["before"]["helpfulness"] == 1


def test_benchmarks_alone_have_no_rewards(tmp_path: Path) -> None:
    path = str(files.ifeval(tmp_path / "input_data.jsonl"))
    asked = config(tmp_path, benchmarks=[{"kind": "ifeval", "path": path}])
    store = Store(asked.run_dir)
    (first, second) = benchmark_runs.prepare(asked, store).cases
    for side, text in zip(evaluation.SIDES, ("No, never.", "Never at all."), strict=True):
        there = store.sub("evaluation", f"benchmarks_{side}")
        made = [sampled_row(case.prompt_id, "c", case.question, [text]) for case in (first, second)]
        there.write_rows("sampled", made, schemas.SAMPLED)
    table, result = written(asked)
    assert set(table) == {
        f"ifeval: {of}, {how}" for of in ("prompts", "instructions") for how in ("strict", "loose")
    }
    row = table["ifeval: instructions, strict"]
    # Of three known instructions one and then all three are followed; the fourth is of no known kind.
    assert (row["before"], row["after"]) == (pytest.approx(100 / 3), 100)
    assert result["benchmarks"]["ifeval"]["unscored"]["after"]["instructions, strict"] == {
        "no checker for made:up": 1
    }
    # What plain rules say of each answer is kept for the report; of a case that is gone it goes.
    (kept,) = (row for row in there.rows(RULES) if row["prompt_id"] == first.prompt_id)
    assert [one["value"] for one in kept["grades"] if one["metric"] == "instructions, strict"] == [100.0]
    alone = asked.model_copy(update={"evaluation": asked.evaluation.model_copy(update={"benchmarks": []})})
    written(alone)
    assert not there.files(RULES)


def test_a_second_turn_whose_grade_failed_stays_failed(tmp_path: Path) -> None:
    path = str(files.mt_bench(tmp_path / "question.jsonl"))
    asked = config(tmp_path, benchmarks=[{"kind": "mt_bench", "path": path}])
    store = Store(asked.run_dir)
    first, other = benchmark_runs.prepare(asked, store).cases
    side = benchmark_runs.Side("after", asked, store)
    turns = [first, first.then("So."), other]
    made = [sampled_row(turn.prompt_id, "c", turn.question, ["So."]) for turn in turns]
    side.there.write_rows("sampled", made, schemas.SAMPLED)
    lost = [turn.prompt_id for turn in turns[:2]]
    side.there.write_rows(
        "failed", [{"prompt_id": one, "stage": "grade", "reason": "r"} for one in lost], schemas.FAILED
    )
    done = benchmark_runs.finished(side, [first, other])
    settle(side.there, side.there.files("failed"), done)
    assert set(side.there.index("failed")) == set(lost)
    assert evaluation.lost(asked, store)
    _, result = written(asked)
    assert result["failed"] == {"before": 0, "after": 2}


def test_rows_of_prompts_that_the_config_does_not_name_now_are_passed_over(tmp_path: Path) -> None:
    asked = config(tmp_path, win_rate="question")
    store = Store(asked.run_dir)
    for side, reward in zip(evaluation.SIDES, (1.0, 9.0), strict=True):
        there = store.sub("evaluation", side)
        rows = [told("gone", reward, ["full"]), told("new", 5.0, ["none"])]
        rows[0]["candidates"][0]["scores"]["logicality"] = None
        there.write_rows("judged", rows, schemas.JUDGED)
        failure = {"prompt_id": "lost", "stage": "judge", "reason": "r"}
        there.write_rows("failed", [failure], schemas.FAILED)
    duels = [
        dict(graded(one, benchmark_runs.HELD_OUT, [], given(0, wins.WIN, 100.0))) for one in ("gone", "new")
    ]
    store.sub("evaluation", "wins").write_rows("graded", duels, schemas.GRADED)
    table, result = written(asked, "new")
    assert (table["reward"]["difference"], table["reward"]["prompts"]) == (0.0, result["prompts"])
    assert table[facts.SUPPORTED]["prompts"] == 1
    assert table[f"{benchmark_runs.HELD_OUT}: win rate"]["prompts"] == 1
    assert result["unscored"]["before"]["logicality"] == 0
    assert result["failed"] == {"before": 0, "after": 0}
    # They are there all the same, for a config that names them.
    table, result = written(asked, "gone", "new", "lost")
    assert table["reward"]["prompts"] == 2
    assert result["failed"] == {"before": 1, "after": 1}


@pytest.mark.parametrize("embedding_model", [None, "embedder"])
def test_what_no_answer_changes_is_paid_once_for_both_models(
    tmp_path: Path, embedding_model: str | None
) -> None:
    """Extracts and embeddings of the document, here, and in another run that is named to be reused."""
    document = " ".join(
        f"Mira keeps copper {n}. Toben keeps salt. A wind blows on day {n}." for n in range(80)
    )
    judge = {
        **{"model": "sim", "extract_chunk_tokens": 256},
        "retrieval": {"chunk_tokens": 64, "embedding_model": embedding_model},
    }

    def evaluate(run: str, **more: Any) -> list[dict[str, Any]]:
        tree = {"run_dir": str(tmp_path / run), "sampling": {"model": "m"}, "judge": {**judge, **more}}
        asked, used = Config.model_validate(tree), []
        for _, of_side, there in evaluation.sides(asked, Store(asked.run_dir)):
            answer = f"Mira keeps copper {len(used)} {run}."
            row = ("sampled", sampled_row("p", document, "What does Mira keep?", [answer]))
            used.append(through(JudgeActor, of_side, there, [row])[0]["usage"])
        return used

    shared = len(chunks.split(document, 256, chunks.measure(None))) + bool(embedding_model)
    assert shared > 4
    with simulated.running() as url:
        before, after = evaluate("one", base_url=url)
        assert before["reused"] == 0
        assert after["reused"] == shared
        assert requests(url) == before["calls"] + after["calls"] - after["reused"]
        # What the user names stands, though it holds no answer to these prompts.
        Store(str(tmp_path / "own")).write(b"", "calls", "x.jsonl")
        reuse = [str(tmp_path / "own"), str(tmp_path / "one")]
        Store(str(tmp_path / "one")).write(b"", "calls", "x.jsonl")
        paid = requests(url)
        before, after = evaluate("two", base_url=url, reuse=reuse)
        assert before["reused"] == after["reused"] == shared
        assert requests(url) - paid == before["calls"] + after["calls"] - 2 * before["reused"]


def test_a_side_takes_what_is_paid_when_it_is_asked_for(tmp_path: Path) -> None:
    asked = config(tmp_path).model_copy(
        update={"judge": Config(run_dir="x").judge.model_copy(update={"reuse": ["mine"]})}
    )
    store, base = Store(asked.run_dir), Store(str(tmp_path / "base"))
    of_run = evaluation.sides(asked, store, base)
    _, before, there = next(of_run)
    assert before.judge.reuse == ["mine"]
    there.write(b"", "calls", "x.jsonl")
    _, after, _ = next(of_run)
    assert after.judge.reuse == ["mine", there.absolute] == ["mine", str(tmp_path / "base/evaluation/before")]
    assert asked.judge.reuse == ["mine"]
    # Benchmarks have ledgers of their own, of grades and of facts.
    sides = [benchmark_runs.Side("before", asked, base), benchmark_runs.Side("after", asked, store)]
    lent = benchmark_runs.lent(sides)
    first = next(lent)
    assert first.config.judge.reuse == ["mine"]
    for place in (first.there, first.facts):
        place.write(b"", "calls", "x.jsonl")
    assert next(lent).config.judge.reuse == ["mine", first.there.absolute, first.facts.absolute]
    assert list(evaluation._both(asked, store, base))[1].config.judge.reuse == ["mine"]
