"""Documents in: files of six kinds → rows of kind "document", each with its text or the reason it has none.

Documents are hostile. HTML and PDF are opened in a process of their own (`extract`), everything is read up
to a bound, and a name that comes from data is only ever shown.
"""

import fnmatch
import hashlib
import io
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lr_ray.config import Synthesis
from lr_ray.judge.chunks import Measure
from lr_ray.llm.messages import language
from lr_ray.rows import Document
from lr_ray.store import filesystem
from lr_ray.synthesis import extract

KINDS = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **{".pdf": "pdf", ".jsonl": "jsonl", ".parquet": "parquet"},
}
FIELDS = ("text", "content", "document", "context")  # of a row; the first that is there is the document
SHORTEST = 200  # tokens; a document with fewer is none
SECONDS = 180  # until a file that is being opened is given up; of CPU it gets less
ROWS = 16  # of a parquet file in memory at once

T = TypeVar("T")

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")


class File(NamedTuple):
    """A file of documents: its URL without and with the options of its file system, and its size in bytes."""

    name: str
    url: str
    size: int


class Files(NamedTuple):
    """Files of documents in order of their URLs, and how many of other kinds lie beside them."""

    found: list[File]
    others: int


def files(patterns: list[str]) -> Files:
    """The files of documents behind paths, globs and folders (with all below them), each once.

    Raises:
        ValueError: nothing is named, a pattern without a file of a known kind, or a name that is not UTF-8.
    """
    if not patterns:
        raise ValueError("synthesis.documents is not set: name files or folders of documents")
    found: dict[str, File] = {}
    others = 0
    for pattern in patterns:
        try:
            there = list(_behind(pattern))
        except UnicodeDecodeError as error:  # pyarrow cannot say which file it is
            raise ValueError(f"{pattern}: a file there has a name that is not UTF-8") from error
        known = [file for file in there if _kind(file.name)]
        if not known:
            kinds = ", ".join(KINDS)
            raise ValueError(f"{pattern}: no document there, which would be a file of {kinds}")
        others += len(there) - len(known)
        found.update((file.name, file) for file in known)
    return Files([found[name] for name in sorted(found)], others)


def _behind(pattern: str) -> Iterator[File]:
    address, options = pattern, ""
    if found := re.fullmatch(r"(\w+://.*?)(\?\w+=.*)", pattern):
        address, options = found[1], found[2]
    address = address.rstrip("/") or "/"
    fs, path = filesystem(address + options)
    prefix = address.removesuffix(path) if "://" in address else ""
    glob = any(sign in path for sign in "*?[")
    info = None if glob else fs.get_file_info(path)
    if info is not None and info.type == pafs.FileType.NotFound:
        raise ValueError(f"{pattern}: no such file")
    if info is not None and info.is_file:
        yield File(prefix + path, prefix + path + options, info.size)
        return
    base = re.split(r"[*?\[]", path)[0].rpartition("/")[0] if glob else path
    for one in fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True)):
        wanted = not glob or fnmatch.fnmatchcase(one.path, path)
        if one.is_file and wanted and not one.base_name.startswith("."):
            yield File(prefix + one.path, prefix + one.path + options, one.size)


def _kind(url: str) -> str | None:
    dot = url.rfind(".")
    return KINDS.get(url[dot:].lower()) if dot >= 0 else None


def read(file: File, settings: Synthesis, measure: Measure) -> Iterator[Document]:
    """The documents of a file; `dropped` says why one has no text.

    Raises:
        ValueError: a jsonl or parquet file is damaged, or its rows hold no text.
    """
    most = int(settings.max_document_mb * 1e6)
    kind = _kind(file.name)
    if kind in ("jsonl", "parquet"):
        for name, text in (_lines if kind == "jsonl" else _groups)(file, most):
            yield _document(name, text, most, measure)
    else:
        yield _document(file.name, _opened(file, str(kind), most), most, measure)


class Dropped(str):
    """Why a document has no text."""


