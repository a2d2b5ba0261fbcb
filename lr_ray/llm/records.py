"""What the ledger's folder holds, and how a prompt's records are found in it without reading all of it.

    calls/SEGMENT.jsonl                        records, one a line; one writer each, whose name (`writer`) the
                                               segment's begins with. Of a segment merged from others the
                                               first line says which: where one of these is still there, its
                                               records are there twice
    calls/index/SEGMENT.START-END.COUNT.idx    where the records in bytes START to END of a segment lie

An index part is derived: it may be deleted at any time, and whoever needs it makes it again. It holds
`COUNT` entries of 20 bytes sorted by prompt, then the prompt of every 512th entry, so that a look-up reads a
few KB. Parts are cut after `PART_RECORDS` records or `PART_BYTES` bytes: that bounds what is in memory,
whatever a segment's size. A torn last line, of a writer that was killed, is not a record.
"""

import hashlib
import os
import re
import socket
import uuid
from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, Self, TypedDict, cast

import numpy as np
import numpy.typing as npt
import orjson

from lr_ray.store import Store

FOLDER = "calls"
INDEX = "calls/index"
SUFFIX = ".jsonl"
MERGED = "merged"  # key of the first line of a segment that was merged: the names of its sources
MERGED_SUFFIX = f"-merged{SUFFIX}"
PART_RECORDS = 32_768
PART_BYTES = 32 << 20
FENCE = 512  # entries between two prompts of a part that are read when it is opened
BLOCK = 4 << 20  # bytes of a segment read at once

_ENTRY = np.dtype([("prompt", "<u8"), ("offset", "<u8"), ("length", "<u4")])
_PART = re.compile(r"(.+)\.(\d+)-(\d+)\.(\d+)\.idx")
_WRITER = re.compile(r"(.+-\d+)-[0-9a-f]{12}\b")
_HEAD = b'{"prompt_id":"'


class Record(TypedDict):
    """A line of a segment. `reply` is what the endpoint gave, whether usable or not: it was paid."""

    prompt_id: str
    key: str
    unit: str
    reply: dict[str, Any]


class Pointer(NamedTuple):
    """Where a record lies: bytes `offset` to `offset + length` of a segment."""

    segment: str
    offset: int
    length: int


def process() -> str:
    """This process as names of segments know it; a later process may be called the same."""
    return f"{socket.gethostname()}-{os.getpid()}"


def writer() -> str:
    """A new writer's name: two processes, or two lives of one actor, never write the same segment."""
    return f"{process()}-{uuid.uuid4().hex[:12]}"


def process_of(segment: str) -> str:
    """`process` of who wrote the segment; all of its name where it is not one of ours."""
    found = _WRITER.match(segment)
    return found[1] if found else segment


def dump(record: Record) -> bytes:
    """The record's line."""
    return orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)


