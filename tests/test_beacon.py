"""One run at a time on object storage."""

import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager

import pytest

from lr_ray import beacon
from lr_ray.store import Store
from tests.test_llm_ledger_lookup import bucket, s3  # noqa: F401 - fixtures


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT", 0.1), ("GONE", 0.6), ("SETTLE", 0.05)):
        monkeypatch.setattr(beacon, name, seconds)


class Memory:
    """An object that is read and written."""

    def __init__(self) -> None:
        self.content: bytes | None = None
        self.said: list[str] = []

    def write(self, content: bytes | None) -> None:
        self.content = content

    def lit(self) -> AbstractContextManager[None]:
        return beacon.lit("s3://bucket/run", lambda: self.content, self.write, self.said.append)


def test_the_second_is_refused_as_long_as_the_first_is_alive() -> None:
    place = Memory()
    with place.lit():
        for _ in range(2):
            with (
                pytest.raises(
                    ValueError, match=r"s3://bucket/run is in use by another run \(process \d+ on "
                ),
                place.lit(),
            ):
                raise AssertionError
    assert place.content is None
    before = time.monotonic()
    with place.lit():
        pass
    assert time.monotonic() - before < beacon.GONE


def test_who_is_silent_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Memory()
    place.content = b'{"id": "x", "beats": 3, "holder": "process 7 on there"}'
    with place.lit():
        assert b'"x"' not in (place.content or b"")
    assert "a run was there last (process 7 on there)" in place.said[0]
    place.content = b"\xff not ours"
    with place.lit():
        pass


def test_of_two_that_come_at_once_one_is_let_in() -> None:
    place, both = Memory(), threading.Barrier(4)
    inside, most, refused = [0], [0], [0]

    def come() -> None:
        both.wait()
        try:
            with place.lit():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.5)
                inside[0] -= 1
        except ValueError:
            refused[0] += 1

    threads = [threading.Thread(target=come) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
    assert refused[0] == 3


@pytest.mark.parametrize("started", ["by hand", "in the background"])
def test_who_was_taken_for_gone_stops(started: str) -> None:
    place = Memory()
    before = signal.getsignal(signal.SIGINT)
    if started == "in the background":
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def work() -> None:
        with place.lit():
            # A beat that has read just before writes over it once; another's own beats come again.
            for _ in range(250):
                place.content = b'{"id": "another"}'
                time.sleep(0.02)

    try:
        with pytest.raises(RuntimeError, match="another one went on in its place"):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    # What is another's stays.
    assert place.content == b'{"id": "another"}'


@pytest.mark.parametrize("error", [OSError("the network is down"), RuntimeError("of a client's library")])
def test_a_beat_that_fails_is_followed_by_the_next(error: Exception) -> None:
    place = Memory()
    fail = [False]

    def write(content: bytes | None) -> None:
        if fail[0]:
            raise error
        place.content = content

    with beacon.lit("x", lambda: place.content, write, place.said.append):
        fail[0] = True
        time.sleep(0.3)
        fail[0] = False
        before = place.content
        time.sleep(0.3)
        assert place.content != before
        fail[0] = True
    # What cannot be removed at the end is found silent by the next.
    assert place.content is not None


HOLD = """
import sys, time
from lr_ray import beacon
from lr_ray.store import Store
beacon.BEAT, beacon.SETTLE = 0.1, 0.05
with Store(sys.argv[1]).claimed():
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_run_directory_on_s3_is_claimed_by_one_and_free_after_a_kill(
    s3: Store,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setattr(beacon, "GONE", 3.0)
    with subprocess.Popen([sys.executable, "-c", HOLD, s3.url], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        try:
            assert other.stdout.readline() == "in\n"
            with pytest.raises(ValueError, match="is in use by another run"), s3.claimed():
                raise AssertionError
        finally:
            other.send_signal(signal.SIGKILL)
    with s3.claimed():
        assert s3.exists(".lock")
    assert not s3.exists(".lock")
