"""The run directory: whole files only, rows once, ids as the record of what is done."""

import os
import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from lr_ray.schemas import FAILED
from lr_ray.store import Store

ROWS = [{"prompt_id": f"p{n}", "stage": "judge", "reason": "because"} for n in range(5)]


def test_rows_come_back_once_however_often_they_are_written(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.write_rows("failed", ROWS[:3], FAILED)
    store.write_rows("failed", ROWS[:3], FAILED)  # a retried task
    store.write_rows("failed", ROWS[2:], FAILED)  # the same row in another batch
    assert sorted(row["prompt_id"] for row in store.rows("failed")) == ["p0", "p1", "p2", "p3", "p4"]
    assert len(store.files("failed")) == 2
    assert set(store.index("failed")) == {"p0", "p1", "p2", "p3", "p4"}


def test_rows_of_other_ids_never_lie_in_the_same_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    for ids in (["a", "b"], ["a\0b"], ["a,b"], ['a","b']):
        store.write_rows("failed", [{**ROWS[0], "prompt_id": one} for one in ids], FAILED)
    assert set(store.index("failed")) == {"a", "b", "a\0b", "a,b", 'a","b'}


def test_half_written_files_do_not_count(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.write_rows("failed", ROWS, FAILED)
    (tmp_path / "run" / "failed" / ".torn.parquet.tmp").write_bytes(b"PAR1 torn")
    assert len(store.index("failed")) == 5


def test_an_empty_run_directory_has_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "none"))
    assert store.index("judged") == {}
    assert list(store.rows("judged")) == []
    assert store.read("config.yaml") is None


def test_travels_to_other_processes(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write(b"x", "a", "b.txt")
    assert pickle.loads(pickle.dumps(store)).read("a", "b.txt") == b"x"


def test_other_file_systems_by_uri(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/run")
    store.write_rows("failed", ROWS, FAILED)
    assert len(store.index("failed")) == 5
    with pytest.raises(ValueError, match="nosuch://"):
        Store("nosuch://bucket/run")


def test_prompt_ids_never_become_paths(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.write_rows("failed", [{"prompt_id": "../../evil", "stage": "s", "reason": "r"}], FAILED)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    assert list(store.index("failed")) == ["../../evil"]


def test_schema_refuses_what_is_no_row(tmp_path: Path) -> None:
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        Store(str(tmp_path)).write_rows("failed", [{"prompt_id": "a", "stage": "s", "reason": 5}], FAILED)


def test_a_file_is_durable_when_written_and_a_failure_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, synced = Store(str(tmp_path)), []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), real(file))
    )
    store.write(b"old", "a", "x")
    assert synced[0].startswith(f"{tmp_path}/a/.x.")
    assert synced[1] == f"{tmp_path}/a"
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match=f"^cannot write {tmp_path}/a/x: no space left$"):
        store.write(b"new", "a", "x")
    assert os.listdir(tmp_path / "a") == ["x"]
    assert store.read("a", "x") == b"old"


def test_a_url_with_options_has_runs_inside_and_keys_in_it_are_refused() -> None:
    inner = Store("s3://bucket/run?scheme=http&region=r").sub("evaluation", "before")
    assert inner.url == "s3://bucket/run/evaluation/before?scheme=http&region=r"
    assert inner.root == "bucket/run/evaluation/before"
    with pytest.raises(ValueError, match=r"^s3://…@bucket: keys belong in the environment") as refused:
        Store("s3://someone:hunter2@bucket/run")
    assert "hunter2" not in str(refused.value)


def test_a_relative_path_means_the_same_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Store("run"))
    monkeypatch.chdir("/")
    assert pickle.loads(sent).root == f"{tmp_path}/run"
