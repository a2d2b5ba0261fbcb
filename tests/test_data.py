"""Input in every format, and every fault of it in one sentence."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lr_ray import data
from lr_ray.config import Training
from lr_ray.store import Store
from lr_ray.training import source

TEMPLATE = "{context}\n\n{question}"
GOOD = {"prompt_id": "a", "context": "Mira keeps copper.", "question": "What does Mira keep?"}


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_ours_and_the_authors_prompts_give_the_same_row(tmp_path: Path) -> None:
    ours = jsonl(tmp_path / "ours.jsonl", {**GOOD, "prompt_id": "7", "reference_answer": "copper"})
    theirs = {"idx": 7, "query": GOOD["question"], "answer": "copper", "context": GOOD["context"]}
    authors = jsonl(tmp_path / "authors.jsonl", theirs)
    (one,), (other,) = data.scan([ours]), data.scan([authors])
    assert data.load(one, TEMPLATE) == data.load(other, TEMPLATE)
    assert data.load(one, TEMPLATE)["prompt"] == [
        {"role": "user", "content": "Mira keeps copper.\n\nWhat does Mira keep?"}
    ]


def test_a_slot_in_the_context_is_not_filled(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", {**GOOD, "context": "see {question} and {context}"})
    (pointer,) = data.scan([path])
    assert data.load(pointer, TEMPLATE)["prompt"][0]["content"] == (
        "see {question} and {context}\n\nWhat does Mira keep?"
    )


def test_messages_give_context_and_question(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Mira keeps copper.\n\nWhat does Mira keep?"},
    ]
    (pointer,) = data.scan([jsonl(tmp_path / "p.jsonl", {"prompt_id": "m", "messages": messages})])
    row = data.load(pointer, TEMPLATE)
    assert row["prompt"] == messages
    assert (row["context"], row["question"]) == ("Be brief.\n\nMira keeps copper.", "What does Mira keep?")


def test_parquet_and_globs_and_pointers_past_multibyte_lines(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", {**GOOD, "context": "铜币在这里。"}, {**GOOD, "prompt_id": "b"})
    rows = [{**GOOD, "prompt_id": f"q{n}", "reference_answer": None} for n in range(5)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet", row_group_size=2)
    pointers = data.scan([str(tmp_path / "*")])
    assert [p.prompt_id for p in pointers] == ["a", "b", "q0", "q1", "q2", "q3", "q4"]
    assert [data.load(p, TEMPLATE)["prompt_id"] for p in pointers] == [p.prompt_id for p in pointers]
    assert data.load(pointers[0], TEMPLATE)["context"] == "铜币在这里。"


def test_prompts_on_one_document_are_neighbours(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": f"{document}{n}", "context": f"Document {document}.", "question": f"Question {n}?"}
        for n in range(2)
        for document in "xyz"
    ]
    path = jsonl(tmp_path / "p.jsonl", *rows)
    wanted = ["x0", "x1", "y0", "y1", "z0", "z1"]
    assert [p.prompt_id for p in data.scan([path])] == wanted
    answers = [{"prompt_id": row["prompt_id"], "candidates": ["yes"]} for row in rows]
    answered = data.scan([path], [jsonl(tmp_path / "c.jsonl", *answers)])
    assert [p.prompt_id for p in answered] == wanted


def test_candidates_ours_joined_to_prompts(tmp_path: Path) -> None:
    prompts = jsonl(tmp_path / "p.jsonl", GOOD, {**GOOD, "prompt_id": "without"})
    rows = {"prompt_id": "a", "candidates": ["one", {"text": "two"}]}
    (pointer,) = data.scan([prompts], [jsonl(tmp_path / "c.jsonl", rows)])
    row: Any = data.load(pointer, TEMPLATE)
    assert [(c["index"], c["text"]) for c in row["candidates"]] == [(0, "one"), (1, "two")]


def test_the_authors_candidates_are_grouped_by_prompt(tmp_path: Path) -> None:
    prompts = jsonl(tmp_path / "p.jsonl", {"idx": 11, "query": "Q?", "context": "C."})
    rows = [{"idx": f"11-{n}", "query": "Q?", "answer": f"answer {n}"} for n in (1, 0, 2)]
    (pointer,) = data.scan([prompts], [jsonl(tmp_path / "c.jsonl", *rows)])
    row: Any = data.load(pointer, TEMPLATE)
    assert [c["text"] for c in row["candidates"]] == ["answer 0", "answer 1", "answer 2"]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no prompts in there"),
        ([GOOD, GOOD], "line 2: prompt_id 'a' is there already, at .*line 1"),
        ([GOOD, '{"prompt_id": "b", "con'], "line 2: not valid JSON"),
        ([{**GOOD, "context": " "}], "line 1: context is empty"),
        ([{**GOOD, "context": 5}], "line 1: context is a number, not text"),
        ([{**GOOD, "context": None}], "line 1: no context"),
        ([{"prompt_id": "a", "context": "C."}], "line 1: no question"),
        ([{**GOOD, "prompt_id": None}], "line 1: prompt_id .* missing value"),
        ([[1]], "line 1: a list, not a JSON object"),
        ([{"prompt_id": "a", "messages": []}], "messages is not a list with at least one"),
        ([{"prompt_id": "a", "messages": [{"role": "assistant", "content": "x"}]}], "not the user's"),
        (
            [{"prompt_id": "a", "messages": [{"role": "user", "content": "one block"}]}],
            "line 1: no blank line in messages parts the context from the question",
        ),
        ([{**GOOD, "prompt_id": 1.5}], "prompt_id .* is a number with a fraction or of over 64 bits"),
        ([{**GOOD, "prompt_id": 10**30}], "prompt_id .* is a number with a fraction or of over 64 bits"),
        (['{"prompt_id": "a", "context": "\\ud800", "question": "q"}'], "line 1: not valid JSON"),
    ],
)
def test_bad_prompts(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=rf"p\.jsonl.*{says}"):
        data.scan([jsonl(tmp_path / "p.jsonl", *rows)])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt_id": "b", "candidates": ["x"]}, "no prompt 'b' in data.prompts"),
        ({"prompt_id": "a", "candidates": []}, "at least one answer"),
        ({"prompt_id": "a", "candidates": [{"quality": 1}]}, "candidate 0 has no text"),
        ({"idx": "a", "answer": "x"}, "not of the form prompt-candidate"),
        ({"idx": "a-0", "answer": 3}, "answer is a number"),
        ({"prompt_id": "a", "candidates": [{"text": "x"}, {"text": "y", "index": 0}]}, "candidate 0 twice"),
    ],
)
def test_bad_candidates(tmp_path: Path, row: Any, says: str) -> None:
    with pytest.raises(ValueError, match=rf"c\.jsonl: line 1.*{says}"):
        data.scan([jsonl(tmp_path / "p.jsonl", GOOD)], [jsonl(tmp_path / "c.jsonl", row)])


def test_torn_last_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "prompt_id": "b"})[:30])
    with pytest.raises(ValueError, match=r"line 2: .*torn"):
        data.scan([str(path)])


def test_a_line_torn_within_a_character_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        json.dumps({**GOOD, "context": "铜币"}, ensure_ascii=False).encode().split("币".encode())[0]
    )
    path.write_bytes(path.read_bytes() + "币".encode()[:1])
    with pytest.raises(ValueError, match=r"line 1: not valid JSON.*torn"):
        data.scan([str(path)])


@pytest.mark.parametrize("how", ["utf-16", "utf-16-le", "latin-1", "gzip"])
def test_what_is_not_utf_8_is_named(tmp_path: Path, how: str) -> None:
    # Without a mark at its beginning, plain English in UTF-16 is UTF-8 with zeros.
    name = "Miller" if how == "utf-16-le" else "Müller"
    text = json.dumps({**GOOD, "context": name}, ensure_ascii=False) + "\n"
    path = tmp_path / "p.jsonl"
    path.write_bytes(gzip.compress(text.encode()) if how == "gzip" else text.encode(how))
    with pytest.raises(ValueError, match=r"p\.jsonl: line 1: not UTF-8 text \(is it compressed\?\)"):
        data.scan([str(path)])


@pytest.mark.parametrize("asked", ["p.jsonl.gz", "*.gz", ""])
def test_compressed_files_are_to_be_decompressed(tmp_path: Path, asked: str) -> None:
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode()))
    with pytest.raises(ValueError, match=r"p\.jsonl\.gz: compressed: decompress it first"):
        data.scan([str(tmp_path / asked)])


def broken(path: Path, how: str) -> str:
    """A parquet file of prompts, which is damaged at the end or within a column."""
    rows = [{**GOOD, "prompt_id": f"p{number}"} for number in range(500)]
    pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd", use_dictionary=False)
    content = path.read_bytes()
    path.write_bytes(
        content[: len(content) // 2] if how == "torn" else content[:60] + bytes(400) + content[460:]
    )
    return str(path)


@pytest.mark.parametrize("how", ["torn", "damaged"])
def test_a_broken_parquet_file_is_named(tmp_path: Path, how: str) -> None:
    path = broken(tmp_path / "b.parquet", how)
    with pytest.raises(ValueError, match=r"b\.parquet: cannot be read as parquet"):
        data.scan([path])
    with pytest.raises(ValueError, match=r"b\.parquet: cannot be read as parquet"):
        data.row_at(data.Place(path, 0, 0, 0, 1))
    if how == "torn":
        with pytest.raises(ValueError, match=r"b\.parquet: cannot be read as parquet"):
            source.read(Training(data=[path]), Store(str(tmp_path)))


def test_a_hub_that_cannot_be_reached_is_told_with_what_was_asked_for() -> None:
    url = "hf://datasets/some/where/p.jsonl"
    code = f"from lr_ray import data\ntry: data.scan([{url!r}])\nexcept ValueError as error: print(error)"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith(f"{url}: cannot be read: ")


@pytest.mark.parametrize("name", ["missing.jsonl", "x.csv", "none*.jsonl"])
def test_missing_or_unknown_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(ValueError, match=r"no such file|no \.jsonl or \.parquet"):
        data.scan([str(tmp_path / name)])
