"""Every paid answer, durable in the run directory before its score counts.

Appends are committed in groups: whatever arrives while one group is being written goes with the next. When
`append` returns, its record is as durable as the place can make it:

- local disk: the segment and its directory entry are fsynced; a power cut loses nothing.
- NFS: the same calls; fsync returns once the server has the data on stable storage, and other clients see it
  when they open the segment the next time (close-to-open).
- object storage, where nothing can be appended: each second's records are one object, durable as soon as
  its upload is confirmed. The writer merges its small objects into a large one as it goes, `merge` those of
  writers that died; the large one is there before a small one goes, so that at worst a record is there twice,
  and counted once (`records.merged_away`).

A record is found again by its prompt (`lookup`) and its key, a hash of all that can change the answer.
"""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

import orjson
import pyarrow.fs as pafs

from lr_ray.llm.records import (
    FOLDER,
    INDEX,
    MERGED,
    MERGED_SUFFIX,
    PART_BYTES,
    PART_RECORDS,
    SUFFIX,
    Record,
    Tail,
    dump,
    merged_away,
    sources,
    writer,
)
from lr_ray.llm.records import lines as whole_lines
from lr_ray.store import Store, sync

OBJECT_EVERY = 1.0  # seconds of records in one object, where nothing can be appended
MOST_OBJECTS = 128  # small objects of a writer before it merges them
WRITE_AGAIN = (0.5, 1.0, 2.0, 4.0)  # seconds before an upload that failed is tried again
FEWEST_MERGED = 8  # of what dead writers left


class Ledger:
    """One writer, for one event loop. Nothing exists on disk until the first record."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.quick = store.local  # a record is durable within milliseconds
        self.name = writer()
        self._segment: _Segment = _File(store) if store.local else _Objects(store, self.name)
        self._pending: list[tuple[bytes, asyncio.Future[None]]] = []
        self._committer: asyncio.Task[None] | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._failure: OSError | None = None

    async def append(self, record: Record) -> None:
        """Return once the record is durable.

        Raises:
            OSError: it cannot be recorded, as on a full disk.
        """
        durable = asyncio.get_running_loop().create_future()
        self._pending.append((dump(record), durable))
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit())
        await durable

    def check(self) -> None:
        """To be asked before a call is paid.

        Raises:
            OSError: the last group could not be recorded, so the next answer could not be either.
        """
        if self._failure is not None:
            raise self._failure

    async def _commit(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            if not self._store.local:
                await asyncio.sleep(OBJECT_EVERY)
            group, self._pending = self._pending, []
            try:
                await loop.run_in_executor(self._disk, self._segment.write, [line for line, _ in group])
                self._failure = None
            except Exception as error:
                # The callers hold the rows: an unwritable ledger must fail them, not this task.
                why = getattr(error, "strerror", None) or " ".join(str(error).split())
                self._failure = OSError(f"cannot record a paid answer in {self._store.path(FOLDER)}: {why}")
            for _, durable in group:
                if durable.done():
                    continue
                if self._failure is None:
                    durable.set_result(None)
                else:
                    durable.set_exception(self._failure)
            if not self._store.local:
                with suppress(OSError):  # what is not merged is durable all the same
                    await loop.run_in_executor(self._disk, self._segment.tidy)

    def close(self) -> None:
        self._disk.shutdown()
        self._segment.close()


class _Segment(Protocol):
    def write(self, group: list[bytes]) -> None: ...
    def tidy(self) -> None: ...
    def close(self) -> None: ...


class _File:
    """A segment that grows by appends, on a local or NFS disk; after a failed one another is begun."""

    def __init__(self, store: Store) -> None:
        self._folder = store.path(FOLDER)
        self._file: int | None = None

    def write(self, group: list[bytes]) -> None:
        if self._file is None:
            self._file = _create(self._folder, writer() + SUFFIX)
        try:
            rest = memoryview(b"".join(group))
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError:
            # Half a line at the end would spoil the next one. It may not go either: who reads the segment
            # meanwhile has seen how far it reaches. What came through whole is paid, and is found again.
            with suppress(OSError):
                self.close()
            raise

    def tidy(self) -> None:
        """Nothing: it is one file."""

    def close(self) -> None:
        if self._file is not None:
            # The number is free even where closing fails, and may soon be another file's.
            file, self._file = self._file, None
            os.close(file)


class _Objects:
    """Segments of one group each, merged when they are many."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name, self._count = store, name, 0
        self._small: list[str] = []
        self._held: list[bytes] = []
        self._bytes = 0

    def write(self, group: list[bytes]) -> None:
        name = f"{self._name}-{self._count:07}{SUFFIX}"
        for wait in (*WRITE_AGAIN, None):
            try:
                self._store.write(b"".join(group), FOLDER, name)
                break
            except OSError:
                # These answers are paid: a busy moment of the storage must not lose them.
                if wait is None:
                    raise
                time.sleep(wait)  # in the ledger's own thread
        self._count += 1
        self._small.append(name)
        self._held += group
        self._bytes += sum(map(len, group))

    def tidy(self) -> None:
        """Merge the small ones when they are many."""
        if len(self._small) >= MOST_OBJECTS or self._bytes >= PART_BYTES or len(self._held) >= PART_RECORDS:
            merged = f"{self._name}-{self._count:07}{MERGED_SUFFIX}"
            self._count += 1
            small = list(self._small)
            self._small.append(merged)  # where only a part of the work gets done, the next time it goes too
            _seal(self._store, merged, self._held, small)
            self._small, self._held, self._bytes = [], [], 0

    def close(self) -> None:
        pass


def _seal(store: Store, segment: str, lines: list[bytes], small: list[str]) -> None:
    """Write the lines of the `small` segments as one with its index, then remove the small ones."""
    lines = [orjson.dumps({MERGED: small}, option=orjson.OPT_APPEND_NEWLINE), *lines]
    store.write(b"".join(lines), FOLDER, segment)
    tail = Tail()
    for line in lines:
        tail.add(line.removesuffix(b"\n"))
    tail.write(store, INDEX, segment)
    for name in small:
        # Who merges after a crash of ours may have removed it before us.
        with suppress(FileNotFoundError):
            store.fs.delete_file(store.path(FOLDER, name))


def merge(store: Store) -> int:
    """On object storage, merge the small objects that dead writers left; a few tens of MB in memory.

    Returns:
        How many they were.
    """
    if store.local:
        return 0
    for name in merged_away(store):
        with suppress(FileNotFoundError):
            store.fs.delete_file(store.path(FOLDER, name))
    found = store.fs.get_file_info(pafs.FileSelector(store.path(FOLDER), allow_not_found=True))
    small = sorted(i.base_name for i in found if i.base_name.endswith(SUFFIX) and i.size < PART_BYTES // 4)
    if len(small) < FEWEST_MERGED:
        return 0
    mine = writer()
    held: list[bytes] = []
    names: list[str] = []
    for number, name in enumerate(small):
        held += [line + b"\n" for line in whole_lines(store, name) if not sources(line)]
        names.append(name)
        if name == small[-1] or sum(map(len, held)) >= PART_BYTES:
            _seal(store, f"{mine}-{number:07}{MERGED_SUFFIX}", held, names)
            held, names = [], []
    return len(small)


def _create(folder: str, name: str) -> int:
    """A new file whose directory entry is durable too. Returns its descriptor; leaves nothing on failure."""
    os.makedirs(folder, exist_ok=True)
    file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    try:
        for path in (folder, os.path.dirname(folder)):
            sync(path)
    except OSError:
        os.close(file)
        os.unlink(f"{folder}/{name}")
        raise
    return file