def _opened(file: File, kind: str, most: int) -> str:
    if file.size > most:
        return Dropped("larger than synthesis.max_document_mb")
    fs, path = filesystem(file.url)
    with fs.open_input_stream(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        return Dropped("larger than synthesis.max_document_mb")
    if kind == "text":
        return _decoded(data)
    return extracted(data, kind, most)


def _decoded(data: bytes) -> str:
    marks = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    encoding = next((name for mark, name in marks if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except ValueError:
        return Dropped("not UTF-8 text")
    return Dropped("not UTF-8 text") if "\0" in text else text


def extracted(data: bytes, kind: str, most: int, seconds: float = SECONDS) -> str:
    """The text of an HTML or PDF file of at most `most` bytes, or why it has none; see `extract`."""
    program = Path(extract.__file__).resolve()
    command = [sys.executable, "-I", str(program), kind, str(most)]
    try:
        done = subprocess.run(  # noqa: S603 - nothing of it comes from data
            command, input=data, capture_output=True, timeout=seconds, env={}, cwd="/", check=False
        )
    except subprocess.TimeoutExpired:
        return Dropped("reading it takes too long")
    if done.returncode == 0:
        return done.stdout.decode("utf-8", "replace")
    if done.returncode == extract.NONE:
        return Dropped(done.stderr.decode())
    # By a signal it is ended at the limit of time.
    return Dropped("reading it takes too long" if done.returncode < 0 else "its parser fails on it")


def _document(name: str, text: str, most: int, measure: Measure) -> Document:
    tokens, dropped = 0, str(text) if isinstance(text, Dropped) else None
    if dropped is None:
        text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n")).strip()
        tokens = int(measure.upto(text)[-1]) // measure.unit if text else 0
        if len(text) > most:
            dropped = "larger than synthesis.max_document_mb"
        elif tokens < SHORTEST:
            dropped = "no text" if not text else f"shorter than {SHORTEST} tokens"
    kept = "" if dropped else text
    return {
        "prompt_id": "doc-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:24],
        "name": name,
        "digest": hashlib.sha256(" ".join(kept.split()).encode("utf-8", "surrogatepass")).hexdigest(),
        "language": language(kept),
        "tokens": tokens,
        "text": kept,
        "dropped": dropped,
    }


def _lines(file: File, most: int) -> Iterator[tuple[str, str]]:
    """Name and text of each row of a jsonl file; a line is never held beyond the bound."""
    fs, path = filesystem(file.url)
    longest = 2 * most + 65536  # of a line: its JSON escapes what is not ASCII, and other fields stand beside
    with fs.open_input_stream(path) as stream:
        reader = io.BufferedReader(stream, 1 << 20)  # pyrefly: ignore
        number = 0
        while line := reader.readline(longest):
            number += 1
            name = f"{file.name}: line {number}"
            if len(line) == longest and not line.endswith(b"\n"):
                while (more := reader.readline(longest)) and not more.endswith(b"\n"):
                    pass
                yield name, Dropped("larger than synthesis.max_document_mb")
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


def _groups(file: File, most: int) -> Iterator[tuple[str, str]]:
    """Name and text of each row of a parquet file, a few rows and its text column alone in memory."""
    fs, path = filesystem(file.url)
    with fs.open_input_file(path) as stream:
        parquet = _parquet(file.name, lambda: pq.ParquetFile(stream))
        field = next((name for name in FIELDS if name in parquet.schema_arrow.names), None)
        if field is None:
            raise ValueError(f"{file.name}: no column {', '.join(FIELDS)}")
        number = 0
        batches = parquet.iter_batches(ROWS, columns=[field])
        while (batch := _parquet(file.name, lambda: next(batches, None))) is not None:
            for value in batch.to_pydict()[field]:
                number += 1
                name = f"{file.name}: row {number}"
                yield name, _text({field: value}, name, most)


def _parquet(name: str, work: Callable[[], T]) -> T:
    try:
        return work()
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{name}: not a whole parquet file: {error}") from error


def _text(row: dict[str, Any], name: str, most: int) -> str:
    field = next((field for field in FIELDS if row.get(field) is not None), None)
    text = row.get(field) if field else None
    if not isinstance(text, str):
        raise ValueError(f"{name}: no text in {', '.join(FIELDS)}")
    return Dropped("larger than synthesis.max_document_mb") if len(text) > most else text
