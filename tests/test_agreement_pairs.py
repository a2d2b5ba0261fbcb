"""Labelled pairs in their published forms, and the rows that the judge gets of them."""

import json
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lr_ray import data, labelled
from lr_ray.agreement import inputs
from lr_ray.config import Config
from lr_ray.judge import attacks, chunks
from lr_ray.labelled import Pair
from lr_ray.store import Store

MEASURE = chunks.measure(None)
OURS = {"prompt_id": "p", "context": "A long text.", "question": "Why?", "chosen": "good", "rejected": "bad"}


def config(tmp_path: Path, *rows: Any, name: str = "pairs.jsonl", **settings: Any) -> Config:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree = {"run_dir": str(tmp_path / "run"), **settings.pop("sections", {})}
    given = {"pairs": [str(tmp_path / name)] if rows else [], **settings}
    return Config.model_validate({**tree, "agreement": given})


def pairs(tmp_path: Path, *rows: Any, **settings: Any) -> list[Pair]:
    return [pair for found in labelled.scan(config(tmp_path, *rows, **settings)) for pair in found]


def test_our_own_form(tmp_path: Path) -> None:
    assert pairs(tmp_path, OURS) == [Pair("p", "A long text.", "Why?", ["good"], ["bad"], "pairs")]
    asked = {**OURS, "subset": "hard"}
    assert pairs(tmp_path, asked)[0].subset == "hard"


def test_parquet(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([OURS, {**OURS, "prompt_id": "q"}]), tmp_path / "p.parquet")
    settings = Config.model_validate(
        {"run_dir": str(tmp_path), "agreement": {"pairs": [str(tmp_path / "p.parquet")]}}
    )
    assert list(labelled.scan(settings).places) == ["p", "q"]


def test_the_authors_pairs(tmp_path: Path) -> None:
    row = {"idx": 7, "context": "C.", "query": "Q?", "win_response": "w", "lose_response": "l"}
    assert pairs(tmp_path, row) == [Pair("7", "C.", "Q?", ["w"], ["l"], "pairs")]


def test_the_conversational_form(tmp_path: Path) -> None:
    def said(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "C one.\n\nC two.\n\nQ?"},
    ]
    row = {"prompt_id": "p", "prompt": asked, "chosen": said("w"), "rejected": said("l"), "score_chosen": 9}
    assert pairs(tmp_path, row) == [Pair("p", "Be brief.\n\nC one.\n\nC two.", "Q?", ["w"], ["l"], "pairs")]
    alone = {**row, "prompt": [{"role": "user", "content": "Q?"}]}
    assert pairs(tmp_path, alone)[0].context is None


def test_rewardbench_and_rewardbench_2(tmp_path: Path) -> None:
    """RewardBench has one answer a side, RewardBench 2 lists; neither has a document."""
    first = {"id": 30, "prompt": "Sing.", "chosen": "la", "rejected": "no", "subset": "chat"}
    second = {
        "id": "ties-4",
        "prompt": "Name a colour.\n\nOne only.",
        "chosen": ["red", "blue"],
        "rejected": ["tree", "seven", "tree"],
        "num_correct": 2,
        "num_incorrect": 3,
        "total_completions": 5,
        "models": ["a", "b", "c", "d", "e"],
        "subset": "Ties",
        "additional_metadata": None,
    }
    assert pairs(tmp_path, first, second) == [
        Pair("chat-30", None, "Sing.", ["la"], ["no"], "chat"),
        Pair("Ties-ties-4", None, "Name a colour.\n\nOne only.", ["red", "blue"], ["tree", "seven"], "Ties"),
    ]


def test_ids_of_rewardbench_are_those_within_a_subset(tmp_path: Path) -> None:
    row = {"id": 0, "chosen": "w", "rejected": "l"}
    both = [{**row, "prompt": f"In {subset}?", "subset": subset} for subset in ("chat", "code")]
    assert [pair.prompt_id for pair in pairs(tmp_path, *both)] == ["chat-0", "code-0"]
    alone = {**row, "prompt": "Alone?"}
    assert [pair.prompt_id for pair in pairs(tmp_path, alone)] == ["0"]
    named = {**both[0], "prompt_id": "p"}
    assert [pair.prompt_id for pair in pairs(tmp_path, named)] == ["p"]


