import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lr_ray.llm import ledger
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.lookup import Recorded
from lr_ray.llm.records import Record
from lr_ray.store import Store
from tests.endpoint import run


class Remote(Store):
    """A store whose file system appends nothing, as object storage."""

    @property
    def local(self) -> bool:
        return False

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Remote, (self.url,)


def record(prompt_id: str, key: str, text: str = "yes") -> Record:
    return {"prompt_id": prompt_id, "key": key, "unit": "u", "reply": {"content": text}}


def append(store: Store, *records: Record) -> None:
    async def work() -> None:
        book = Ledger(store)
        await asyncio.gather(*map(book.append, records))
        book.close()

    run(work)


def read(store: Store, *prompts: str) -> dict[str, Any]:
    recorded = Recorded(store)
    return {prompt: recorded.replies(prompt) for prompt in prompts}


@pytest.mark.parametrize("kind", [Store, Remote])
def test_what_was_appended_is_found_again(
    kind: type[Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "OBJECT_EVERY", 0.01)
    store = kind(str(tmp_path))
    append(store, record("a", "1"), record("b", "2", "no\n\u2028"), record("a", "3"))
    append(store, record("a", "4"))
    assert len(store.files("calls", ".jsonl")) == 2
    assert {key: set(replies) for key, replies in read(store, "a", "b").items()} == {
        "a": {"1", "3", "4"},
        "b": {"2"},
    }
    assert read(store, "b")["b"]["2"] == {"content": "no\n\u2028"}


def test_the_first_of_two_records_counts(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    append(store, record("a", "1", "first"), record("a", "1", "second"))
    assert read(store, "a")["a"]["1"] == {"content": "first"}


@pytest.mark.parametrize("tail", [b'{"prompt_id":"a","key":"9","un', b'{"prompt_id":"a"', b"\0\0\0", b""])
def test_a_torn_tail_is_no_record(tmp_path: Path, tail: bytes) -> None:
    store = Store(str(tmp_path))
    append(store, record("a", "1"), record("a", "2"))
    (segment,) = (tmp_path / "calls").iterdir()
    with segment.open("ab") as file:
        file.write(tail)
    assert set(read(store, "a")["a"]) == {"1", "2"}


def test_records_longer_than_a_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    append(store, *(record("a", str(i), "x" * 700_000) for i in range(5)), record("b", "1"))
    assert set(read(store, "a")["a"]) == {"0", "1", "2", "3", "4"}
    assert read(store, "b")["b"]["1"] == {"content": "yes"}


def test_a_record_is_on_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), real(file))[1])

    async def work() -> None:
        book = Ledger(Store(str(tmp_path)))
        await book.append(record("a", "1"))
        # The segment itself, and the two directories it newly appears in.
        assert len(synced) == 3
        await asyncio.gather(*(book.append(record("a", str(i))) for i in range(100)))
        # Group commit: a hundred records at once take a few fsyncs, not a hundred.
        assert len(synced) <= 6
        assert set(read(Store(str(tmp_path)), "a")["a"]) == {str(i) for i in range(100)}
        book.close()

    run(work)


