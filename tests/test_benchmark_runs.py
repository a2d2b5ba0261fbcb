"""Benchmarks of two models end to end on Ray: graded, compared, checked for facts, resumed, retried.

Answers are there already, as if vLLM had sampled them: what is sampled is not sampled again.
"""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lr_ray import benchmark_runs, pipeline, schemas, simulated
from lr_ray.benchmarks import forecast
from lr_ray.benchmarks.case import Case
from lr_ray.benchmarks.grading import KINDS
from lr_ray.config import Config
from lr_ray.llm import usage
from lr_ray.store import Store
from tests import benchmark_files as files
from tests.sampled_row import sampled_row
from tests.test_rollout import stats

SETS = ["qasper", "musique", "gov_report"]
GOOD, BAD = "Mira keeps copper. Toben keeps salt.", "The weather is fine, we hear, in the hills of Arden."


def config(folder: Path, url: str, **evaluation: Any) -> Config:
    def path(made: Path) -> str:
        return str(made)

    benchmarks: list[dict[str, Any]] = [
        {"kind": "longbench_chat", "path": path(files.longbench_chat(folder / "chat")), "facts": True},
        {"kind": "longbench", "path": path(files.longbench(folder / "lb", SETS)), "tasks": SETS},
        {"kind": "longbench_v2", "path": path(files.longbench_v2(folder / "data.json"))},
        {"kind": "mt_bench", "path": path(files.mt_bench(folder / "question.jsonl"))},
        {"kind": "alpaca_eval", "path": path(files.alpaca(folder / "a.json")), "win_rate": "question"},
        {"kind": "ifeval", "path": path(files.ifeval(folder / "i.jsonl"))},
        {"kind": "ruler", "tasks": ["single"], "lengths": [400], "cases": 2},
        {"kind": "facts", "path": path(files.prompts(folder / "f.jsonl")), "win_rate": "document"},
    ]
    tree = {
        "run_dir": str(folder / "run"),
        "sampling": {"model": "jobs/demo/policy", "actors": 1},
        "judge": {"model": "sim", "base_url": url, "retrieval": {"chunk_tokens": 32}},
        "evaluation": {
            "baseline": "jobs/demo/policy",
            "model": "jobs/demo/policy",
            "benchmarks": benchmarks,
            **evaluation,
        },
    }
    return Config.model_validate(tree)


def good(case: Case) -> str:
    if case.grade == "choice":
        return f"I looked.\nAnswer: {case.references[0]}"
    if case.grade == "recall":
        return f"It is {case.references[0]}."
    return "Mira keeps copper and Toben keeps salt" if case.grade == "instructions" else GOOD


def bad(case: Case) -> str:
    return "Hard to say." if case.grade == "choice" else BAD


def answered(asked: Config, name: str, answer: Callable[[Case], str], leave_out: int = 0) -> Store:
    """The run directory of a side with an answer to every case, and to every second turn."""
    store = Store(asked.run_dir)
    there = store.sub("evaluation", f"benchmarks_{name}")
    cases = benchmark_runs.prepare(asked, store).cases
    cases += [case.then(answer(case)) for case in cases if case.follow_up]
    made = []
    for case in cases[leave_out:]:
        context = files.DOCUMENT if case.grade in ("none", "chat") else "A text."
        made.append(sampled_row(case.prompt_id, context, case.question, [answer(case)]))
    there.write_rows("sampled", made, schemas.SAMPLED)
    return there


