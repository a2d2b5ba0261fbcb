"""Rows of published files: JSON lines, a JSON list or parquet, each with its place."""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, NamedTuple, TypeVar

import orjson
import pyarrow.fs as pafs

from lr_ray import data
from lr_ray.store import filesystem

T = TypeVar("T")


class Row(NamedTuple):
    """A row and where it stands."""

    place: str
    raw: Mapping[str, Any]

    def text(self, key: str) -> str:
        """The text under `key`.

        Raises:
            ValueError: it is missing, no text, or empty.
        """
        value = self.raw.get(key)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise ValueError(f"{self.place}: {key} is {_what(value)}, not text")
        return str(value)

    def number(self, key: str) -> str:
        """The number under `key`, which may be written as text, as text.

        Raises:
            ValueError: it is missing or no number.
        """
        value = self.raw.get(key)
        try:
            if isinstance(value, bool) or not isfinite(float(value)):  # pyrefly: ignore
                raise ValueError
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.place}: {key} is {_what(value)}, not a number") from error
        return str(value).strip()

    def texts(self, key: str, least: int = 1) -> list[str]:
        """The list of texts under `key`.

        Raises:
            ValueError: it is no list of at least `least` texts.
        """
        value = self.raw.get(key)
        if not isinstance(value, list) or len(value) < least or not all(isinstance(v, str) for v in value):
            raise ValueError(f"{self.place}: {key} is no list of at least {least} texts")
        return value


def _what(value: Any) -> str:
    return "missing" if value is None else "empty" if value == "" else f"a {type(value).__name__}"


def exists(url: str) -> bool:
    """Whether there is a file or folder."""
    fs, path = filesystem(url)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def is_folder(url: str) -> bool:
    """Whether there is a folder."""
    fs, path = filesystem(url)
    return fs.get_file_info(path).type == pafs.FileType.Directory


def within(path: str, *names: str) -> str:
    """Of `names` the first that lies in the folder `path`, else the first; `path` itself if it is a file."""
    if not is_folder(path):
        return path
    inside = [f"{path.rstrip('/')}/{name}" for name in names]
    return next((url for url in inside if exists(url)), inside[0])


def beside(url: str, name: str) -> str:
    """The file of this name in the same folder, or below it."""
    return url[: url.rfind("/") + 1] + name


def rows(url: str, source: str) -> list[Row]:
    """Every row of a file.

    Raises:
        ValueError: there is no such file, with `source` saying where it is from; or a row is no object.
    """
    if not exists(url):
        raise ValueError(f"{url}: no such file; {source}")
    if url.endswith(".json"):
        found = [Row(f"{url}: item {number}", raw) for number, raw in enumerate(_list(url), 1)]
        for row in found:
            if not isinstance(row.raw, dict):
                raise ValueError(f"{row.place}: a {type(row.raw).__name__}, not a JSON object")
    else:
        found = [Row(str(place), raw) for place, raw in data.rows([url])]
    if not found:
        raise ValueError(f"{url}: no rows in there")
    return found


def _list(url: str) -> Iterator[Any]:
    parsed = parse(url)
    if not isinstance(parsed, list):
        raise ValueError(f"{url}: a {type(parsed).__name__}, not a JSON list")
    yield from parsed


def parse(url: str) -> Any:
    """The JSON in a file.

    Raises:
        ValueError: it is not valid.
    """
    fs, path = filesystem(url)
    with fs.open_input_stream(path) as stream:
        try:
            return orjson.loads(stream.read())
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{url}: not valid JSON: {error}") from error


def spread(items: Sequence[T], most: int | None) -> Sequence[T]:
    """At most so many of `items`, evenly from the first to the last."""
    if most is None or most >= len(items):
        return items
    return [items[index * len(items) // most] for index in range(most)]