def test_a_disk_that_refuses_fails_the_caller_and_a_half_line_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write

    def half(file: int, data: memoryview) -> int:
        real(file, data[: len(data) // 2])
        raise OSError("no space left")

    async def work() -> None:
        book = Ledger(Store(str(tmp_path)))
        await book.append(record("a", "1"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(OSError, match="no space"):
                await book.append(record("a", "2"))
        await asyncio.gather(*(book.append(record("a", key)) for key in "34"))
        book.close()

    run(work)
    assert set(read(Store(str(tmp_path)), "a")["a"]) == {"1", "3", "4"}


def test_a_disk_that_fails_at_closing_too_leaves_no_number_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.close

    def refused(*_: Any) -> int:
        raise OSError("no space left")

    def closed(file: int) -> None:
        real(file)
        raise OSError("input/output error")

    async def work() -> None:
        book = Ledger(Store(str(tmp_path)))
        await book.append(record("a", "1"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", refused)
            patch.setattr(os, "close", closed)
            with pytest.raises(OSError, match="no space"):
                await book.append(record("a", "2"))
        victim = os.open(tmp_path / "victim", os.O_CREAT | os.O_WRONLY)  # has the number that was freed
        await book.append(record("a", "3"))
        book.close()
        os.close(victim)

    run(work)
    assert (tmp_path / "victim").read_bytes() == b""
    assert set(read(Store(str(tmp_path)), "a")["a"]) == {"1", "3"}


def test_a_reader_that_looks_into_a_write_that_fails_misses_nothing_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    reader = Recorded(store)

    def look(_: int) -> None:
        assert set(reader.replies("a")) == {"1", "2", "3"}
        raise OSError("no space left")

    async def work() -> None:
        book = Ledger(store)
        await book.append(record("a", "1"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", look)
            failed = [book.append(record("a", key, key * 100)) for key in "23"]
            assert len(await asyncio.gather(*failed, return_exceptions=True)) == 2
        for key in "456":
            await book.append(record("a", key))
        book.close()

    run(work)
    assert set(reader.replies("a")) == {"1", "2", "3", "4", "5", "6"}


def test_a_folder_that_cannot_be_synced_once_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: str) -> None:
        raise OSError("input/output error")

    async def work() -> None:
        book = Ledger(Store(str(tmp_path)))
        opened = len(os.listdir("/proc/self/fd"))
        with monkeypatch.context() as patch:
            patch.setattr(ledger, "sync", fail)
            for _ in range(3):
                with pytest.raises(OSError, match="input/output error"):
                    await book.append(record("a", "1"))
        assert len(os.listdir("/proc/self/fd")) == opened
        assert os.listdir(tmp_path / "calls") == []
        await book.append(record("a", "2"))
        book.close()

    run(work)
    assert set(read(Store(str(tmp_path)), "a")["a"]) == {"2"}


WRITER = """
import asyncio, sys
from lr_ray.llm.ledger import Ledger
from lr_ray.store import Store

async def main():
    book = Ledger(Store(sys.argv[1]))
    async def one(i):
        record = {"prompt_id": "a", "key": str(i), "unit": "u", "reply": {"content": "x" * 50_000}}
        await book.append(record)
        print(i, flush=True)
    for start in range(0, 10**6, 50):
        await asyncio.gather(*map(one, range(start, start + 50)))

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [0.1, 0.17, 0.3])
def test_kill_9_in_mid_write_loses_nothing_that_was_acknowledged(tmp_path: Path, after: float) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(after)
        writer.send_signal(signal.SIGKILL)
        acknowledged = {line.strip() for line in [first, *writer.stdout] if line.endswith("\n")}
    replies = read(Store(str(tmp_path)), "a")["a"]
    assert len(acknowledged) > 1
    assert acknowledged <= set(replies)
    assert all(reply == {"content": "x" * 50_000} for reply in replies.values())


FULL = """
import asyncio, resource, sys
from lr_ray.llm.ledger import Ledger
from lr_ray.store import Store

async def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    book = Ledger(Store(sys.argv[1]))
    for i in range(100):
        try:
            book.check()
            await book.append({"prompt_id": "a", "key": str(i), "unit": "u", "reply": {"c": "x" * 50_000}})
            print(i, flush=True)
        except OSError as error:
            print(error, flush=True)
            return

asyncio.run(main())
"""


def test_a_full_disk_is_one_sentence_and_keeps_what_is_there(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    *written, sentence = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert written == ["0", "1", "2"]
    assert sentence == f"cannot record a paid answer in {tmp_path}/calls: File too large"
    assert set(read(Store(str(tmp_path)), "a")["a"]) == {"0", "1", "2"}