def test_long_rewardbench(tmp_path: Path) -> None:
    document = "First part.\n\nSecond part."
    pair = {
        "id": 0,
        "prompt_template": [{"role": "user", "content": f"{document}\n\nWhat is said?"}],
        "question": "What is said?",
        "source": "LongBench",
        "chosen": "w",
        "rejected": "l",
        "ctx_length_for_length": "8k",
        "tasktype": "PairWise",
        "subtype": "same",
        "candidates": None,
        "candidates_score": None,
    }
    ranking = {
        **pair,
        **{"question": None, "chosen": None, "rejected": None, "tasktype": "BestOfN", "subtype": "4"},
        **{"candidates": ["a", "b", "c", "d"], "candidates_score": [1.0, 1.0, 0.5, 0.0]},
    }
    unranked = {**ranking, "id": 1, "candidates_score": None}
    assert pairs(tmp_path, pair, ranking, unranked, name="LongQA.jsonl") == [
        Pair("LongQA-PairWise-0", document, "What is said?", ["w"], ["l"], "LongQA PairWise"),
        Pair("LongQA-BestOfN-0", document, "What is said?", ["a"], ["c", "d"], "LongQA BestOfN"),
        Pair("LongQA-BestOfN-1", document, "What is said?", ["a"], ["b", "c", "d"], "LongQA BestOfN"),
    ]
    with pytest.raises(ValueError, match=r"LongQA\.jsonl: line 1: candidates_score has not one number"):
        pairs(tmp_path, {**ranking, "candidates_score": [1.0]}, name="LongQA.jsonl")
    for scores in ([0.5, 1.0, 0.5, 0.0], [1.0, None, 0.5, 0.0], [1.0, "0.5", 0.5, 0.0], [True, 0, 0, 0]):
        with pytest.raises(
            ValueError, match=r"line 1: candidates_score is no list of numbers, highest first"
        ):
            pairs(tmp_path, {**ranking, "candidates_score": scores}, name="LongQA.jsonl")


def test_the_attack_set(tmp_path: Path) -> None:
    found = pairs(tmp_path, attacks=True)
    assert len(found) == len(list(attacks.rows()))
    assert {pair.subset for pair in found} == {
        f"attack in the {where}" for where in ("answer", "context", "question")
    }
    assert all(pair.context and pair.chosen != pair.rejected for pair in found)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"chosen": None}, "chosen is neither a text nor a list of texts"),
        ({"rejected": []}, "rejected is neither a text nor a list of texts"),
        ({"rejected": ["x", 3]}, "rejected is neither a text nor a list of texts"),
        ({"context": " "}, "context is empty"),
        ({"question": None}, "question is no text"),
        ({"prompt_id": ["p"]}, "prompt_id is neither text nor an integer"),
    ],
)
def test_bad_rows_are_refused_by_place(change: dict[str, Any], fault: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"pairs\.jsonl: line 2: {fault}"):
        pairs(tmp_path, OURS, {**OURS, "prompt_id": "q", **change})


def test_what_else_is_refused_before_anything_is_paid(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"agreement\.pairs is not set"):
        pairs(tmp_path)
    with pytest.raises(ValueError, match=r"agreement\.other: no agreement was measured in nowhere"):
        pairs(tmp_path, OURS, other="nowhere")
    other = {**OURS, "context": "Another text."}
    with pytest.raises(
        ValueError, match=r"line 2: prompt_id 'p' has another context or question at .*line 1"
    ):
        pairs(tmp_path, OURS, other)
    weights = {"judge": {"weights": {"helpfulness": 0, "logicality": 0}}}
    with pytest.raises(ValueError, match=r"line 1: no context, which every dimension with weight needs"):
        pairs(tmp_path, {"prompt": "Q?", "chosen": "a", "rejected": "b"}, sections=weights)


def test_labels_that_tell_nothing_apart_are_counted(tmp_path: Path) -> None:
    same = {**OURS, "prompt_id": "q", "rejected": "good"}
    found = labelled.scan(config(tmp_path, OURS, same))
    assert (list(found.places), found.unlabelled) == (["p"], 1)
    with pytest.raises(ValueError, match="no labelled pairs in there"):
        labelled.scan(config(tmp_path, same))


def test_prompts_on_one_document_stand_together(tmp_path: Path) -> None:
    rows = [{**OURS, "prompt_id": str(i), "context": f"Text {i % 2}."} for i in range(6)]
    assert list(labelled.scan(config(tmp_path, *rows)).places) == ["0", "2", "4", "1", "3", "5"]


def pair(chosen: str, rejected: str, prompt_id: str = "p") -> Pair:
    return Pair(prompt_id, "C.", "Q?", [chosen], [rejected], "s")


