"""Ray over such hosts: a head without work, workers, a client that submits, and the judge's endpoint."""

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from jobs.hosts.network import Network, end

PORT, DASHBOARD, JUDGE = 6379, 8265, 8000
LATENCY = 0.15
SMALL, ENOUGH = "320k", "64m"  # of the disk; a judge run does not fit on the first
START = 300.0  # seconds in which a host must be up
# Ray notices a lost host within seconds; set before the head starts.
WATCHFUL = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
}


class Cluster(Network):
    """`workers` hosts w1, w2, … beside head, judge and client; on the local disk they share one directory."""

    def __init__(
        self, workers: int = 2, cpus: int = 2, latency: float = LATENCY, plain: bool = False
    ) -> None:
        self.workers = [f"w{number}" for number in range(1, workers + 1)]
        super().__init__(["head", *self.workers, "judge", "client"])
        self._cpus = cpus
        self._knobs = ["--latency", str(latency), *(["--plain"] if plain else [])]
        self.token = secrets.token_hex(32)
        self.machines: dict[str, subprocess.Popen[Any]] = {}
        self.disk = Path()
        self.dashboard = f"http://{self.address['head']}:{DASHBOARD}"
        self.endpoint = f"http://{self.address['judge']}:{JUDGE}"

    def environment(self, *, token: bool = True) -> dict[str, str]:
        """What processes on the hosts see."""
        kept = ("HOME", "LANG", "LR_RAY_TRACEBACK")
        path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
        found = {name: os.environ[name] for name in kept if name in os.environ}
        found |= {"PATH": path, "PYTHONUNBUFFERED": "1", "RAY_USAGE_STATS_ENABLED": "0", **WATCHFUL}
        return found | ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token} if token else {})

    def __exit__(self, kind: type[BaseException] | None, value: Any, trace: TracebackType | None) -> None:
        if self.disk.is_mount():
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)  # noqa: S607
        super().__exit__(kind, value, trace)

    def enlarge(self) -> None:
        """Make room on the small disk."""
        mount("-o", f"remount,size={ENOUGH}", str(self.disk))

    def start(self) -> None:
        """The judge, the head and the workers; and a disk that all see, too small for a run."""
        self.disk = self.folder / "disk"
        serve = [sys.executable, "-m", "lr_ray.cli", "simulate-judge", "--host", self.address["judge"]]
        self.popen("judge", [*serve, "--port", str(JUDGE), *self._knobs], self.environment())
        self.disk.mkdir()
        mount("-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(self.disk))
        self.start_head()
        for name in self.workers:
            self.start_worker(name)
        self.wait_for(len(self.workers))

    def start_head(self) -> None:
        """A head without CPUs, as a cluster for real work has it."""
        more = [f"--port={PORT}", "--num-cpus=0", f"--dashboard-host={self.address['head']}"]
        self._boot("head", ["--head", *more])
        end_by = time.monotonic() + START
        while self._alive() is None:
            assert time.monotonic() < end_by, (self.folder / "head.log").read_text()[-2000:]
            time.sleep(0.5)

    def start_worker(self, name: str) -> None:
        """One worker, which joins the head."""
        self._boot(name, [f"--address={self.address['head']}:{PORT}", f"--num-cpus={self._cpus}"])

    def _boot(self, name: str, arguments: list[str]) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        command = [ray, "start", "--block", f"--node-ip-address={self.address[name]}", *arguments]
        command += ["--object-store-memory=200000000", "--disable-usage-stats"]
        self.machines[name] = self.popen(name, command, self.environment(), machine=True)

    def power_off(self, name: str) -> None:
        """Pull a host's plug."""
        end(self.machines[name])

    def supervise(self) -> None:
        """Start again the workers whose Ray has ended, as a node's supervisor does."""
        for name in self.workers:
            if self.machines[name].poll() is not None:
                self.start_worker(name)

    def wait_for(self, workers: int) -> None:
        """Until so many workers are alive; those that ended are started again."""
        end_by = time.monotonic() + START
        while (self._alive() or 0) < workers + 1:
            self.supervise()
            assert time.monotonic() < end_by, f"{self._alive()} hosts are alive"
            time.sleep(0.5)

    def _alive(self) -> int | None:
        """Hosts alive, the head among them; None: no head."""
        try:
            summary = self.get(f"{self.dashboard}/nodes?view=summary")["data"]["summary"]
        except (OSError, KeyError, TypeError):
            return None
        return sum(node.get("raylet", {}).get("state") == "ALIVE" for node in summary)

    def get(self, url: str) -> Any:
        """JSON from `url`, seen from the client, with the token."""
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.token}"})  # noqa: S310

        def ask() -> Any:
            with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 - our own hosts
                return json.load(reply)

        return self.within("client", ask)

    def stats(self) -> dict[str, Any]:
        """The endpoint's counts."""
        return self.get(f"{self.endpoint}/stats")

    def processes(self, host: str, title: str) -> list[psutil.Process]:
        """Processes on a host whose command line or title holds `title`."""
        found = []
        for one in psutil.Process(self.machines[host].pid).children(recursive=True):
            try:
                if title in " ".join(one.cmdline()):
                    found.append(one)
            except psutil.NoSuchProcess:
                continue
        return found


def mount(*arguments: str) -> None:
    """The command, which must succeed."""
    subprocess.run(["mount", *arguments], check=True)  # noqa: S607
