"""Documents in: files of six kinds → rows of kind "document", each with its text or the reason it has none.

Documents are hostile. HTML and PDF are opened in a process of their own (`extract`), everything is read up
to a bound, and a name that comes from data is only ever shown.
"""

import codecs
import fnmatch
import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow.fs as pafs

from lr_ray.config import Synthesis
from lr_ray.judge.chunks import Measure
from lr_ray.llm.messages import language
from lr_ray.rows import Document
from lr_ray.store import filesystem, parted
from lr_ray.synthesis import extract, tables
from lr_ray.synthesis.tables import NOT_TEXT, TOO_LARGE, Dropped

KINDS = {
    **dict.fromkeys((".txt", ".text", ".md", ".markdown"), "text"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "html"),
    **{".pdf": "pdf", ".jsonl": "jsonl", ".parquet": "parquet"},
}
SHORTEST = 200  # tokens; a document with fewer is none
SECONDS = 180  # until a file that is being opened is given up; of CPU it gets less
OF = "的"

_HAN = re.compile("[\u4e00-\u9fff]")
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
    address, options = parted(pattern)
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
    fs, path = filesystem(file.url)
    if kind == "jsonl":
        with fs.open_input_stream(path) as stream:
            for name, text in tables.lines(file.name, stream, most):
                yield _document(name, text, most, measure)
    elif kind == "parquet":
        with fs.open_input_file(path) as stream:
            for name, text in tables.groups(file.name, stream, file.size, most):
                yield _document(name, text, most, measure)
    else:
        yield _document(file.name, _opened(file, str(kind), most), most, measure)


def _opened(file: File, kind: str, most: int) -> str:
    if file.size > most:
        return Dropped(TOO_LARGE)
    fs, path = filesystem(file.url)
    with fs.open_input_stream(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        return Dropped(TOO_LARGE)
    if kind == "text":
        return _decoded(data)
    return extracted(data, kind, most)


def _decoded(data: bytes) -> str:
    """Text in UTF-8, in UTF-16 with its mark, or in GB18030 where it is no other; else it is dropped."""
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = _in(data, "utf-16" if marked else "utf-8")
    if text is None and not marked:
        text = _chinese(data)
    return Dropped(NOT_TEXT) if text is None or "\0" in text else text


def _in(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except ValueError:
        return None


def _chinese(data: bytes) -> str | None:
    """The text if it is Chinese prose in GB18030.

    Nearly all bytes are characters of GB18030, so that is no sign of it. Prose is: half of it and more are
    Chinese characters, and every thirtieth is "of", which other encodings' texts come upon by chance only.
    """
    text = _in(data, "gb18030") or ""
    characters = len(_HAN.findall(text))
    return text if characters * 2 >= len(text) and text.count(OF) * 100 >= characters > 0 else None


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
            dropped = TOO_LARGE
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
