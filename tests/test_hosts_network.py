"""Hosts end with whoever made them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.hosts.network import Network, Unavailable, end
from tests.manifests import ROOT, unavailable

SLEEP = ["sleep", "3599"]


def main() -> None:
    """Two hosts, one as a machine, whose processes are told; then nothing but waiting."""
    with Network(["a", "b"]) as network:
        started = [network.popen(name, SLEEP, dict(os.environ), machine=name == "a") for name in "ab"]
        while len(found := _sleeping(psutil.Process())) < len(started):
            time.sleep(0.05)
        sys.stdout.write(" ".join(map(str, [network.folder, *found])) + "\n")
        sys.stdout.flush()
        time.sleep(3600)


def _sleeping(parent: psutil.Process) -> list[int]:
    return [one.pid for one in parent.children(recursive=True) if one.cmdline() == SLEEP]


@pytest.fixture
def owner() -> subprocess.Popen[str]:
    try:
        with Network(["a"]):
            pass
    except Unavailable as error:
        unavailable(f"hosts as namespaces: {error}")
    command = [sys.executable, "-m", "tests.test_hosts_network"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_hosts_do_not_outlive_a_kill_of_whoever_made_them(owner: subprocess.Popen[str]) -> None:
    assert owner.stdout is not None
    folder, *sleeping = owner.stdout.readline().split()
    try:
        assert len(sleeping) == 2
        assert all(psutil.pid_exists(int(pid)) for pid in sleeping)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        last = time.monotonic() + 10
        while left := [pid for pid in sleeping if psutil.pid_exists(int(pid))]:
            assert time.monotonic() < last, left
            time.sleep(0.05)
    finally:
        end(owner)
        for pid in filter(psutil.pid_exists, map(int, sleeping)):
            os.kill(pid, signal.SIGKILL)
        for name in "ab":
            subprocess.run(["ip", "netns", "del", f"lr{owner.pid}-{name}"], check=True)
        shutil.rmtree(Path(folder))


if __name__ == "__main__":
    main()
