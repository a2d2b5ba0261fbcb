"""Training rows as they lie on disk: read once, kept compact, opened when their turn comes."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa

from lr_ray import data, parquet
from lr_ray.config import Training
from lr_ray.store import Store, filesystem
from lr_ray.training.preference import conversational

_NEEDED = {"dpo": ["chosen", "rejected"], "sft": ["messages"]}
_USED = {"dpo": ["prompt", "score_chosen", "score_rejected"], "sft": []}
Opened = tuple[str, Mapping[str, Any]]
Part = tuple[str, pa.Table | list[tuple[int, bytes]]]
"""A file's URL and its rows: a table, or line numbers with lines."""


class Rows(Sequence[Opened]):
    """(name, row) by number. `name` says file and line for messages to the user.

    The first `main` rows are the run's pairs or `training.data`, the others those of `training.mix`.
    Parquet stays in arrow memory and jsonl as bytes, so that thousands of long documents fit.
    """

    def __init__(self, method: str, parts: Sequence[Part], main: int) -> None:
        self._parts, self._method = parts, method
        self._ends = list(itertools.accumulate(len(content) for _, content in parts))
        self.main = sum(len(content) for _, content in parts[:main])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Opened:  # type: ignore[override]
        part = next(number for number, end in enumerate(self._ends) if index < end)
        url, content = self._parts[part]
        row = index - (self._ends[part] - len(content))
        if isinstance(content, pa.Table):
            return opened(self._method, f"{url}: row {row + 1}", content.slice(row, 1).to_pylist()[0])
        number, line = content[row]
        return opened(self._method, f"{url}: line {number}", orjson.loads(line))


def opened(method: str, name: str, row: Mapping[str, Any]) -> Opened:
    """A row as training takes it: pairs in TRL's conversational format.

    Raises:
        ValueError: the row is not of that kind, in one sentence with its `name`.
    """
    return name, conversational(row, name) if method == "dpo" else row


def read(training: Training, store: Store) -> Rows:
    """The rows of `training.data`, or for dpo without it the run's own pairs, then those of the mix.

    Raises:
        ValueError: no rows, a file that lacks a column, or a line that is not a JSON object.
    """
    main, mixed = urls(training, store)
    parts = [(url, _lines(url) if url.endswith(".jsonl") else _table(url, training.method)) for url in main]
    rows = Rows(training.method, parts, len(parts))
    if not len(rows):
        raise ValueError(f"{', '.join(training.data) or store.url + '/pairs'}: no rows to train on")
    short = [(url, _lines(url) if url.endswith(".jsonl") else _table(url, "dpo")) for url in mixed]
    return Rows(training.method, parts + short, len(parts))


def urls(training: Training, store: Store) -> tuple[list[str], list[str]]:
    """The files of the main rows and those of the mix.

    Raises:
        ValueError: a pattern without a file; sft without data or with a mix of pairs.
    """
    if training.method == "sft" and not training.data:
        raise ValueError("training.data: sft needs jsonl or parquet files with messages")
    if training.method == "sft" and training.mix:
        raise ValueError("training.mix: pairs can be mixed into dpo only")
    main = [url for pattern in training.data for url in data.files(pattern)]
    if not training.data:
        main = [store.sub("pairs", name).url for name in store.files("pairs")]
    return main, [url for pattern in _mixed(training) for url in data.files(pattern)]


def _mixed(training: Training) -> list[str]:
    return training.mix.data if training.mix else []


def check(training: Training) -> None:
    """Look at every row of the user's own files, before anything is paid.

    Raises:
        ValueError: one sentence naming the file, the row and the fault.
    """
    for place, raw in data.rows([*training.data, *_mixed(training)]):
        opened(training.method, str(place), raw)
        if training.method == "sft" and not isinstance(raw.get("messages"), list):
            raise ValueError(f"{place}: messages is not a list with at least one message")


def _table(url: str, method: str) -> pa.Table:
    with parquet.opened(*filesystem(url), url) as file:
        there = file.schema_arrow.names
        missing = [column for column in _NEEDED[method] if column not in there]
        if missing:
            raise ValueError(f"{url}: no column {', '.join(missing)}")
        return file.read(columns=[name for name in _NEEDED[method] + _USED[method] if name in there])


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
