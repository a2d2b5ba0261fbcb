"""Hosts as namespaces on one switch: addresses, processes on them, faults on their cables."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import psutil

from jobs.hosts.switch import enter

T = TypeVar("T")
SUBNET = "10.77.0"
ROOT = Path(__file__).parents[2]


class Unavailable(Exception):
    """This machine allows no network namespaces. The message says why."""


class Network:
    """Hosts `names`, the first at 10.77.0.1; for a ``with``, after which nothing of it is left.

    Raises:
        Unavailable: not root, no `ip`, or no namespaces here.
    """

    def __init__(self, names: list[str]) -> None:
        self.address = {name: f"{SUBNET}.{number}" for number, name in enumerate(names, 1)}
        self._prefix = f"lr{os.getpid()}-"
        self._processes: list[subprocess.Popen[Any]] = []
        self._switch: subprocess.Popen[str] | None = None
        self.folder = Path()

    def __enter__(self) -> Self:
        tools = all(map(shutil.which, ("ip", "setpriv", "unshare")))
        if os.geteuid() != 0 or not tools or not os.path.exists("/dev/net/tun"):
            raise Unavailable("namespaces need root, the commands ip, setpriv and unshare, and /dev/net/tun")
        self.folder = Path(tempfile.mkdtemp(prefix="lrh"))
        try:
            self._build()
        except (OSError, subprocess.CalledProcessError) as error:
            self.__exit__(None, None, None)
            raise Unavailable(f"no namespaces here: {error}") from error
        return self

    def _build(self) -> None:
        for name in self.address:
            _ip("netns", "add", self._prefix + name)
        command = [sys.executable, "-m", "jobs.hosts.switch", *(self._prefix + name for name in self.address)]
        self._switch = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._heard("ready")
        for name, address in self.address.items():
            space = self._prefix + name
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")

    def _heard(self, word: str) -> None:
        assert self._switch is not None
        assert self._switch.stdout is not None
        if self._switch.stdout.readline().strip() != word:
            raise OSError("the switch does not run")

    def cable(
        self, name: str, *, up: bool = True, delay: float = 0, jitter: float = 0, loss: float = 0
    ) -> None:
        """Set the state of a host's cable: seconds, and the share of lost frames, each way."""
        assert self._switch is not None
        assert self._switch.stdin is not None
        order = {"host": self._prefix + name, "up": up, "delay": delay, "jitter": jitter, "loss": loss}
        self._switch.stdin.write(json.dumps(order) + "\n")
        self._switch.stdin.flush()
        self._heard("done")

    def popen(
        self,
        name: str,
        command: list[str],
        environment: dict[str, str],
        *,
        machine: bool = False,
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[Any]:
        """Run `command` on a host, its output in `folder`/NAME.log.

        As a `machine` it has processes, a host name, /tmp/ray and /dev/shm of its own and ends as a whole. It
        ends with the thread that calls this, at the latest.
        """
        start = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self._prefix + name]
        if machine:
            private = self.folder / f"{name}-ray"
            private.mkdir(exist_ok=True)
            set_up = (
                f"hostname {name}; mkdir -p /tmp/ray; mount --bind {private} /tmp/ray; "
                'mount -t tmpfs -o size=2g tmpfs /dev/shm; exec "$@"'
            )
            start += ["unshare", "-m", "-p", "-u", "-f", "--mount-proc", "--kill-child=KILL"]
            start += ["bash", "-c", set_up, name]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [*start, *command],
                env=environment,
                cwd=ROOT,
                stdin=stdin,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def within(self, name: str, work: Callable[[], T]) -> T:
        """The result of `work`, done in this process with a host's network."""

        def inside() -> T:
            enter(self._prefix + name)
            return work()

        with ThreadPoolExecutor(1) as thread:  # a thread has a network of its own
            return thread.submit(inside).result()

    def __exit__(self, kind: type[BaseException] | None, value: Any, trace: TracebackType | None) -> None:
        for process in self._processes:
            end(process)
        if self._switch is not None:
            end(self._switch)
        for name in self.address:
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", self._prefix + name)
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)


def end(process: subprocess.Popen[Any]) -> None:
    """kill -9, with all that came from it: pulling the plug."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process.pid)
        for one in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
    process.wait(10)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)  # noqa: S607