def parse(line: bytes) -> Record | None:
    """The record in a line; None where a disk gave back something else."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    whole = isinstance(record, dict) and record.keys() == Record.__annotations__.keys()
    return cast(Record, record) if whole else None


def sources(line: bytes) -> set[str]:
    """The segments whose records a merged one holds, by its first line; none where that is a record."""
    try:
        first = orjson.loads(line)
    except orjson.JSONDecodeError:
        return set()
    return set(first[MERGED]) if isinstance(first, dict) and first.keys() == {MERGED} else set()


def merged_away(store: Store) -> set[str]:
    """Segments whose records stand in another too: its writer died before it removed them."""
    segments = store.files(FOLDER, SUFFIX)
    found: set[str] = set()
    for name in segments:
        if name.endswith(MERGED_SUFFIX):
            found |= sources(next(lines(store, name), b""))
    return found & set(segments)


def prompt_hash(prompt_id: str) -> int:
    """What entries know a prompt by: 8 bytes. Two prompts may share it; their records tell them apart."""
    return _hash(orjson.dumps(prompt_id)[1:-1])


@lru_cache(4096)
def _hash(escaped: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(escaped, digest_size=8).digest(), "little")


def _prompt(line: bytes) -> int | None:
    """The prompt hash of a line, None when it is no record: without parsing all of it, as lines are many."""
    end = line.find(b'","key":"', len(_HEAD))
    if line.startswith(_HEAD) and end > 0 and line.endswith(b"}"):
        return _hash(line[len(_HEAD) : end])
    record = parse(line)
    return prompt_hash(record["prompt_id"]) if record else None


class Tail:
    """Entries of the records from byte `start` of a segment on that are in no part yet; `end` is the
    end of the last line seen."""

    def __init__(self, start: int = 0) -> None:
        self.start = self.end = start
        self._prompts, self._offsets, self._lengths = array("Q"), array("Q"), array("I")

    def __len__(self) -> int:
        return len(self._prompts)

    def add(self, line: bytes) -> None:
        """Take the next line of the segment, given without its line break."""
        prompt, length = _prompt(line), len(line) + 1
        if prompt is not None:
            self._prompts.append(prompt)
            self._offsets.append(self.end)
            self._lengths.append(length)
        self.end += length

    @property
    def full(self) -> bool:
        return len(self) >= PART_RECORDS or self.end - self.start >= PART_BYTES

    def find(self, prompt: int) -> list[tuple[int, int]]:
        """Offset and length of each record of the prompt hash."""
        hits = np.flatnonzero(np.frombuffer(self._prompts, "<u8") == prompt) if len(self) else ()
        return [(self._offsets[hit], self._lengths[hit]) for hit in hits]

    def write(self, store: Store, folder: str, segment: str) -> "Part":
        """Write the entries as a part of the segment's index."""
        entries = np.empty(len(self), _ENTRY)
        for name, values in (
            ("prompt", self._prompts),
            ("offset", self._offsets),
            ("length", self._lengths),
        ):
            entries[name] = values
        entries = entries[np.argsort(entries["prompt"], kind="stable")]
        data = entries.tobytes() + entries["prompt"][::FENCE].tobytes()
        name = f"{segment}.{self.start}-{self.end}.{len(self)}.idx"
        store.write(data, folder, name)
        return Part(store, folder, name, len(data)).open()


class Part:
    """An index part: which bytes of which segment it covers, and in memory every 512th prompt of it."""

    def __init__(self, store: Store, folder: str, name: str, size: int) -> None:
        self.name = name
        found = _PART.fullmatch(name)
        self.segment = found[1] if found else ""
        start, end, count = map(int, found.groups()[1:]) if found else (0, 0, 0)
        self.start, self.end = start, end
        # A part that is not what its name says is passed over, and its records are read again.
        self.whole = bool(found) and size == count * _ENTRY.itemsize + 8 * -(-count // FENCE)
        self._store, self._path = store, store.path(folder, name)
        self._count, self._fences = count, np.empty(0, "<u8")

    def open(self) -> Self:
        with self._store.fs.open_input_file(self._path) as file:
            at = self._count * _ENTRY.itemsize
            self._fences = np.frombuffer(file.read_at(8 * -(-self._count // FENCE), at), "<u8")
        return self

    def find(self, prompt: int) -> list[tuple[int, int]]:
        """Offset and length of each record of the prompt hash."""
        first = max(int(np.searchsorted(self._fences, prompt, "left")) - 1, 0) * FENCE
        last = min(int(np.searchsorted(self._fences, prompt, "right")) * FENCE, self._count)
        if first >= last:
            return []
        with self._store.fs.open_input_file(self._path) as file:
            data = file.read_at((last - first) * _ENTRY.itemsize, first * _ENTRY.itemsize)
        entries: npt.NDArray[Any] = np.frombuffer(data, _ENTRY)
        hits = entries[entries["prompt"] == prompt]
        return [(int(offset), int(length)) for _, offset, length in hits.tolist()]


def lines(store: Store, segment: str, start: int = 0) -> Iterator[bytes]:
    """The whole lines of a segment from byte `start` on, without their line breaks, a few MB in memory."""
    with store.fs.open_input_file(store.path(FOLDER, segment)) as file:
        file.seek(start)
        rest = b""
        while block := file.read(BLOCK):
            *whole, rest = (rest + block).split(b"\n")
            yield from whole
