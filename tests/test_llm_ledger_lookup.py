"""Looking up what was paid: on a disk that living writers share, and on a local S3."""

import asyncio
import os
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lr_ray.llm import ledger, lookup, records
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.lookup import Recorded
from lr_ray.llm.paid import Paid
from lr_ray.llm.records import Record
from lr_ray.llm.usage import by_kind
from lr_ray.store import Store
from tests.endpoint import run


def record(prompt_id: str, key: str, text: str = "yes") -> Record:
    reply = {"content": text, "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 1}
    return {"prompt_id": prompt_id, "key": key, "unit": "p/-/x/0", "reply": reply}


def fill(folder: Path, prompts: int, each: int, text: str = "", segments: int = 1) -> dict[str, set[str]]:
    """Segments as writers leave them, `each` records a prompt in random order; the keys by prompt."""
    (folder / "calls").mkdir(parents=True, exist_ok=True)
    order = [(f"p{prompt}", f"k{number}") for prompt in range(prompts) for number in range(each)]
    random.Random(0).shuffle(order)
    for segment in range(segments):
        with (folder / "calls" / f"w{segment}.jsonl").open("wb") as file:
            file.writelines(records.dump(record(*one, text)) for one in order[segment::segments])
    return {f"p{prompt}": {f"k{number}" for number in range(each)} for prompt in range(prompts)}


def found(recorded: Recorded, prompts: Any) -> dict[str, set[str]]:
    return {prompt: set(recorded.replies(prompt)) for prompt in prompts}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PART_RECORDS", 64)
    monkeypatch.setattr(records, "FENCE", 8)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("indexed", [False, True])
def test_every_record_of_many_parts_and_segments_is_found(tmp_path: Path, indexed: bool) -> None:
    wanted = fill(tmp_path, prompts=60, each=20, segments=3) | {"unknown": set()}
    store = Store(str(tmp_path))
    if indexed:
        assert Recorded(store).index() == 3
        assert len(store.files("calls/index", ".idx")) == 3 * (400 // 64 + 1)
    assert found(Recorded(store), wanted) == wanted


@pytest.mark.usefixtures("small_parts")
def test_a_living_reader_sees_what_any_writer_appends_and_its_index_may_go(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    async def work() -> None:
        mine, other = Ledger(store), Ledger(store)
        reader = Recorded(store)
        for number in range(300):
            await asyncio.gather(
                *(book.append(record("p", f"{book.name}{number}")) for book in (mine, other))
            )
            if number % 30 == 0:
                assert len(reader.replies("p")) == 2 * number + 2
        assert len(list((tmp_path / "calls/index").iterdir())) == 2 * (270 // 64)
        for part in (tmp_path / "calls/index").iterdir():
            part.unlink()
        assert len(reader.replies("p")) == 600
        mine.close()
        other.close()

    run(work)


def test_index_parts_are_used_and_damaged_ones_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = fill(tmp_path, prompts=5, each=4)
    store = Store(str(tmp_path))
    Recorded(store).index()
    with monkeypatch.context() as patch:
        patch.setattr(lookup, "lines", lambda *_: pytest.fail("the segment was read again"))
        assert found(Recorded(store), wanted) == wanted
    (part,) = (tmp_path / "calls/index").iterdir()
    part.write_bytes(part.read_bytes()[:-1])
    assert found(Recorded(store), wanted) == wanted


def test_a_line_that_is_being_written_is_taken_when_it_is_whole(tmp_path: Path) -> None:
    fill(tmp_path, prompts=1, each=3)
    store, segment = Store(str(tmp_path)), tmp_path / "calls" / "w0.jsonl"
    reader = Recorded(store)
    line = records.dump(record("p0", "last"))
    for half in (line[:20], line[20:]):
        assert len(reader.replies("p0")) == 3
        reader.index()
        with segment.open("ab") as file:
            file.write(half)
    assert len(reader.replies("p0")) == 4
    assert len(Recorded(store).replies("p0")) == 4


def test_two_prompts_of_one_hash_keep_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_hash", lambda _: 7)
    (tmp_path / "calls").mkdir()
    lines = [records.dump(record(prompt, f"{prompt}{number}")) for prompt in "ab" for number in range(2)]
    (tmp_path / "calls" / "w.jsonl").write_bytes(b"".join(lines))
    recorded = Recorded(Store(str(tmp_path)))
    assert len(recorded.pointers("a")) == 4
    assert set(recorded.replies("a")) == {"a0", "a1"}


@pytest.mark.parametrize("prompt", ['a","key":"b', "a\\", 'é"\u2028\n', "", '{"prompt_id":"'])
def test_any_prompt_id_is_found(tmp_path: Path, prompt: str) -> None:
    (tmp_path / "calls").mkdir()
    lines = [records.dump(record(one, "k")) for one in (prompt, "other", prompt + "x")]
    (tmp_path / "calls" / "w.jsonl").write_bytes(b"".join(lines) + b'junk\n{"prompt_id":1}\n\0\0\n')
    recorded = Recorded(Store(str(tmp_path)))
    assert set(recorded.replies(prompt)) == {"k"}
    recorded.index()
    assert set(Recorded(Store(str(tmp_path))).replies(prompt)) == {"k"}


def test_memory_stays_flat_from_20k_to_200k_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "PART_RECORDS", 4096)
    monkeypatch.setattr(records, "BLOCK", 256 << 10)
    peaks = []
    for size in (20_000, 200_000):
        fill(tmp_path / str(size), prompts=size // 4, each=4, text="x" * 100)
        tracemalloc.start()
        store = Store(str(tmp_path / str(size)))
        Paid(store).prepare()
        reader = Recorded(store)
        assert all(len(reader.replies(f"p{number}")) == 4 for number in range(20))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_a_reused_run_is_only_read_and_told_apart(tmp_path: Path) -> None:
    fill(tmp_path / "old", prompts=2, each=3)
    before = sorted((tmp_path / "old").rglob("*"))
    store = Store(str(tmp_path / "new"))

    async def work() -> None:
        book = Ledger(store)
        await book.append(record("p0", "k1", "mine"))
        paid = Paid(store, [str(tmp_path / "old")])
        paid.prepare()
        replies, borrowed = await paid.replies("p0")
        assert replies.keys() == {"k0", "k1", "k2"}
        assert replies["k1"]["content"] == "mine"
        assert borrowed == {"k0", "k2"}
        book.close()

    run(work)
    assert sorted((tmp_path / "old").rglob("*")) == before
    with pytest.raises(ValueError, match=r"judge.reuse: .*/none holds no recorded calls"):
        Paid(store, [str(tmp_path / "none")])


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of a run directory on a local S3, less the closing part of its path."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1").create_bucket(
            Bucket="bucket"
        )
        yield f"s3://bucket/{{}}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


@pytest.fixture
def s3(bucket: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(ledger, "OBJECT_EVERY", 0.01)
    return Store(bucket.format(f"runs/{request.node.name}"))


def append(store: Store, start: int, stop: int) -> None:
    """Records of one writer, in an object each."""

    async def work() -> None:
        book = Ledger(store)
        for number in range(start, stop):
            await book.append(record(f"p{number % 2}", f"k{number}"))
        book.close()

    run(work)


def test_objects_are_found_and_a_writer_merges_its_own(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "MOST_OBJECTS", 4)
    append(s3, 0, 10)
    names = s3.files("calls", ".jsonl")
    assert len(names) == 2 + 2
    assert sum("merged" in name for name in names) == 2
    assert len(s3.files("calls/index", ".idx")) == 2
    assert len(Recorded(s3).replies("p0")) == 5
    assert len(Recorded(s3.sub("nothing")).replies("p0")) == 0


def test_what_dead_writers_left_is_merged_and_a_crash_on_the_way_loses_nothing(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, 12, 3):
        append(s3, start, start + 3)
    assert len(s3.files("calls", ".jsonl")) == 12
    reader = Recorded(s3)
    assert len(reader.replies("p1")) == 6
    real = Store.write

    def crash(store: Store, data: bytes, *parts: str) -> None:
        real(store, data, *parts)
        if "merged" in parts[-1] and parts[0] == "calls":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", crash)
        with pytest.raises(KeyboardInterrupt):
            ledger.merge(s3)
    assert len(s3.files("calls", ".jsonl")) == 13
    assert len(Recorded(s3).replies("p1")) == 6
    assert _paid_for(s3) == 12
    assert ledger.merge(s3) == 0
    assert len(s3.files("calls", ".jsonl")) == 1
    assert _paid_for(s3) == 12
    Paid(s3).prepare()
    assert len(Recorded(s3).replies("p1")) == 6
    # A reader that knew the small ones finds the large one.
    assert len(reader.replies("p1")) == 6


def _paid_for(store: Store) -> float:
    return sum(used.calls for used in by_kind(store).values())


def test_a_writer_whose_merge_fails_half_way_is_counted_once(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MOST_OBJECTS", 4)
    real, failed, reader = Store.write, [], Recorded(s3)

    def fail(store: Store, data: bytes, *parts: str) -> None:
        if parts[0] == "calls/index" and not failed:
            failed.append((len(reader.replies("p0")), [name for name in reader._tails if "merged" in name]))
            raise OSError("slow down")
        real(store, data, *parts)

    monkeypatch.setattr(Store, "write", fail)
    assert reader.replies("p0") == {}
    append(s3, 0, 5)
    # As long as it has no index, what it is merged from is there, and read already.
    assert failed == [(2, [])]
    assert len(reader.replies("p0")) == 3
    assert sum("merged" in name for name in s3.files("calls", ".jsonl")) == 1
    assert _paid_for(s3) == 5
    assert len(Recorded(s3).replies("p0")) == 3


def test_a_busy_moment_of_the_storage_loses_nothing(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "WRITE_AGAIN", (0.01, 0.01))
    real, failed = Store.write, []

    def fail(store: Store, data: bytes, *parts: str) -> None:
        if len(failed) < 2:
            failed.append(parts)
            raise OSError("slow down")
        real(store, data, *parts)

    monkeypatch.setattr(Store, "write", fail)
    append(s3, 0, 3)
    assert len(failed) == 2
    assert _paid_for(s3) == 3


def test_objects_merged_between_look_and_read_are_looked_for_again(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, 12, 3):
        append(s3, start, start + 3)
    reader = Recorded(s3)
    real, merged = reader._load, []

    def late(*arguments: Any) -> Any:
        merged.append(ledger.merge(s3))
        return real(*arguments)

    monkeypatch.setattr(reader, "_load", late)
    assert len(reader.replies("p1")) == 6
    assert merged == [12, 0]


def test_on_object_storage_a_reader_follows_every_writer(s3: Store) -> None:
    async def work() -> None:
        book, other = Ledger(s3), Ledger(s3)
        reader = Recorded(s3)
        assert reader.replies("p") == {}
        for number in range(3):
            # The rows of one that dies go to a living one.
            await asyncio.gather(*(one.append(record("p", f"{one.name}{number}")) for one in (book, other)))
            assert len(reader.replies("p")) == 2 * number + 2

    run(work)


def test_on_object_storage_an_object_is_read_once_and_forgotten_when_it_is_merged(
    s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MOST_OBJECTS", 4)
    reader, real, scanned = Recorded(s3), lookup.lines, []

    def lines(store: Store, segment: str, start: int) -> Iterator[bytes]:
        scanned.append(segment)
        return real(store, segment, start)

    monkeypatch.setattr(lookup, "lines", lines)

    async def work() -> None:
        books = [Ledger(s3) for _ in range(3)]
        for number in range(20):
            await asyncio.gather(*(book.append(record("p", f"{book.name}{number}")) for book in books))
            assert len(reader.replies("p")) == 3 * number + 3
            # Kept is as much as its writers may hold before they merge, however much there is.
            assert sum(map(len, reader._tails.values())) <= 3 * 4
            assert len(reader._seen) <= 3 * (4 + 1)

    assert reader.replies("p") == {}
    run(work)
    assert len(scanned) == len(set(scanned)) <= 60
    assert not [name for name in scanned if "merged" in name]


def test_a_store_on_object_storage_writes_whole_objects_and_no_folders(s3: Store) -> None:
    s3.write(b"one", "a", "b.parquet")
    s3.write(b"two", "a", "b.parquet")
    assert s3.read("a", "b.parquet") == b"two"
    assert s3.read("a", "c.parquet") is None
    assert s3.files("a") == ["b.parquet"]
    inner = s3.sub("inner")
    inner.write(b"three", "x")
    assert s3.read("inner", "x") == b"three"


def test_the_index_of_a_reader_is_shared_by_threads(tmp_path: Path) -> None:
    wanted = fill(tmp_path, prompts=40, each=10, segments=4)
    reader = Recorded(Store(str(tmp_path)))

    async def work() -> None:
        results = await asyncio.gather(*(asyncio.to_thread(reader.replies, prompt) for prompt in wanted))
        assert [set(replies) for replies in results] == list(wanted.values())

    run(work)
    assert os.listdir(tmp_path) == ["calls"]