def test_a_prompts_answers_are_one_row_each_of_them_once() -> None:
    row = inputs.row([pair("a", "b"), pair("a", "c"), pair("c", "b")], 0, MEASURE)
    texts = row["candidates"]
    assert sorted(texts) == ["a", "b", "c"]
    told = [(texts[label["chosen"][0]], texts[label["rejected"][0]]) for label in row["labels"]]
    assert told == [("a", "b"), ("a", "c"), ("c", "b")]


def test_the_order_of_answers_does_not_tell_the_label() -> None:
    first = [inputs.row([pair("good", "bad", str(i))], 0, MEASURE)["labels"][0]["chosen"] for i in range(400)]
    assert 160 < first.count([0]) < 240
    again = [inputs.row([pair("good", "bad", str(i))], 0, MEASURE)["labels"][0]["chosen"] for i in range(400)]
    other = [inputs.row([pair("good", "bad", str(i))], 1, MEASURE)["labels"][0]["chosen"] for i in range(400)]
    assert first == again != other


def write(tmp_path: Path, settings: Config, done: set[str] | None = None, seed: int = 0) -> list[inputs.Item]:
    return inputs.write(Store(str(tmp_path / "run")), labelled.scan(settings), seed, None, done or set())


def test_rows_are_read_as_candidates_from_any_file(tmp_path: Path) -> None:
    short = {"prompt": "Q alone?", "chosen": "x", "rejected": "y", "id": "s"}
    long = {**OURS, "context": "Äußerst lang. " * 300}
    items = write(tmp_path, config(tmp_path, long, short))
    assert [(item.prompt_id, item.short) for item in items] == [("p", False), ("s", True)]
    assert items[0].tokens == len(long["context"].encode()) // 4
    assert items[1].tokens == 0
    rows: list[Any] = [data.load(item.pointer, "{context}\n\n{question}") for item in items]
    assert (rows[0]["context"], rows[0]["question"]) == (long["context"], "Why?")
    assert sorted(one["text"] for one in rows[0]["candidates"]) == ["bad", "good"]
    assert [one["text"] for one in rows[0]["candidates"]][items[0].labels[0].chosen[0]] == "good"
    assert items[0].lengths == [len(one["text"]) for one in rows[0]["candidates"]]
    assert (rows[1]["context"], rows[1]["question"]) == ("Q alone?", "Q alone?")


def test_the_rows_are_written_once_and_in_files_of_a_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs, "FILE_BYTES", 1000)
    rows = [{**OURS, "prompt_id": str(i)} for i in range(20)]
    items = write(tmp_path, config(tmp_path, *rows))
    files = sorted((tmp_path / "run" / "input").iterdir())
    assert len(files) > 2
    assert all(file.stat().st_size <= 1000 for file in files)
    assert [orjson.loads(line)["prompt_id"] for file in files for line in file.open()] == list(
        map(str, range(20))
    )
    assert [data.row_at(item.pointer.prompt)["prompt_id"] for item in items] == list(map(str, range(20)))
    before = [file.stat().st_mtime_ns for file in files]
    assert write(tmp_path, config(tmp_path, *rows)) == items
    assert [file.stat().st_mtime_ns for file in files] == before
    files[1].unlink()
    assert write(tmp_path, config(tmp_path, *rows)) == items
    assert files[1].exists()


def test_what_was_judged_keeps_its_answers_labels_and_order(tmp_path: Path) -> None:
    other = {**OURS, "prompt_id": "q"}
    write(tmp_path, config(tmp_path, OURS))
    write(tmp_path, config(tmp_path, {**OURS, "chosen": "better"}))  # nothing was judged yet
    write(tmp_path, config(tmp_path, OURS))
    write(tmp_path, config(tmp_path, OURS, other), done={"p"})  # more pairs may come
    for changed in ({**OURS, "rejected": "worse"}, {**OURS, "chosen": "bad", "rejected": "good"}):
        with pytest.raises(ValueError, match="prompt 'p' was judged with other answers, labels or seed"):
            write(tmp_path, config(tmp_path, changed, other), done={"p"})
    with pytest.raises(ValueError, match="labels or seed; use another run_dir"):
        write(tmp_path, config(tmp_path, OURS, other), done={"p", "q"}, seed=1)
    # What is taken out and comes back is compared too.
    write(tmp_path, config(tmp_path, other), done={"p"})
    with pytest.raises(ValueError, match="prompt 'p'"):
        write(tmp_path, config(tmp_path, {**OURS, "rejected": "worse"}), done={"p"})
