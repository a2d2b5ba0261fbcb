"""Benchmarks in a comparison's table: two runs paired, several seeds as one, without Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from lr_ray import benchmark_runs, compare, data, evaluation
from lr_ray.benchmark_results import Found
from lr_ray.benchmark_runs import HELD_OUT
from lr_ray.benchmarks import table as graded_table
from lr_ray.benchmarks import wins
from lr_ray.benchmarks.grades import given
from lr_ray.compare import benchmarks, table
from lr_ray.compare.entries import entries
from lr_ray.config import Config
from lr_ray.judge.together import Missing
from lr_ray.schemas import GRADED, JUDGED, SAMPLED
from lr_ray.store import Store
from tests.report_results import graded
from tests.sampled_row import sampled_row
from tests.test_compare import POLICY, answers, held_out, settings
from tests.test_pipeline import judged


def told(difference: float | None, prompts: int = 4) -> Any:
    after = None if difference is None else 50.0 + difference
    edges = (None, None) if difference is None else (difference - 1, difference + 1)
    known = {"before": 50.0, "after": after, "difference": difference, "prompts": prompts}
    return {**known, "low": edges[0], "high": edges[1]}


def test_rows_of_benchmarks_are_shaped_as_the_others() -> None:
    """What is known of all seeds together stands; of what is not, the mean of the seeds has no interval."""
    seeds = [
        {"chat": told(2.0), "own": told(1.0)},
        {"chat": told(4.0), "own": told(2.0)},
        {"chat": told(None)},
    ]
    chat, own = benchmarks.rows("run", seeds, {"chat": told(3.5)}, {"chat": told(1.0)})
    assert (chat["metric"], chat["mean"], chat["count"]) == ("chat", 53.5, 4)
    assert (chat["before"]["difference"], chat["before"]["low"]) == (3.5, 2.5)
    assert (chat["against"]["difference"], chat["against"]["low"]) == (1.0, 0.0)
    assert chat["seeds"] == [2.0, 4.0, None]
    assert (own["mean"], own["before"]["low"], own["against"]) == (51.5, None, None)
    assert own["seeds"] == [1.0, 2.0, None]
    (single,) = benchmarks.rows("run", [{"own": told(1.0)}], {}, {})
    assert single["before"]["low"] == 0.0
    assert chat.keys() == table.table({"m": {"a": 1.0}}, {"r": [{"m": {"a": 2.0}}]}, "r")[0].keys()


def needles(tmp_path: Path, **compare: Any) -> Config:
    """Three cases that need no judge, with facts of the answers to them."""
    one = {"kind": "ruler", "tasks": ["single"], "lengths": [600], "cases": 3, "facts": True}
    sections: dict[str, Any] = {"sampling": {"model": POLICY}, "evaluation": {"benchmarks": [one]}}
    return settings(tmp_path, **sections, compare=compare)


def tried(config: Config, store: Store, right: set[int], side: str = "after") -> list[str]:
    """Answers, right to the cases of these numbers; their ids."""
    cases = benchmark_runs.prepare(config, store).cases
    texts = [" ".join(case.references) if number in right else "?" for number, case in enumerate(cases)]
    rows = [sampled_row(c.prompt_id, "C.", "Q?", [t]) for c, t in zip(cases, texts, strict=True)]
    store.sub("evaluation", f"benchmarks_{side}").write_rows("sampled", rows, SAMPLED)
    return [case.prompt_id for case in cases]


def seeded(tmp_path: Path) -> tuple[Config, Store]:
    """Two runs with two seeds each, whose model before has no case right, evaluated as `lr-ray evaluate` has
    it, with facts and win rates."""
    config = needles(tmp_path, rewards=["longreward", "length"], seeds=[0, 1])
    asked = config.evaluation.model_copy(
        update={
            "prompts": [held_out(tmp_path, "a", "b")],
            "win_rate": "question",
            "model": "m",
            "benchmarks": [config.evaluation.benchmarks[0].model_copy(update={"win_rate": "question"})],
        }
    )
    config, base = config.model_copy(update={"evaluation": asked}), Store(config.run_dir)
    ids = tried(config, base, set(), "before")
    answers(base, "before", {"a": 4.0, "b": 6.0}, "four")
    verdicts(base, "facts_before", dict.fromkeys(ids, 1))
    right = {
        ("longreward", 0): {0},
        ("longreward", 1): {0, 1},
        ("length", 0): {0, 1},
        ("length", 1): {0, 1, 2},
    }
    pointers = data.scan(asked.prompts)
    for entry in entries(config):
        store, hits = entry.store(base), right[entry.name, entry.seed]
        tried(config, store, hits)
        answers(store, "after", {"a": 8.0, "b": 8.0}, "eighteen")
        verdicts(store, "facts_after", {one: 1 + len(hits) for one in ids})
        won = {one: 100.0 * (number in hits) for number, one in enumerate(ids)}
        wins_of(store, {"ruler": won, HELD_OUT: {"a": 100.0, "b": 50.0 * entry.seed}})
        evaluation.written(entry.config, store, pointers, base)
    return config, base


def verdicts(store: Store, folder: str, counts: dict[str, int]) -> None:
    """Judged answers with so many statements, all of them supported."""
    rows = []
    for one, count in counts.items():
        row = judged(one, [5.0])
        text = {"text": "t", "verdict": "full", "analysis": "", "unscored": None, "passages": []}
        row["candidates"][0]["statements"] = [text] * count
        rows.append(row)
    store.sub("evaluation", folder).write_rows("judged", rows, JUDGED)


def wins_of(store: Store, labels: dict[str, dict[str, float]]) -> None:
    rows = [
        dict(graded(one, label, [], given(0, wins.WIN, value, length=1.0)))
        for label, values in labels.items()
        for one, value in values.items()
    ]
    store.sub("evaluation", "wins").write_rows("graded", rows, GRADED)


def test_several_seeds_of_a_benchmark_are_one_mean_a_case_with_an_interval(tmp_path: Path) -> None:
    config, _ = seeded(tmp_path)
    found = {(row["metric"], row["run"]): row for row in compare.written(config)["table"]}
    length = found["ruler: found", "length"]
    # Right with one and the other seed: both, both, the second. The first run: both, the second, none.
    assert length["seeds"] == pytest.approx([200 / 3, 100.0])
    assert length["before"]["difference"] == pytest.approx((100 + 100 + 50) / 3)
    assert (length["before"]["low"], length["before"]["high"]) == (50.0, 100.0)
    assert length["against"]["difference"] == pytest.approx((0 + 50 + 50) / 3)
    assert (length["against"]["low"], length["against"]["high"]) == (0.0, 50.0)
    assert length["count"] == length["against"]["prompts"] == 3
    facts = found["ruler: facts per answer", "length"]
    assert (facts["before"]["difference"], facts["before"]["low"]) == (2.5, 2.5)
    won = found["ruler: win rate", "length"]
    assert won["mean"] == pytest.approx(250 / 3)
    assert (won["before"]["low"], won["before"]["high"]) == (0.0, 100.0)
    assert found["held-out prompts: win rate", "length"]["mean"] == (100 + 25) / 2
    assert won["against"] is None


def test_a_seed_that_one_side_lacks_of_a_case_is_left_out_of_its_mean() -> None:
    def row(value: float | None) -> Any:
        return graded("c", "chat", ["g"], given(0, "score", Missing("no answer") if value is None else value))

    def found(before: float | None, after: float | None) -> Found:
        return Found({"chat": ([row(before)], [row(after)])}, {}, {})

    ((before,), (after,)) = benchmarks.pooled([found(10, 50), found(None, 90), found(30, None)]).grades[
        "chat"
    ]
    assert [one["grades"][0]["value"] for one in (before, after)] == [10.0, 50.0]
    ((before,), (after,)) = benchmarks.pooled([found(10, 50), found(30, 90)]).grades["chat"]
    assert [one["grades"][0]["value"] for one in (before, after)] == [20.0, 70.0]
    ((before,), _) = benchmarks.pooled([found(10, None), found(10, None)]).grades["chat"]
    assert before["grades"][0]["value"] is None
    assert before["groups"] == ["g"]


def test_things_that_grades_are_about_weigh_the_same_with_several_seeds() -> None:
    """Of the instructions of two prompts, three and one, those of the first are followed."""

    def side(*values: float) -> list[Any]:
        weights = (3.0, 1.0)
        return [
            graded(f"p{n}", "ifeval", [], given(0, "instructions, strict", value, weight=weights[n]))
            for n, value in enumerate(values)
        ]

    one = Found({"ifeval": (side(0, 0), side(100, 0))}, {}, {})
    made = benchmarks.pooled([one, one]).grades["ifeval"]
    (row,) = graded_table.rows("ifeval", "ifeval", *made)
    assert row["after"] == 75.0


def test_the_benchmarks_of_two_runs_are_paired(tmp_path: Path) -> None:
    """Judge-free cases, of which one run has a third right and the other all."""
    config = needles(tmp_path, rewards=["longreward", "length"])
    base = Store(config.run_dir)
    one, other = (entry.store(base) for entry in entries(config))
    tried(config, one, {0})
    tried(config, other, {0, 1, 2})
    cases = benchmark_runs.prepare(config, one).cases
    found = benchmarks.against(config, [(one, other)], cases)
    assert found.keys() == {"ruler: found"}
    whole = found["ruler: found"]
    assert (whole["before"], whole["after"], whole["prompts"]) == (pytest.approx(100 / 3), 100.0, 3)
    held = told(5.0) | {"metric": "ruler: found"}
    for store in (one, other):
        store.write(json.dumps({"table": [held], "failed": {}}).encode(), "evaluation.json")
    rows = [row for row in compare.written(config)["table"] if row["metric"] == "ruler: found"]
    assert [row["run"] for row in rows] == ["longreward", "length"]
    assert rows[0]["against"] is None
    assert rows[1]["against"]["difference"] == pytest.approx(200 / 3)
    assert rows[1]["before"]["difference"] == 5.0
