"""Every paid answer, durable in the run directory before its score counts.

`calls/` holds append-only JSONL segments, one writer each. A record is found by its key, a hash of all
that can change the answer. On a local (or NFS) file system a segment grows by group commit: whatever
arrives during one fsync is written by the next. On object storage, where nothing can be appended, each
second's records become one object. A torn last line, of a writer that was killed, is not a record.
"""

import asyncio
import os
import socket
import uuid
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypedDict, cast

import orjson

from lr_ray.store import Store

FOLDER = "calls"
OBJECT_EVERY = 1.0  # seconds of records in one object, where nothing can be appended


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


Recorded = dict[str, list[Pointer]]


def scan(store: Store, unfinished: Container[str] | None = None, finished: Container[str] = ()) -> Recorded:
    """Where the records of `unfinished` prompts (none: of all but the `finished` ones) lie.

    Reads every segment once, a line at a time; memory grows with the answer, not with the ledger.
    """
    where: Recorded = {}
    for segment in store.files(FOLDER, ".jsonl"):
        for offset, line in _lines(store, segment):
            record = _record(line)
            if record is None:
                continue
            prompt_id = record["prompt_id"]
            wanted = prompt_id not in finished if unfinished is None else prompt_id in unfinished
            if wanted:
                where.setdefault(prompt_id, []).append(Pointer(segment, offset, len(line)))
    return where


def load(store: Store, pointers: list[Pointer]) -> dict[str, dict[str, Any]]:
    """The replies at `pointers`, by key. Of two records of one key the first counts."""
    replies: dict[str, dict[str, Any]] = {}
    by_segment: dict[str, list[Pointer]] = {}
    for pointer in pointers:
        by_segment.setdefault(pointer.segment, []).append(pointer)
    for segment, its in by_segment.items():
        with store.fs.open_input_file(store.path(FOLDER, segment)) as file:
            for pointer in its:
                file.seek(pointer.offset)
                record = _record(file.read(pointer.length))
                assert record is not None, f"{segment}: no record at {pointer.offset}"
                replies.setdefault(record["key"], record["reply"])
    return replies


def _lines(store: Store, segment: str) -> Iterator[tuple[int, bytes]]:
    """The whole lines of a segment with their offsets; what a killed writer left of its last one is not."""
    offset, rest = 0, b""
    with store.fs.open_input_stream(store.path(FOLDER, segment)) as stream:
        while block := stream.read(1 << 20):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                yield offset, line + b"\n"
                offset += len(line) + 1


def _record(line: bytes) -> Record | None:
    """The record in a line; None where a disk gave back something else."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    whole = isinstance(record, dict) and record.keys() == Record.__annotations__.keys()
    return cast(Record, record) if whole else None


class Ledger:
    """The writer of one segment, for one event loop. Nothing exists on disk until the first record."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # One writer a segment: two processes, or two lives of one actor, never append to the same file.
        self._name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._pending: list[tuple[bytes, asyncio.Future[None]]] = []
        self._committer: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._file: int | None = None
        self._objects = 0

    async def append(self, record: Record) -> None:
        """Return once the record is on disk."""
        durable = asyncio.get_running_loop().create_future()
        self._pending.append((orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE), durable))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit())
        await durable

    async def _commit(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            if not self._store.local:
                await asyncio.sleep(OBJECT_EVERY)
            group, self._pending = self._pending, []
            data = b"".join(line for line, _ in group)
            try:
                await loop.run_in_executor(self._disk, self._write, data)
            except Exception as error:
                # The callers hold the rows: an unwritable ledger must fail them, not this task.
                _settle(group, error)
            else:
                _settle(group, None)

    def _write(self, data: bytes) -> None:
        if not self._store.local:
            self._store.write(data, FOLDER, f"{self._name}-{self._objects:06}.jsonl")
            self._objects += 1
            return
        if self._file is None:
            self._file = _create(self._store.path(FOLDER), f"{self._name}.jsonl")
        start = os.lseek(self._file, 0, os.SEEK_END)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError:
            # A half-written group would spoil the first line of the next one.
            os.ftruncate(self._file, start)
            raise

    def close(self) -> None:
        self._disk.shutdown()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _settle(group: list[tuple[bytes, asyncio.Future[None]]], error: Exception | None) -> None:
    for _, durable in group:
        if durable.done():
            continue
        if error is None:
            durable.set_result(None)
        else:
            durable.set_exception(error)


def _create(folder: str, name: str) -> int:
    """A new file whose directory entry is durable too. Returns its descriptor."""
    os.makedirs(folder, exist_ok=True)
    file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    for path in (folder, os.path.dirname(folder)):
        entry = os.open(path, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)
    return file
