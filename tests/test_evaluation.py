"""The table of an evaluation: from judged rows of both sides, without Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from lr_ray import benchmark_runs, evaluation, schemas
from lr_ray.benchmarks import facts
from lr_ray.config import Config
from lr_ray.data import Place, Pointer
from lr_ray.retry import settle
from lr_ray.store import Store
from tests import benchmark_files as files
from tests.sampled_row import sampled_row
from tests.test_pipeline import judged


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
