"""Documents that are rows: of jsonl and parquet files, a few in memory at once."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from lr_ray.synthesis import pages

FIELDS = ("text", "content", "document", "context")  # of a row; the first that is there is the document
ROWS, BYTES = 16, 64 << 20  # of a parquet file in memory at once; one row if it is larger
BUFFER = 1 << 20  # bytes of the file as it is stored
UNFOLDED, SPACE = 1000, 1 << 30  # bytes all its texts may have: so many for each of its own, or the latter
ROW = 100  # bytes a row counts as at least
UTF8 = 4  # bytes of a character at most
TOO_LARGE, NOT_TEXT = "larger than synthesis.max_document_mb", "not UTF-8 text"
UNFOLDS = "unfolds to far more than its file holds"

T = TypeVar("T")


class Dropped(str):
    """Why a document has no text."""


def lines(file: str, stream: Any, most: int) -> Iterator[tuple[str, str]]:
    """Name and text of each row of a jsonl file; a line is never held beyond the bound.

    Raises:
        ValueError: a line is no JSON object with a text.
    """
    longest = 2 * most + 65536  # of a line: its JSON escapes what is not ASCII, and other fields stand beside
    reader = io.BufferedReader(stream, 1 << 20)
    number = 0
    while line := reader.readline(longest):
        number += 1
        name = f"{file}: line {number}"
        if len(line) == longest and not line.endswith(b"\n"):
            while (more := reader.readline(longest)) and not more.endswith(b"\n"):
                pass
            yield name, Dropped(TOO_LARGE)
        elif line.strip():
            yield name, _text(_parsed(line, name), name, most)


def _parsed(line: bytes, name: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"{name}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{name}: not a JSON object")
    return row


def groups(file: str, stream: Any, size: int, most: int) -> Iterator[tuple[str, str]]:
    """Name and text of each row of a parquet file, a few rows and its text column alone in memory.

    What unfolds beyond bounds, a page or all texts of the file, is one dropped document with its rows.

    Raises:
        ValueError: the file is damaged, or a row has no text.
    """
    number, room = 0, max(SPACE, UNFOLDED * size)
    metadata = _parquet(file, pq.read_metadata, stream)
    field, column = _column(file, metadata)
    settings: dict[str, Any] = {"metadata": metadata, "pre_buffer": False, "buffer_size": BUFFER}
    parquet = _parquet(file, partial(pq.ParquetFile, **settings), stream)
    for group in range(metadata.num_row_groups):
        of_group = metadata.row_group(group)
        # A value may be that large, and a dictionary has many rows name it.
        largest = _parquet(file, pages.largest, stream, of_group.column(column))
        if largest is None:
            yield f"{file}: rows from {number + 1}", Dropped(UNFOLDS)
            number += of_group.num_rows
            continue
        rows = min(ROWS, max(1, BYTES // max(1, largest)))
        batches = parquet.iter_batches(rows, row_groups=[group], columns=[field])
        while (batch := _parquet(file, next, batches, None)) is not None:
            for value in _values(batch.column(0), most):
                number += 1
                name = f"{file}: row {number}"
                room -= max(ROW, len(value or ""))
                if room < 0:
                    yield f"{file}: rows from {number}", Dropped(UNFOLDS)
                    return
                yield name, value if isinstance(value, Dropped) else _text({field: value}, name, most)


def _column(name: str, metadata: pq.FileMetaData) -> tuple[str, int]:
    """The name of the text column and its number."""
    names = _parquet(name, metadata.schema.to_arrow_schema).names
    field = next((one for one in FIELDS if one in names), None)
    if field is None:
        raise ValueError(f"{name}: no column {', '.join(FIELDS)}")
    columns = [metadata.schema.column(number) for number in range(metadata.num_columns)]
    for number, column in enumerate(columns):
        if column.path == field and column.physical_type == "BYTE_ARRAY":
            return field, number
    raise ValueError(f"{name}: no text in {field}")


def _values(column: pa.Array, most: int) -> Iterator[str | None]:
    """The text of each row, made when its turn comes, and not at all where it is too large."""
    for value in column:
        text = value.value if isinstance(value, pa.DictionaryScalar) else value
        data = text.as_buffer() if text.is_valid else None
        if data is not None and data.size > UTF8 * most:
            yield Dropped(TOO_LARGE)
            continue
        try:
            yield text.as_py()
        except UnicodeDecodeError:
            yield Dropped(NOT_TEXT)


def _parquet(name: str, work: Callable[..., T], *given: Any) -> T:
    try:
        return work(*given)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: not a whole parquet file: {error}") from error


def _text(row: dict[str, Any], name: str, most: int) -> str:
    field = next((field for field in FIELDS if row.get(field) is not None), None)
    text = row.get(field) if field else None
    if not isinstance(text, str):
        raise ValueError(f"{name}: no text in {', '.join(FIELDS)}")
    return Dropped(TOO_LARGE) if len(text) > most else text
