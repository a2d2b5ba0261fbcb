"""TRL's preference formats, and refusals that name file and row."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_model

from lr_ray.config import Config, Training
from lr_ray.store import Store
from lr_ray.training import launch, source
from lr_ray.training.preference import conversational

ASK = {"role": "user", "content": "red?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("yes", "no"))
PAIR = {"prompt": [ASK], "chosen": [YES], "rejected": [NO]}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "red?", "chosen": "yes", "rejected": "no"},
        PAIR,
        {"prompt": "red?", "chosen": [YES], "rejected": [NO]},
        {"chosen": [ASK, YES], "rejected": [ASK, NO]},
        {"prompt": "red?", "chosen": [ASK, YES], "rejected": [ASK, NO]},
    ],
)
def test_every_format_is_the_same_pair(row: dict[str, Any]) -> None:
    assert conversational({**row, "score_chosen": 9.0}, "row") == {**PAIR, "score_chosen": 9.0}


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "a", "chosen": "b"}, "rejected is neither text nor a list"),
        ({"chosen": "b", "rejected": "c"}, "no prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "  "}, "rejected: the answer is empty"),
        ({"prompt": "a", "chosen": [ASK], "rejected": [NO]}, "chosen does not end with an assistant"),
        ({"prompt": "a", "chosen": [ASK, YES], "rejected": [NO]}, "not answers to one conversation"),
        ({"prompt": "a", "chosen": [YES], "rejected": [ASK, NO]}, "chosen is one message, rejected is 2"),
        ({"prompt": "a", "chosen": [ASK, YES], "rejected": [ASK, NO]}, "does not go on where prompt ends"),
        ({"prompt": [{"role": "tool", "content": "x"}], "chosen": "b", "rejected": "c"}, "role 'tool'"),
        ({"prompt": [{"content": None}], "chosen": "b", "rejected": "c"}, "no role or no content"),
        ({"prompt": 3, "chosen": "b", "rejected": "c"}, "prompt is neither text nor a list"),
    ],
)
def test_what_is_no_pair_is_refused_by_name(row: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=f"mix.jsonl: line 3: .*{fault}|mix.jsonl: line 3: {fault}"):
        conversational(row, "mix.jsonl: line 3")


def test_a_mix_stands_behind_the_main_rows_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "main.jsonl").write_text(json.dumps(PAIR) + "\n")
    (tmp_path / "short.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    rows = [{"chosen": [ASK, YES], "rejected": [ASK, NO], "source": "x"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "short.parquet")
    mix = {"data": [str(tmp_path / "short.*")], "ratio": 0.5}
    training = Training.model_validate({"data": [str(tmp_path / "main.jsonl")], "mix": mix})
    found = source.read(training, Store(str(tmp_path / "run")))
    assert (len(found), found.main) == (3, 1)
    assert found[1][1]["prompt"] == [{"role": "user", "content": "a"}]
    assert found[2] == (f"{tmp_path}/short.parquet: row 1", PAIR)


def test_a_bad_mix_is_refused_before_anything_starts(tmp_path: Path) -> None:
    model = tiny_model.save(tmp_path / "start")
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + '\n{"prompt": "a"}\n')
    training: dict[str, Any] = {"mix": {"data": [str(short)]}}
    tree = {"run_dir": str(tmp_path), "sampling": {"model": model}, "training": training}
    with pytest.raises(ValueError, match=r"short.jsonl: line 2: chosen is neither text nor a list"):
        launch.check(Config.model_validate(tree))
    training["method"], training["data"] = "sft", [str(short)]
    with pytest.raises(ValueError, match=r"training\.mix: pairs can be mixed into dpo only"):
        source.urls(Training.model_validate(training), Store(str(tmp_path)))
