"""Documents in parquet files, whatever wrote them, and those that unfold to far more than they hold."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lr_ray.synthesis import pages, tables
from lr_ray.synthesis.tables import Dropped

BRIDGES = ["The bridge. " * 400, "桥梁的故事。" * 300, "Short."]
MOST = 100_000


def groups(path: Path, size: int | None = None) -> list[tuple[str, str]]:
    with pa.OSFile(str(path)) as stream:
        return list(tables.groups("f", stream, size or path.stat().st_size, MOST))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"compression": "zstd", "data_page_version": "2.0", "row_group_size": 2},
        {"compression": "none", "use_dictionary": False},
        {"compression": "gzip", "data_page_size": 1, "write_page_index": True, "write_page_checksum": True},
    ],
)
def test_every_row_of_every_writer_is_read(tmp_path: Path, kind: Any, settings: dict[str, Any]) -> None:
    path = tmp_path / "a.parquet"
    numbers = pa.array(range(6))
    pq.write_table(pa.table({"id": numbers, "text": pa.array(BRIDGES * 2).cast(kind)}), path, **settings)
    assert groups(path) == [(f"f: row {number}", text) for number, text in enumerate(BRIDGES * 2, 1)]


def test_sizes_of_pages_are_those_of_their_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": ["x" * 50_000] * 2}), path, use_dictionary=False, data_page_version="1.0"
    )
    column = pq.read_metadata(path).row_group(0).column(0)
    with pa.OSFile(str(path)) as stream:
        largest = pages.largest(stream, column)
    assert largest is not None
    assert 100_000 < largest <= column.total_uncompressed_size


def test_a_struct_is_passed_over_whatever_it_holds() -> None:
    fields = bytes(
        [0x15, 0x02, 0x15, 0xC8, 0x01, 0x25, 0x06, 0x1C, 0x18, 0x02, 0x15, 0x02, 0x11, 0x12, 0x00, 0x00]
    )
    found, length = pages.numbers(fields + b"rest")
    assert found == {1: 1, 2: 100, 4: 3}
    assert length == len(fields)
    with pytest.raises(IndexError):
        pages.numbers(fields[:-1])
    with pytest.raises(ValueError, match="64 bits"):
        pages.numbers(b"\x15" + b"\xff" * 20)


def written(path: Path, text: str, rows: int) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([text]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd", store_schema=False)


READ = """
import pyarrow as pa, resource, sys
from lr_ray.synthesis import tables
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
path, before = sys.argv[1], peak()
with pa.OSFile(path) as stream:
    found = tables.groups("f", stream, stream.size(), 32 << 20)
    rows = [(name, type(text).__name__, len(text)) for name, text in found]
print(peak() - before, rows[-1])
"""


def peak(path: Path) -> tuple[int, str]:
    """MiB that reading a file takes at most, and its last row."""
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, check=True)
    size, last = done.stdout.split(maxsplit=1)
    return int(size), last.strip()


def test_a_page_that_unfolds_beyond_bounds_is_never_unfolded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    written(path, "a" * 100_000_000, 1)
    assert path.stat().st_size < 20_000
    assert peak(path) == (pytest.approx(0, abs=60), str(("f: rows from 1", "Dropped", len(tables.UNFOLDS))))


def test_a_footer_that_lies_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bomb.parquet"
    written(path, "a" * 70_000_000, 1)
    column = pq.read_metadata(path).row_group(0).column(0)
    told, lie = varint(column.total_uncompressed_size), varint(9)
    assert (len(told), len(lie)) == (4, 1)
    path.write_bytes(path.read_bytes().replace(told, bytes([lie[0] | 128, 128, 128, 0])))
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 9
    assert groups(path) == [("f: rows from 1", Dropped(tables.UNFOLDS))]


def varint(number: int) -> bytes:
    """As Thrift writes a positive number."""
    number, found = number << 1, []
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def test_a_value_that_many_rows_name_is_not_made_for_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "same.parquet"
    written(path, "a" * 30_000_000, 40)
    size, last = peak(path)
    assert last == str(("f: rows from 36", "Dropped", len(tables.UNFOLDS)))  # those before have a gigabyte
    assert size < 350


def test_rows_go_on_after_a_group_that_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "mixed.parquet"
    with pq.ParquetWriter(path, pa.schema({"text": pa.string()}), compression="zstd") as writer:
        for texts in (["one"], ["a" * 70_000_000, "two"], ["three"]):
            writer.write_table(pa.table({"text": texts}))
    assert groups(path) == [
        ("f: row 1", "one"),
        ("f: rows from 2", Dropped(tables.UNFOLDS)),
        ("f: row 4", "three"),
    ]


def test_a_text_over_the_bound_or_not_utf_8_is_dropped_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    bad = pa.array([b"\xff", b"fine", b"\xff" * (4 * MOST + 1)]).view(pa.string())
    pq.write_table(pa.table({"text": bad}), path)
    assert [(type(text), str(text)) for _, text in groups(path)] == [
        (Dropped, "not UTF-8 text"),
        (str, "fine"),
        (Dropped, "larger than synthesis.max_document_mb"),  # so it was not even decoded
    ]


def test_rows_without_end_are_not_all_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "empty.parquet"
    written(path, "", 1000)
    monkeypatch.setattr(tables, "SPACE", 10_000)
    monkeypatch.setattr(tables, "UNFOLDED", 1)
    found = groups(path)
    assert len(found) == 101
    assert found[-1] == ("f: rows from 101", Dropped(tables.UNFOLDS))


@pytest.mark.parametrize(
    ("column", "says"),
    [
        (pa.array([1]), "no text in text"),
        (pa.array([["a"]]), "no text in text"),
        (pa.array([None], pa.string()), "row 1: no text in text, content"),
    ],
)
def test_a_column_that_is_no_text_is_named(tmp_path: Path, column: Any, says: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": column}), path)
    with pytest.raises(ValueError, match=says):
        groups(path)


def test_pages_that_are_none_are_said(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["x" * 1000]}), path, compression="none")
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36
    path.write_bytes(data)
    with pytest.raises(ValueError, match="f: not a whole parquet file"):
        groups(path)
