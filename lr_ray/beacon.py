"""One run at a time in a directory on object storage, which knows no locks.

Who works there keeps an object whose content changes every few seconds. Who finds one watches whether it
changes: then somebody is alive, and is left alone; if it does not for long enough, he is gone. No clock is
compared with another one's.

It keeps apart two runs that a person starts, or a job that is submitted again while its first life goes on.
It is no proof: of two that find nothing at the same moment, each writes and looks once more after `SETTLE`; a
write that takes longer than that on its way is noticed by the other only at its next beat.
"""

import _thread
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

BEAT = 10.0  # seconds between changes
GONE = 45.0  # seconds without one, and whoever made them is gone
SETTLE = 2.0  # seconds after which a write of somebody else at the same moment shows

Read = Callable[[], bytes | None]
Write = Callable[[bytes | None], None]


@contextmanager
def lit(name: str, read: Read, write: Write, say: Callable[[str], None]) -> Iterator[None]:
    """Keep others out for the length of the block; `write(None)` removes the object.

    Raises:
        ValueError: somebody else is in.
        RuntimeError: this process was cut off for so long that somebody took it for gone, and came in.
    """
    _wait_for_silence(name, read, say)
    mine = _Beacon(read, write)
    mine.beat()
    time.sleep(SETTLE)
    if not mine.own():
        raise ValueError(f"{name} is in use by another run ({_holder(read())})")
    mine.start()
    try:
        with _interruptible():
            yield
    except KeyboardInterrupt:
        if mine.lost:
            raise RuntimeError(
                f"{name}: this run was silent for so long that another one went on in its place"
            ) from None
        raise
    finally:
        mine.stop()


@contextmanager
def _interruptible() -> Iterator[None]:
    """What a script starts in the background ignores SIGINT, and then nothing would stop the main thread."""
    main = threading.current_thread() is threading.main_thread()
    deaf = main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    if deaf:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class _Beacon(threading.Thread):
    """Beats until it is stopped; where another's beat stands in place of its own, it ends the main thread."""

    def __init__(self, read: Read, write: Write) -> None:
        super().__init__(daemon=True)
        self._read, self._write = read, write
        self._id, self._beats = uuid.uuid4().hex, 0
        self._over = threading.Event()
        self.lost = False

    def beat(self) -> None:
        self._beats += 1
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        self._write(json.dumps({"id": self._id, "beats": self._beats, "holder": holder}).encode())

    def own(self) -> bool:
        return _parsed(self._read()).get("id") == self._id

    def run(self) -> None:
        while not self._over.wait(BEAT):
            # Whatever a storage client raises, the next one may come through; without any, others come in.
            with suppress(Exception):
                if not self.own():
                    self.lost = True
                    _thread.interrupt_main()
                    return
                self.beat()

    def stop(self) -> None:
        self._over.set()
        self.join(timeout=BEAT)
        with suppress(Exception):  # the next run waits for `GONE` then
            if self.own():
                self._write(None)


def _wait_for_silence(name: str, read: Read, say: Callable[[str], None]) -> None:
    seen = read()
    if seen is None:
        return
    say(f"{name}: a run was there last ({_holder(seen)}); watching for {GONE:g} s whether it still is")
    until = time.monotonic() + GONE
    while time.monotonic() < until:
        time.sleep(min(1.0, GONE / 10))
        now = read()
        if now is None:
            return
        if now != seen:
            raise ValueError(f"{name} is in use by another run ({_holder(now)})")


def _holder(content: bytes | None) -> str:
    return str(_parsed(content).get("holder", "which does not say who it is"))[:200]


def _parsed(content: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
