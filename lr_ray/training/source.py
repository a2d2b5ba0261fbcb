"""Training rows as they lie on disk: read once, kept compact, opened when their turn comes."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from lr_ray.data import files
from lr_ray.store import Store, filesystem

_COLUMNS = {"dpo": ["prompt", "chosen", "rejected"], "sft": ["messages"]}
Opened = tuple[str, Mapping[str, Any]]


class Rows(Sequence[Opened]):
    """(name, row) by number. `name` says file and line for messages to the user.

    Parquet stays in arrow memory and jsonl as bytes, so that thousands of long documents fit.
    """

    def __init__(self, parts: Sequence[tuple[str, pa.Table | list[tuple[int, bytes]]]]) -> None:
        self._parts = parts
        self._ends = list(itertools.accumulate(len(content) for _, content in parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Opened:  # type: ignore[override]
        part = next(number for number, end in enumerate(self._ends) if index < end)
        url, content = self._parts[part]
        row = index - (self._ends[part] - len(content))
        if isinstance(content, pa.Table):
            return f"{url}: row {row + 1}", content.slice(row, 1).to_pylist()[0]
        number, line = content[row]
        return f"{url}: line {number}", orjson.loads(line)


def read(method: str, data: Sequence[str], store: Store) -> Rows:
    """The rows of `data` (files, folders, globs), or for dpo without it the run's own pairs.

    Raises:
        ValueError: no rows, a file that lacks a column, or a line that is not a JSON object.
    """
    if method == "sft" and not data:
        raise ValueError("training.data: sft needs jsonl or parquet files with messages")
    urls = [url for pattern in data for url in files(pattern)]
    if not data:
        urls = ["/".join((store.url, "pairs", name)) for name in store.files("pairs")]
    parts = [(url, _lines(url) if url.endswith(".jsonl") else _table(url, _COLUMNS[method])) for url in urls]
    rows = Rows([(url, content) for url, content in parts if len(content)])
    if not len(rows):
        raise ValueError(f"{', '.join(data) or store.url + '/pairs'}: no rows to train on")
    return rows


def _table(url: str, columns: list[str]) -> pa.Table:
    fs, path = filesystem(url)
    with fs.open_input_file(path) as file:
        parquet = pq.ParquetFile(file)
        missing = [column for column in columns if column not in parquet.schema_arrow.names]
        if missing:
            raise ValueError(f"{url}: no column {', '.join(missing)}")
        return parquet.read(columns=columns)


def _lines(url: str) -> list[tuple[int, bytes]]:
    fs, path = filesystem(url)
    with fs.open_input_stream(path) as stream:
        lines = [(number, line) for number, line in enumerate(stream.read().split(b"\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{url}: line {number}: not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{url}: line {number}: not a JSON object")
    return lines
