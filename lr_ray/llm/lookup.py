"""The recorded replies of a prompt, looked up when its row starts; memory does not grow with the ledger.

A look-up first takes notice of what was recorded since the last, by all writers; on object storage it lists
the segments and reads each new object once. So a row that is handed out again finds what its first judge
paid, be that this process, one that has died since, or one of an earlier run. Kept in memory is where those
records lie that are in no part of the index: at most a part's worth for each segment on a disk, and for each
writer on object storage, which has merged its objects by then.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow.fs as pafs

from lr_ray.llm.records import (
    FOLDER,
    INDEX,
    MERGED_SUFFIX,
    SUFFIX,
    Part,
    Pointer,
    Tail,
    lines,
    parse,
    prompt_hash,
)
from lr_ray.store import Store

Reply = dict[str, Any]

GAP = 64 << 10  # bytes between two records of a prompt that are read rather than asked for separately
RUN = 8 << 20  # bytes read at once
REQUESTS = 16  # at once, on object storage
TRIES = 5  # of a look-up whose segments are merged away under it

A = TypeVar("A")
B = TypeVar("B")


class Recorded:
    """What the ledger of a run directory holds. Safe to use from several threads.

    Index parts that are missing are written to `index`, a store and a folder in it; none: beside the
    segments. Another run's directory is only read.
    """

    def __init__(self, store: Store, index: tuple[Store, str] | None = None) -> None:
        self._store = store
        self._indexes = [(store, INDEX)] + ([index] if index else [])
        self._lock = threading.Lock()
        self._parts: dict[tuple[int, str], Part] = {}
        self._tails: dict[str, Tail] = {}
        self._seen: dict[str, tuple[int, int]] = {}
        self._born = False

    def index(self) -> int:
        """Write the index parts that are missing, of living and dead writers. Returns how many."""
        with self._lock:
            self._look()
            tails, self._tails = self._tails, {}
            for segment, tail in tails.items():
                self._write(segment, tail)
            return len(tails)

    def replies(self, prompt_id: str) -> dict[str, Reply]:
        """The prompt's replies by key. Of two records of one key the first counts."""
        for left in reversed(range(TRIES)):
            try:
                return self._load(prompt_id, self.pointers(prompt_id))
            except OSError:
                # A writer has merged its small objects into a larger one: look again. Of one that goes after
                # it was opened pyarrow says, for a short read, that the response cannot be flushed.
                if not left:
                    raise
        raise AssertionError

    def pointers(self, prompt_id: str) -> list[Pointer]:
        """Where the records of the prompt lie, and with bad luck those of one with the same hash."""
        prompt = prompt_hash(prompt_id)
        with self._lock:
            self._look()
            parts = list(self._parts.values())
            found = {Pointer(name, *at) for name, tail in self._tails.items() for at in tail.find(prompt)}
        for part, hits in zip(parts, self._map(lambda part: part.find(prompt), parts), strict=True):
            found.update(Pointer(part.segment, *at) for at in hits)
        return sorted(found)

    def _load(self, prompt_id: str, pointers: list[Pointer]) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        for found in self._map(self._read, list(_runs(pointers))):
            for line in found:
                record = parse(line)
                if record is not None and record["prompt_id"] == prompt_id:
                    replies.setdefault(record["key"], record["reply"])
        return replies

    def _read(self, run: list[Pointer]) -> list[bytes]:
        start = run[0].offset
        with self._store.fs.open_input_file(self._store.path(FOLDER, run[0].segment)) as file:
            data = file.read_at(run[-1].offset + run[-1].length - start, start)
        return [data[p.offset - start : p.offset - start + p.length] for p in run]

    def _map(self, work: Callable[[A], B], items: list[A]) -> Iterable[B]:
        if self._store.local or len(items) < 2:
            return map(work, items)
        with ThreadPoolExecutor(REQUESTS) as pool:
            return list(pool.map(work, items))

    def _look(self) -> None:
        """Take notice of new parts, and of records in no part."""
        sizes = dict(_files(self._store, FOLDER, SUFFIX))  # before the parts: a part outlives no segment
        there: dict[tuple[int, str], Part] = {}
        for number, (store, folder) in enumerate(self._indexes):
            for name, size in _files(store, folder, ".idx"):
                part = self._parts.get((number, name)) or Part(store, folder, name, size)
                if part.whole and part.segment in sizes:
                    there[number, name] = part
        new = [key for key in there if key not in self._parts]
        there.update(zip(new, self._map(lambda key: there[key].open(), new), strict=True))
        self._parts = there
        reach = _reach(there.values())
        states = ((name, (size, reach.get(name, 0))) for name, size in sizes.items())
        changed = [one for one in states if self._seen.get(one[0]) != one[1] and self._follows(one[0])]
        deque(self._map(lambda one: self._scan(one[0], *one[1]), changed), maxlen=0)
        for known in (self._seen, self._tails):
            for name in known.keys() - sizes.keys():
                del known[name]
        self._born = True

    def _follows(self, name: str) -> bool:
        """Not a merged segment of a living writer: its sources are there for as long as it has no index."""
        return not (self._born and name.endswith(MERGED_SUFFIX))

    def _scan(self, segment: str, size: int, start: int) -> None:
        """Take notice of the records after the tail, and where there is none from byte `start` on."""
        tail = self._tails.pop(segment, None)
        if tail is None or tail.start != start:
            tail = Tail(start)
        if tail.end < size:
            for line in lines(self._store, segment, tail.end):
                tail.add(line)
                if tail.full:
                    self._write(segment, tail)
                    tail = Tail(tail.end)
        if tail.end > tail.start:
            self._tails[segment] = tail
        self._seen[segment] = size, start

    def _write(self, segment: str, tail: Tail) -> None:
        part = tail.write(*self._indexes[-1], segment)
        self._parts[len(self._indexes) - 1, part.name] = part


def _files(store: Store, folder: str, suffix: str) -> Iterator[tuple[str, int]]:
    for info in store.fs.get_file_info(pafs.FileSelector(store.path(folder), allow_not_found=True)):
        if info.base_name.endswith(suffix) and not info.base_name.startswith("."):
            yield info.base_name, info.size


def _reach(parts: Iterable[Part]) -> dict[str, int]:
    """Up to which byte from the first on parts cover each segment."""
    reach: dict[str, int] = {}
    for part in sorted(parts, key=lambda part: (part.start, part.end)):
        end = reach.get(part.segment, 0)
        if part.start <= end:
            reach[part.segment] = max(end, part.end)
    return reach


def _runs(pointers: list[Pointer]) -> Iterator[list[Pointer]]:
    """Pointers that lie close together in one segment, to be read at once."""
    run: list[Pointer] = []
    for pointer in pointers:
        if run and not (
            pointer.segment == run[0].segment
            and pointer.offset - run[-1].offset - run[-1].length <= GAP
            and pointer.offset + pointer.length - run[0].offset <= RUN
        ):
            yield run
            run = []
        run.append(pointer)
    if run:
        yield run
