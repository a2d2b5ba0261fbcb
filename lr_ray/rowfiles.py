"""Rows in jsonl and parquet files: all of them with their places, or the one at a place."""

import fnmatch
import functools
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import orjson
import pyarrow.fs as pafs

from lr_ray import parquet
from lr_ray.store import filesystem, parted

SUFFIXES = (".jsonl", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
Raw = Mapping[str, Any]


class Place(NamedTuple):
    """Where a row lies: byte `start` and `length` in a jsonl file, or row `start` of row group `group`."""

    url: str
    group: int
    start: int
    length: int
    number: int

    def __str__(self) -> str:
        return f"{self.url}: {'line' if self.group < 0 else 'row'} {self.number}"


def rows(patterns: Sequence[str]) -> Iterator[tuple[Place, Raw]]:
    """Every row behind paths, folders or globs, with its place; one that is no JSON object is refused."""
    for pattern in patterns:
        for url in files(pattern):
            with _reached(url):
                yield from _lines(url) if parted(url)[0].endswith(".jsonl") else _groups(url)


@contextmanager
def _reached(url: str) -> Iterator[None]:
    """Errors of the Hub are of many kinds, and do not say what was asked for."""
    try:
        yield
    except Exception as error:
        if not url.startswith("hf://") or isinstance(error, ValueError):
            raise
        text = " ".join(str(error).split())
        raise ValueError(f"{url}: cannot be read: {type(error).__name__}: {text}") from error


def files(pattern: str) -> list[str]:
    """The jsonl and parquet files behind a path, a folder or a glob, sorted.

    Raises:
        ValueError: there is none.
    """
    with _reached(pattern):
        found = _inside(pattern)
    kept = sorted(name for name in found if parted(name)[0].endswith(SUFFIXES))
    if not kept:
        packed = [name for name in found if parted(name)[0].endswith(COMPRESSED)]
        what = f"{packed[0]}: compressed: decompress it first" if packed else ""
        raise ValueError(what or f"{pattern}: no .jsonl or .parquet file there")
    return kept


def _inside(pattern: str) -> list[str]:
    """The files behind a path, a folder or a glob."""
    fs, path = filesystem(pattern)
    url, options = parted(pattern)
    prefix = url.removesuffix(path) if "://" in pattern else ""
    if any(sign in path for sign in "*?["):
        base = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
        infos = fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        return [prefix + i.path + options for i in infos if i.is_file and fnmatch.fnmatchcase(i.path, path)]
    info = fs.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise ValueError(f"{pattern}: no such file")
    inside = [info] if info.is_file else fs.get_file_info(pafs.FileSelector(path))
    return [prefix + i.path + options for i in inside if i.is_file]


def _lines(url: str) -> Iterator[tuple[Place, Raw]]:
    fs, path = filesystem(url)
    start = 0
    with fs.open_input_stream(path) as stream:
        for number, line in enumerate(io.BufferedReader(stream, 1 << 20), 1):
            place = Place(url, -1, start, len(line), number)
            start += len(line)
            if line.strip():
                yield place, _parse(line, place)


def _parse(line: bytes, place: Place) -> Raw:
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        torn = "; the line is torn" if not line.endswith(b"\n") else ""
        what = f"not valid JSON: {error}{torn}" if _is_text(line) else "not UTF-8 text (is it compressed?)"
        raise ValueError(f"{place}: {what}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{place}: a {kind_of(raw)}, not a JSON object")
    return raw


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"  # torn within a character
    return b"\0" not in line


def _groups(url: str) -> Iterator[tuple[Place, Raw]]:
    number = 0
    with parquet.opened(*filesystem(url), url) as file:
        for group in range(file.num_row_groups):
            for row, raw in enumerate(file.read_row_group(group).to_pylist()):
                number += 1
                # Parquet has every column in every row: what is null is not there.
                yield Place(url, group, row, 0, number), {k: v for k, v in raw.items() if v is not None}


def row_at(place: Place) -> Raw:
    """The row that was found at `place`."""
    fs, path = filesystem(place.url)
    if place.group >= 0:
        row = _row_group(place.url, place.group)[place.start]
        return {key: value for key, value in row.items() if value is not None}
    with fs.open_input_file(path) as file:
        file.seek(place.start)
        return _parse(file.read(place.length), place)


@functools.lru_cache(maxsize=2)
def _row_group(url: str, group: int) -> list[Raw]:
    with parquet.opened(*filesystem(url), url) as file:
        return file.read_row_group(group).to_pylist()


def kind_of(value: Any) -> str:
    """What a value of JSON is, in a word."""
    names = {type(None): "missing value", int: "number", float: "number", dict: "mapping", str: "empty text"}
    return names.get(type(value), type(value).__name__)
