"""Checkpoints: written aside, valid as a whole or not at all, on a disk and on S3."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import torch

from lr_ray.store import Store
from lr_ray.training import shards
from lr_ray.training.checkpoint import FOLDER, MARKER, Checkpoints
from lr_ray.training.shards import HostCopies, Shards


def nothing() -> None: ...


def state(rank: int, value: float) -> Shards:
    return {f"shard-{rank}.pt": {"weights": torch.full((1000,), value), "step": int(value)}}


def taker(rank: int, value: float) -> Any:
    return lambda: state(rank, value)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a local S3 with a bucket."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "local")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        pafs.S3FileSystem(
            endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True
        ).create_dir("bucket")
        yield f"{host}:{port}"
    server.stop()


@pytest.fixture(params=["disk", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "disk":
        return Store(str(tmp_path / "run"))
    address = request.getfixturevalue("s3")
    return Store(f"s3://bucket/{tmp_path.name}?endpoint_override={address}&scheme=http")


def test_a_checkpoint_comes_back_on_every_file_system(store: Store) -> None:
    ranks = [Checkpoints(store, rank, 2, "a") for rank in (0, 1)]
    flushed: list[bool] = []
    for step in (10, 20, 30):
        for rank, one in enumerate(ranks):
            one.save(step, {"data": "d"}, taker(rank, step + rank), lambda: flushed.append(True))
    for one in ranks:
        one.wait()
    found = ranks[1].latest()
    assert found
    assert (found["step"], found["workers"], found["data"], found["tag"]) == (30, 2, "d", "step-00000030-a")
    assert sorted(found["files"]) == ["shard-0.pt", "shard-1.pt"]
    for rank, one in enumerate(ranks):
        read = one.read(found["tag"], f"shard-{rank}.pt", [])
        assert read["step"] == 30 + rank
        assert torch.equal(read["weights"], torch.full((1000,), 30.0 + rank))
    assert len(flushed) == 3
    assert not store.exists(FOLDER, "step-00000010-a")


def test_no_marker_without_the_shards_of_every_rank(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first, second = Checkpoints(store, 0, 2, "a"), Checkpoints(store, 1, 2, "a")
    first.save(10, {}, taker(0, 10), nothing)
    assert first._writer
    first._writer.join(0.5)
    assert store.exists(FOLDER, "step-00000010-a", "rank-0.json")
    assert first.latest() is None
    second.save(10, {}, taker(1, 10), nothing)
    first.wait()
    assert first.latest()


def test_a_killed_attempt_leaves_nothing_that_counts(tmp_path: Path) -> None:
    """Rank 0 of a killed attempt had written its part of step 20; the next attempt comes there again."""
    store = Store(str(tmp_path))
    before = Checkpoints(store, 0, 1, "a")
    before.save(10, {}, taker(0, 10), nothing)
    before.wait()
    killed = Checkpoints(store, 1, 2, "a")
    killed.save(20, {}, taker(1, 99), nothing)
    killed.wait()
    first, second = Checkpoints(store, 0, 2, "b"), Checkpoints(store, 1, 2, "b")
    first.save(20, {}, taker(0, 20), nothing)
    found = first.latest()
    assert found
    assert found["step"] == 10
    second.save(20, {}, taker(1, 20), nothing)
    first.wait()
    found = first.latest()
    assert found
    assert found["tag"] == "step-00000020-b"
    assert not store.exists(FOLDER, "step-00000020-a")


def test_a_checkpoint_that_lost_bytes_is_not_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one = Checkpoints(store, 0, 1, "a")
    for step in (10, 20):
        one.save(step, {}, taker(0, step), nothing)
    one.wait()
    path = Path(store.path(FOLDER, "step-00000020-a", "shard-0.pt"))
    path.write_bytes(path.read_bytes()[:-1])
    found = one.latest()
    assert found
    assert found["step"] == 10
    path.unlink()
    found = one.latest()
    assert found
    assert found["step"] == 10


def test_checkpoints_that_lost_bytes_push_no_whole_one_out(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one = Checkpoints(store, 0, 1, "a")
    for step in (10, 20, 30):
        one.save(step, {}, taker(0, step), nothing)
    one.wait()
    for step in (20, 30):
        Path(store.path(FOLDER, f"step-000000{step}-a", "shard-0.pt")).write_bytes(b"half")
    again = Checkpoints(store, 0, 1, "b")
    again.save(15, {}, taker(0, 15), nothing)
    again.wait()
    found = again.latest()
    assert found
    assert found["step"] == 15


def test_training_does_not_wait_for_the_writer_and_hears_of_its_failure(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one = Checkpoints(store, 0, 1, "a")
    gate = threading.Event()

    def fail() -> None:
        gate.wait(10)
        raise OSError("disk full")

    one.save(10, {}, taker(0, 10), fail)
    one.check()
    assert not store.exists(FOLDER, "step-00000010-a", MARKER)
    gate.set()
    with pytest.raises(OSError, match="disk full"):
        one.wait()
    with pytest.raises(OSError, match="disk full"):
        one.check()
    assert one.latest() is None


def test_what_another_rank_began_since_is_not_pruned(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first, second = Checkpoints(store, 0, 2, "a"), Checkpoints(store, 1, 2, "a")
    second.save(10, {}, taker(1, 10), nothing)
    second.save(20, {}, taker(1, 20), nothing)
    second.wait()
    for step in (10, 20):
        first.save(step, {}, taker(0, step), nothing)
    first.wait()
    found = first.latest()
    assert found
    assert found["step"] == 20


def test_copies_share_nothing_and_use_their_memory_again(tmp_path: Path) -> None:
    copies = HostCopies()
    weights, nested = torch.arange(4.0), {"steps": [torch.tensor(1.0), 2], "shape": torch.Size([2, 2])}
    live: Shards = {"a.pt": {"weights": weights, **nested}}
    copies.reserve(live)
    taken = copies.take(live)
    kept = taken["a.pt"]["weights"]
    weights.add_(1)
    nested["steps"][1] = 3  # type: ignore[index]
    assert kept.tolist() == [0, 1, 2, 3]
    assert taken["a.pt"]["steps"][1] == 2
    assert taken["a.pt"]["shape"].numel() == 4
    assert copies.take(live)["a.pt"]["weights"].data_ptr() == kept.data_ptr()
    assert kept.tolist() == [1, 2, 3, 4]


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("1/0",)


def test_a_shard_with_code_in_it_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "shard").open("wb") as stream:
        shards.write({"weights": torch.zeros(1), "x": Bomb()}, stream)
    with (
        (tmp_path / "shard").open("rb") as stream,
        pytest.raises(Exception, match="Weights only load failed"),
    ):
        shards.read(stream, [])