def table(asked: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    written = json.loads(Store(asked.run_dir).read("evaluation.json") or b"")
    return {row["metric"]: row for row in written["table"]}, written


def sides(of: dict[str, Any]) -> tuple[Any, Any]:
    return of["before"], of["after"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_benchmarks_of_two_models(tmp_path: Path) -> None:
    with simulated.running() as url:
        asked = config(tmp_path, url)
        answered(asked, "before", bad)
        there = answered(asked, "after", good)
        assert pipeline.execute(asked, ("evaluate",)) == 0
        found, written = table(asked)
        asked_once = stats(url)["requests"]
        paid = [usage.by_kind(one) for one in (there, Store(asked.run_dir).sub("evaluation", "wins"))]
        paid.append(usage.by_kind(Store(asked.run_dir).sub("evaluation", "benchmarks_before")))
        expected = forecast.calls(asked, 20)
        for kind in (*KINDS.values(), "direct"):
            assert sum(one[kind].calls for one in paid if kind in one) == expected[kind].calls, kind
        pipeline.report(Store(asked.run_dir))
        for name in ("longbench_chat: score", "longbench: score", "longbench, qasper: score"):
            assert found[name]["low"] > 0, name
        assert sides(found["mt_bench, turn 1: score, 1 to 10"])[0] is not None
        # An answer without a choice is no wrong one: nothing is left to compare with.
        assert found["longbench_v2: accuracy"]["difference"] is None
        assert written["benchmarks"]["longbench_v2"]["unscored"]["before"] == {
            "accuracy": {"the answer states no choice, or several": 4}
        }
        assert sides(found["ifeval: prompts, strict"]) == (0, 100)
        assert written["benchmarks"]["ifeval"]["unscored"]["after"]["prompts, strict"] == {
            "no checker for made:up": 1
        }
        assert sides(found["ruler: found"]) == (0, 100)
        assert found["alpaca_eval: win rate against the file's answers"]["difference"] > 0
        assert sides(found["alpaca_eval: win rate"]) == (0, 100)
        assert sides(found["facts: win rate"]) == (0, 100)
        assert found["facts: facts supported (%)"]["after"] == 100
        assert found["longbench_chat: facts per answer"]["after"] == 2
        assert written["failed"] == {"before": 0, "after": 0}
        assert written["benchmarks"]["mt_bench"]["second turns not graded"] == {"before": 0, "after": 0}
        # The same again asks nothing, and nor does retrying.
        assert pipeline.execute(asked, ("evaluate",)) == 0
        assert table(asked)[0] == found
        # A grade that failed for good is counted, and taken up again on demand.
        index = there.index("graded")
        lost = next(one for one in index if one.startswith("longbench_chat/"))
        kept = [row for row in there.rows("graded") if row["prompt_id"] != lost]
        there.clear("graded")
        there.write_rows("graded", kept, schemas.GRADED)
        failure = {"prompt_id": lost, "stage": "grade", "reason": "no answer"}
        there.write_rows("failed", [failure], schemas.FAILED)
        assert pipeline.execute(asked, ("evaluate",)) == 1
        assert table(asked)[1]["benchmarks"]["longbench_chat"]["failed"] == {"before": 0, "after": 1}
        assert pipeline.execute(asked, pipeline.RETRY) == 0
        assert table(asked)[0] == found
        assert not there.files("failed")
        assert stats(url)["requests"] == asked_once


def test_sides_are_what_their_config_samples_with(tmp_path: Path) -> None:
    from lr_ray import evaluation

    asked = config(tmp_path, "http://127.0.0.1:9/v1", temperature=0.5, max_tokens=77, n=3)
    (_, before, _), (_, after, there) = evaluation.sides(asked, Store(asked.run_dir))
    assert (before.sampling.temperature, before.sampling.max_tokens, before.sampling.n) == (0.5, 77, 3)
    assert after.sampling.truncate == "refuse"
    assert there.url.endswith("evaluation/after")


def test_prompts_are_written_once_and_pointed_to(tmp_path: Path) -> None:
    from lr_ray import data

    asked = config(tmp_path, "http://127.0.0.1:9/v1")
    store = Store(asked.run_dir)
    first = benchmark_runs.prepare(asked, store)
    folder = tmp_path / "run" / "evaluation" / "prompts"
    written = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(written) == 8
    again = benchmark_runs.prepare(asked, store)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    for case, pointer in zip(first.cases, first.pointers, strict=True):
        assert case.prompt == {}
        assert data.load(pointer, "{context}\n\n{question}")["prompt_id"] == case.prompt_id


def test_prompts_are_not_all_in_memory_to_be_written(tmp_path: Path) -> None:
    """20 texts of 1 MB, which the reader holds once."""
    rows = [
        {"prompt_id": f"p{number}", "context": f"{number} " * 500_000, "question": "What?"}
        for number in range(20)
    ]
    path = files.lines(tmp_path / "long.jsonl", rows)
    size = path.stat().st_size
    asked = Config.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "evaluation": {"benchmarks": [{"kind": "facts", "path": str(path)}]},
        }
    )
    del rows
    tracemalloc.start()
    prepared = benchmark_runs.prepare(asked, Store(asked.run_dir))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(prepared.pointers) == 20
    assert peak < 2.2 * size
