"""Benchmarks read from files in their published formats; what is wrong with one is said in a sentence."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from lr_ray import data
from lr_ray.benchmarks import longbench, sets
from lr_ray.benchmarks.case import Case
from lr_ray.config import Benchmark, Config
from tests import benchmark_files as files


def config(*benchmarks: dict[str, Any], **evaluation: Any) -> Config:
    return Config.model_validate(
        {"run_dir": "r", "evaluation": {"benchmarks": list(benchmarks), **evaluation}}
    )


def cases(**benchmark: Any) -> list[Case]:
    asked = config({key: str(v) if isinstance(v, Path) else v for key, v in benchmark.items()})
    found = list(sets.cases(asked, asked.evaluation.benchmarks[0]))
    for case in found:  # whatever the format, sampling must be able to read it
        data.to_prompt(json.loads(json.dumps(case.row())), data.Place("here", -1, 0, 0, 1))
    return found


def test_longbench_chat_with_scored_examples(tmp_path: Path) -> None:
    folder = files.longbench_chat(tmp_path)
    first, second, _ = cases(kind="longbench_chat", path=folder)
    assert first.grade == "chat"
    assert first.question == "What does Mira keep, case 1?"
    assert first.references == ["Mira keeps copper."]
    assert [example["score"] for example in first.examples] == ["3", "6", "9"]
    assert second.examples[0]["answer"] == "Example 3 of 2."
    (message,) = first.prompt["messages"]
    assert message == {"role": "user", "content": f"{files.DOCUMENT}\n\n{first.question}"}
    assert first.prompt["context"] == files.DOCUMENT.strip()
    shots = json.loads((folder / "few_shots.json").read_text())
    shots[0][0]["score"] = 7.5
    files.listed(folder / "few_shots.json", shots)
    assert cases(kind="longbench_chat", path=folder)[0].examples[0]["score"] == "7.5"
    files.listed(folder / "few_shots.json", shots[:2])
    with pytest.raises(ValueError, match=r"few_shots\.json: no scored answers for case 3$"):
        cases(kind="longbench_chat", path=folder)
    shots[0][0]["score"] = "good"
    files.listed(folder / "few_shots.json", shots)
    with pytest.raises(ValueError, match=r"few_shots\.json: case 1: score is a str, not a number$"):
        cases(kind="longbench_chat", path=folder)
    (folder / "few_shots.json").unlink()
    with pytest.raises(ValueError, match=r"few_shots\.json: no such file; .*THUDM/LongReward"):
        cases(kind="longbench_chat", path=folder)


def test_longbench_has_its_own_question_or_ours(tmp_path: Path) -> None:
    names = ["qasper", "gov_report", "vcsum"]
    found = cases(kind="longbench", path=files.longbench(tmp_path, names), tasks=names)
    assert [case.grade for case in found] == ["answer"] * 2 + ["summary"] * 4
    assert found[0].question == "What does Mira keep, 0?"
    assert found[0].references == ["Mira keeps copper.", "copper"]
    assert found[2].question == longbench.REQUESTS["gov_report"]
    files.lines(tmp_path / "other" / "qasper.jsonl", [files.longbench_row("qasper", 0, answers=["", "tin"])])
    assert cases(kind="longbench", path=tmp_path / "other", tasks=["qasper"])[0].references == ["tin"]
    files.lines(tmp_path / "other" / "qasper.jsonl", [files.longbench_row("qasper", 0, answers=[" "])])
    with pytest.raises(ValueError, match=r"qasper\.jsonl: line 1: answers are empty"):
        cases(kind="longbench", path=tmp_path / "other", tasks=["qasper"])
    assert [case.groups for case in found[::2]] == [["qasper"], ["gov_report"], ["vcsum"]]
    assert len(cases(kind="longbench", path=tmp_path, tasks=names, limit=1)) == 3
    assert len(longbench.SETS) == 12


def test_longbench_names_the_file_that_is_missing(tmp_path: Path) -> None:
    files.longbench(tmp_path, ["narrativeqa"])
    with pytest.raises(ValueError, match=r"qasper\.jsonl: no such file; .*THUDM/LongBench"):
        cases(kind="longbench", path=tmp_path)
    with pytest.raises(ValueError, match="trec is none of narrativeqa"):
        cases(kind="longbench", path=tmp_path, tasks=["trec"])


def test_longbench_v2(tmp_path: Path) -> None:
    path = files.longbench_v2(tmp_path / "data.json")
    found = cases(kind="longbench_v2", path=tmp_path)
    assert [case.references for case in found] == [["A"], ["B"], ["C"], ["D"]]
    assert found[0].groups == ["hard", "short"]
    assert "\n\nA. a thing\nB. b thing\nC. c thing\nD. d thing\n\n" in found[0].question
    assert [c.groups[1] for c in cases(kind="longbench_v2", path=path, lengths=["long"])] == ["long"] * 2
    spread = cases(kind="longbench_v2", path=path, limit=2)
    assert [case.references for case in spread] == [["A"], ["C"]]


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("The correct answer is (C).", "C"),
        ("Answer: B", "B"),
        ("**Answer:** **D**", "D"),
        ("It is warm there, so the answer is A", "A"),
        ("答案是 B。", "B"),
        ("答案：D", "D"),
        ("C", "C"),
        ("(A)", "A"),
        ("B) Because the mill stands there.", "B"),
        ("First I look at the mill.\n\nD.", "D"),
        ("Answer: A\nNo wait.\nAnswer: A", "A"),
        ("The answer is A or B.", None),
        ("Answer: A\nNo wait.\nAnswer: B", None),
        ("The answer is a mill.", None),
        ("Answer: A decrease in salt.", None),
        ("Answer: A because the salt is gone.", "A"),
        ("Answer: A\nthe salt is gone.", "A"),
        ("The answer is not known", None),
        ("A mill stands there.", None),
        ("It could be anything.", None),
        ("Answer: E", None),
        ("Answer: ABC", None),
        ("The correct answer is: B", "B"),
        ("The correct answer is: (B)", "B"),
        ("Answer: \\boxed{B}", "B"),
        ("So it is $\\boxed{B}$", "B"),
        ("$$\\boxed{\\text{(C)}}$$", "C"),
        ("\\boxed{A}, or else \\boxed{B}", None),
        ("The answer is most likely C.", "C"),
        ("The answer should be B", "B"),
        ("The answer should be B or C", None),
        ("The answer should be A decrease in salt.", None),
        ("The answer could be B.", None),
        ("The answer is not B.", None),
        ("The answer is C++.", None),
        ("The answer is B-cells.", None),
        ("Answer - B", "B"),
        ("Answer: letter D", "D"),
        ("### Answer\nB) foo", "B"),
        ("**Final Answer**\n\n(C): foo", "C"),
        ("### Answer\nA mill stands there.", None),
        ("Option B is correct.", "B"),
        ("The rest is wrong.\n- **A** is the best answer, since", "A"),
        ("Therefore, option (D) is the most correct one.", "D"),
        ("Option A is correct. Option B is also correct.", None),
        ("A is correct. B is correct. C is not correct.\nThe answer is C.", "C"),
        ("Option B is not correct.", None),
        ("Is option B correct? Whether option B is correct is not said.", None),
        ("It depends on whether B is correct.", None),
        ("选项A不正确，选项B正确。", "B"),
        ("选项B是否正确？", None),
        ("答案应该是：B", "B"),
        ("", None),
    ],
)
def test_a_choice_is_what_an_answer_states(answer: str, letter: str | None) -> None:
    assert longbench.chosen(answer) == letter


def test_mt_bench_has_a_second_turn(tmp_path: Path) -> None:
    writing, arithmetic = cases(kind="mt_bench", path=files.mt_bench(tmp_path / "question.jsonl"))
    assert writing.groups == ["turn 1", "writing"]
    assert writing.references == []
    second = arithmetic.then("It is 5.")
    assert second.prompt_id == f"{arithmetic.prompt_id}/2"
    assert second.unit == arithmetic.prompt_id
    assert (second.question, second.references, second.follow_up) == ("And twice that?", ["10"], None)
    assert second.history == ["What is 2 + 3?", "It is 5."]
    assert second.groups == ["turn 2", "math"]
    roles = [message["role"] for message in second.prompt["messages"]]
    assert roles == ["user", "assistant", "user"]
    row = data.to_prompt(second.row(), data.Place("here", -1, 0, 0, 1))
    assert row["prompt"][-1]["content"] == "And twice that?"


def test_mt_bench_takes_the_reference_answers_beside_it(tmp_path: Path) -> None:
    """As FastChat does, for the kinds of question that need one."""
    path = files.mt_bench(tmp_path / "question.jsonl")
    answers = [
        {"question_id": number, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["Five.", "Ten."]}]}
        for number in (81, 101)
    ]
    beside = files.lines(tmp_path / "reference_answer" / "gpt-4.jsonl", answers)
    for given in (path, tmp_path):
        writing, arithmetic = cases(kind="mt_bench", path=given)
        assert (writing.references, arithmetic.references) == ([], ["Five.", "Ten."])
    files.lines(beside, [{"question_id": 101, "choices": []}])
    with pytest.raises(ValueError, match=r"gpt-4\.jsonl: line 1: turns is no list"):
        cases(kind="mt_bench", path=path)


def test_alpaca_eval_2_comes_before_its_first_version(tmp_path: Path) -> None:
    files.alpaca(tmp_path / "alpaca_eval.json")
    assert cases(kind="alpaca_eval", path=tmp_path)[0].against == "No idea."
    newer = [{"instruction": "Say it.", "output": "Newer."}]
    files.listed(tmp_path / "alpaca_eval_gpt4_baseline.json", newer)
    assert cases(kind="alpaca_eval", path=tmp_path)[0].against == "Newer."
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"alpaca_eval_gpt4_baseline\.json: no such file"):
        cases(kind="alpaca_eval", path=tmp_path / "none")


def test_alpaca_eval_brings_an_answer_to_win_against(tmp_path: Path) -> None:
    first, second = cases(kind="alpaca_eval", path=files.alpaca(tmp_path / "alpaca_eval.json"))
    assert (first.against, second.against) == ("No idea.", "Mira keeps copper.")
    assert first.groups == ["helpful_base"]
    only = files.listed(tmp_path / "own.json", [{"instruction": "Say hello."}])
    assert cases(kind="alpaca_eval", path=only)[0].against is None


def test_ifeval_leaves_out_what_is_null(tmp_path: Path) -> None:
    first, _ = cases(kind="ifeval", path=files.ifeval(tmp_path / "input_data.jsonl"))
    assert first.checks[1] == {
        "id": "length_constraints:number_words",
        "kwargs": {"relation": "less than", "num_words": 10},
    }


def test_prompts_for_facts(tmp_path: Path) -> None:
    found = cases(kind="facts", path=files.prompts(tmp_path / "p.jsonl"), limit=1)
    assert [(case.key, case.grade) for case in found] == [("f0", "none")]


def test_an_id_changes_with_what_is_asked_or_expected(tmp_path: Path) -> None:
    def first(**more: Any) -> str:
        files.lines(tmp_path / "qasper.jsonl", [files.longbench_row("qasper", 0, **more)])
        return cases(kind="longbench", path=tmp_path, tasks=["qasper"])[0].prompt_id

    plain = first()
    assert plain == first()
    assert plain.startswith("longbench/qasper/qasper0-")
    assert len({plain, first(context="Another."), first(answers=["other"]), first(input="Why?")}) == 4


@pytest.mark.parametrize(
    ("kind", "name", "rows", "says"),
    [
        (
            "longbench_chat",
            "test_cases.json",
            [{"idx": "1", "prompt": "p", "query": "q", "answer": "a"}],
            "idx",
        ),
        ("longbench_chat", "test_cases.json", {"idx": 1}, "a dict, not a JSON list"),
        ("longbench_chat", "test_cases.json", [{"idx": 1, "prompt": "p", "query": ""}], "query is empty"),
        ("longbench_v2", "data.json", [{"_id": "a", "answer": "E"}], "answer is 'E', none of A, B, C, D"),
        ("longbench_v2", "data.json", ["x"], "item 1: a str, not a JSON object"),
        ("longbench_v2", "data.json", [], "no rows"),
        ("alpaca_eval", "alpaca_eval.json", [{"output": "x"}], "instruction is missing"),
        ("mt_bench", "question.jsonl", {"question_id": 1, "turns": []}, "turns is no list"),
        ("ifeval", "input_data.jsonl", {"key": 1, "instruction_id_list": ["a"], "kwargs": []}, "kwargs"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, kind: str, name: str, rows: Any, says: str) -> None:
    path = tmp_path / name
    path.write_text(json.dumps(rows))
    (tmp_path / "few_shots.json").write_text("[]")
    with pytest.raises(ValueError, match=f"{name}.*{says}"):
        cases(kind=kind, path=path)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("longbench_chat", "THUDM/LongReward"),
        ("longbench_v2", "THUDM/LongBench-v2"),
        ("mt_bench", "lm-sys/FastChat"),
        ("alpaca_eval", "tatsu-lab/alpaca_eval"),
        ("ifeval", "google-research"),
    ],
)
def test_a_missing_file_says_where_it_is_from(tmp_path: Path, kind: str, source: str) -> None:
    with pytest.raises(ValueError, match=f"no such file; .*{source}"):
        cases(kind=kind, path=tmp_path)


def test_a_config_names_each_benchmark_once_and_its_path(tmp_path: Path) -> None:
    path = str(files.ifeval(tmp_path / "input_data.jsonl"))
    with pytest.raises(ValueError, match="2 benchmarks are called ifeval"):
        config({"kind": "ifeval", "path": path}, {"kind": "ifeval", "path": path})
    with pytest.raises(ValueError, match="ifeval needs a path"):
        config({"kind": "ifeval"})
    with pytest.raises(ValueError, match="ruler takes no path"):
        config({"kind": "ruler", "path": path})
    both = config({"kind": "ifeval", "path": path}, {"kind": "ifeval", "path": path, "name": "again"})
    assert sets.check(both) == 4
    (first, *_) = sets.cases(both, both.evaluation.benchmarks[0])
    with pytest.raises(ValueError, match="a held-out prompt and a case have this id"):
        sets.check(both, {first.prompt_id})


def test_only_some_benchmarks_need_a_judge(tmp_path: Path) -> None:
    path = str(files.ifeval(tmp_path / "input_data.jsonl"))
    assert not sets.asks(config({"kind": "ifeval", "path": path}, {"kind": "ruler"}))
    assert sets.asks(config({"kind": "ifeval", "path": path, "win_rate": "question"}))
    assert sets.asks(config({"kind": "mt_bench", "path": path}))
    assert sets.asks(config(prompts=["p.jsonl"]))


def test_two_cases_of_one_name_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt_id": "a", "context": "c", "question": "q"}] * 2
    with pytest.raises(ValueError, match="two cases called a"):
        cases(kind="facts", path=files.lines(tmp_path / "p.jsonl", rows))


def test_limit_of_a_benchmark_is_spread() -> None:
    from lr_ray.benchmarks.files import spread

    assert list(spread(range(10), 3)) == [0, 3, 6]
    assert list(spread(range(3), 5)) == [0, 1, 2]
    assert Benchmark(kind="ruler").label == "ruler"


@pytest.mark.parametrize("begun", ["answer:", "Answer is", "答案", "Answer: A", "### Answer\n", "\\boxed{"])
@pytest.mark.parametrize(
    "unit", [" ", "*", "* ", "\n", "(", "option ", "\\boxed{", "so, ", "A ", "answer is likely ", "Answer\n"]
)
def test_no_answer_holds_the_search_for_its_choice_up(begun: str, unit: str) -> None:
    began = time.process_time()
    longbench.chosen(begun + unit * (100_000 // len(unit)) + "x")
    assert time.process_time() - began < 1
