"""What becomes of a run on several hosts when one of its parts dies: a table of faults and outcomes.

    python -m jobs.chaos_hosts [FAULT ...]        # `make test-hosts` runs all, about 25 minutes on 2 cores

The hosts are network namespaces with a Ray head without work and two workers (`jobs.hosts`). A job is sent
from another host by `lr-ray submit`, is struck when half of its work is done, and is sent once more if it
fails, as a RayJob with backoffLimit 1 does. Its rows must be those of an undisturbed run, each once, its
pairs the same bytes, its loss curve the same; calls that the endpoint had twice at most those that may be in
flight.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jobs import chaos_judge
from jobs.demo import task
from jobs.hosts.cluster import Cluster
from lr_ray.store import Store

DEMO = Path(__file__).parent / "demo"
ACTOR = "JudgeActor"
SHELLS = ("sh", "bash", "dash")
LONGEST = 420.0  # seconds of a submission
STRIKE = 180.0  # seconds within which there must be something to strike
SETTLE = 15.0  # seconds in which a host that was given up notices
ENDING = 3.0  # seconds in which the other training workers end, and no new ones start yet
OUTAGE = {"host": 20.0, "endpoint": 60.0}
STEPS, EVERY = 12, 3
SAMPLED = 96
TIMED_OUT = 124


@dataclass
class Outcome:
    """What became of one struck job."""

    fault: str
    submissions: int = 0
    codes: list[int] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    same: bool = False
    in_flight: int = 0
    repeated: int = 0
    seconds: float = 0.0
    checkpoint: int | None = None  # the last step of which there was one after the fault
    went_on: int | None = None  # the first step taken after the fault

    @property
    def well(self) -> bool:
        """Nothing was lost, no more was paid twice than may be in flight, training went on where it could."""
        ended = self.codes[-1:] == [0] and self.submissions <= 2
        resumed = self.checkpoint is None or (self.checkpoint > 0 and self.went_on == self.checkpoint + 1)
        return (
            ended
            and self.lost == self.doubled == 0
            and self.same
            and resumed
            and self.repeated <= chaos_judge.CONCURRENCY
        )


Strike = Callable[[], None]


def _nothing() -> None:
    pass


class Job:
    """`lr-ray VERB` with a config, on the hosts."""

    def __init__(self, cluster: Cluster, name: str, verb: str, config: dict[str, Any]) -> None:
        self.cluster, self.name, self.verb = cluster, name, verb
        self.file = cluster.folder / f"{name}.json"
        self.file.write_text(json.dumps(config))
        self.store = Store(config["run_dir"])

    def submit(self, stdin: int = subprocess.DEVNULL) -> subprocess.Popen[Any]:
        """Send it from the client's host."""
        command = [sys.executable, "-m", "lr_ray.cli", "submit", str(self.file), "--verb", self.verb]
        command += ["--address", self.cluster.dashboard]
        return self.cluster.popen("client", command, self.cluster.environment(), stdin=stdin)

    def run(self, fault: str = "", strike: Strike = _nothing, mend: Strike = _nothing) -> Outcome:
        """Send it, strike, and if it fails mend what no software mends and send it again."""
        outcome = Outcome(fault)
        began = time.monotonic()
        while outcome.submissions < 2:
            outcome.submissions += 1
            job = self.submit()
            if outcome.submissions == 1:
                strike()
            while job.poll() is None and time.monotonic() - began < LONGEST * outcome.submissions:
                self.cluster.supervise()
                time.sleep(0.5)
            code = job.poll()
            outcome.codes.append(TIMED_OUT if code is None else code)
            if outcome.codes[-1] == 0:
                break
            mend()
        outcome.seconds = round(time.monotonic() - began, 1)
        return outcome


class Judged(chaos_judge.Trial):
    """A judge job, and what its run directory holds."""

    def __init__(self, cluster: Cluster, name: str, disk: Path | None = None) -> None:
        super().__init__(cluster.folder, name, cluster.endpoint + "/v1", None)
        self.cluster = cluster
        config = json.loads(self._config.read_text())
        if disk is not None:
            config["run_dir"] = str(disk / name)
        self.job = Job(cluster, name, "judge", config)
        self.store = self.job.store

    def stats(self) -> dict[str, Any]:
        return self.cluster.stats()


class Campaign:
    """All faults on one cluster, against undisturbed runs of the same jobs."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.folder = cluster, cluster.folder
        chaos_judge.workload(self.folder)
        self._before = 0
        self._rng = random.Random(0)

    def reference(self) -> None:
        """The undisturbed judge run."""
        self.judged = Judged(self.cluster, "undisturbed")
        assert self.judged.job.run().codes == [0], (self.folder / "client.log").read_text()[-3000:]
        self.calls = self.cluster.stats()["requests"]
        self.judged.pairs()

    def one(self, fault: str) -> Outcome:
        """Strike, and say what became of it."""
        name = f"run{FAULTS.index(fault)}"
        if fault == SAMPLER:
            outcome = self._sampling(name)
        elif fault == TRAINER:
            outcome = self._training(name)
        else:
            outcome = self._judging(fault, name)
        self._mend()
        return outcome

    def _judging(self, fault: str, name: str) -> Outcome:
        judged = Judged(self.cluster, name, self.cluster.disk if fault == DISK else None)
        self._before = self.cluster.stats()["requests"]
        in_flight = 0

        def strike() -> None:
            nonlocal in_flight
            _until(lambda: self.cluster.stats()["requests"] - self._before >= self.calls / 2)
            # Calls come in waves; what may be in flight is their crest.
            in_flight = max(self.cluster.stats()["in_flight"] for _ in range(4))
            JUDGING[fault](self)

        if fault == DISK:
            outcome = judged.job.run(fault, mend=self.cluster.enlarge)
        else:
            outcome = judged.job.run(fault, strike)
        outcome.lost, outcome.doubled, *equal = chaos_judge.compared(judged, self.judged)
        outcome.same = all(equal)
        outcome.in_flight = in_flight
        if fault == CUT_OFF:
            time.sleep(SETTLE)  # its actors, which others replace, may still call
        self._mend()
        outcome.repeated = self.cluster.stats()["requests"] - self._before - judged.answers()
        return outcome

    def _mend(self) -> None:
        for host in self.cluster.address:
            self.cluster.cable(host)
        self.cluster.wait_for(len(self.cluster.workers))

    def kill(self, title: str, hosts: list[str]) -> None:
        """kill -9 of one process, of all that there are."""
        found = [one for host in hosts for one in self.cluster.processes(host, title)]
        found = [one for one in found if one.name() not in SHELLS]  # a job's command runs in one
        assert found, f"there is no process {title}"
        self._rng.choice(found).kill()

    @property
    def judging_hosts(self) -> list[str]:
        """Workers with a judge actor."""
        return [host for host in self.cluster.workers if self.cluster.processes(host, ACTOR)]

    def driver(self) -> None:
        """kill -9 of the job's own process."""
        self.kill("-m lr_ray.cli judge", ["head"])

    def cut_off(self) -> None:
        """A host's cable is out for a while."""
        host = self.judging_hosts[0]
        self.cluster.cable(host, up=False)
        time.sleep(OUTAGE["host"])
        self.cluster.cable(host)

    def bad_link(self) -> None:
        """A host's cable is slow and loses frames, to the end of the run."""
        self.cluster.cable(self.judging_hosts[0], delay=0.03, jitter=0.03, loss=0.02)

    def endpoint(self) -> None:
        """Nobody reaches the judge for a while."""
        self.cluster.cable("judge", up=False)
        time.sleep(OUTAGE["endpoint"])
        self.cluster.cable("judge")

    def head(self) -> None:
        """The head and with it the cluster is gone; a new one comes, as with each try of a RayJob."""
        for host in ("head", *self.cluster.workers):
            self.cluster.power_off(host)
        self.cluster.start_head()
        self.cluster.supervise()

    def _sampling(self, name: str) -> Outcome:
        rows, _ = task.make_prompts("hosts", SAMPLED)
        prompts = self.folder / "sampling.jsonl"
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = yaml.safe_load((DEMO / "demo.yaml").read_text())
        config = {"run_dir": str(self.folder / name), "data": {"prompts": [str(prompts)]}}
        config["sampling"] = settings["sampling"] | {"model": str(DEMO / "policy"), "rows_in_flight": 1}
        job = Job(self.cluster, name, "sample", config)

        def strike() -> None:
            _until(lambda: bool(job.store.files("sampled")))
            self.kill("Sampler", self.cluster.workers)

        outcome = job.run(SAMPLER, strike)
        found = [row["prompt_id"] for row in job.store.rows("sampled")]
        outcome.lost, outcome.doubled = SAMPLED - len(set(found)), len(found) - len(set(found))
        outcome.same = all(
            len(row["candidates"]) == settings["sampling"]["n"] for row in job.store.rows("sampled")
        )
        return outcome

    def _training(self, name: str) -> Outcome:
        undisturbed, struck = (self._trainer(one) for one in (f"{name}-undisturbed", name))
        assert undisturbed.run().codes == [0], (self.folder / "client.log").read_text()[-3000:]
        before: list[dict[str, Any]] = []
        checkpoint = 0

        def strike() -> None:
            nonlocal before, checkpoint
            _until(lambda: _checkpoint(struck.store) > 0 and len(_metrics(struck.store)) > EVERY)
            self.kill("RayTrainWorker", self.cluster.workers)
            time.sleep(ENDING)
            before, checkpoint = _metrics(struck.store), _checkpoint(struck.store)

        outcome = struck.run(TRAINER, strike)
        expected, found = _metrics(undisturbed.store), _metrics(struck.store)
        # The seconds that a step took are in its line: one that was taken again has another line.
        outcome.went_on = min((line["step"] for line in found if line not in before), default=None)
        outcome.checkpoint = checkpoint
        steps = [line["step"] for line in found]
        outcome.lost, outcome.doubled = STEPS - len(set(steps)), len(steps) - len(set(steps))
        outcome.same = [line["loss"] for line in found] == [line["loss"] for line in expected]
        return outcome

    def _trainer(self, name: str) -> Job:
        pairs = self.judged.store.path("pairs")
        training = {"data": [f"{pairs}/*.parquet"], "model": str(DEMO / "policy"), "max_steps": STEPS}
        training |= {"batch_size": 4, "micro_batch_size": 2, "checkpoint_steps": EVERY, "num_workers": 2}
        training |= {"num_cpus": 1.5, "reference_actors": 1}  # so that the two workers are on two hosts
        return Job(self.cluster, name, "train", {"run_dir": str(self.folder / name), "training": training})


def _metrics(store: Store) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.read("metrics.jsonl") or b"").splitlines()]


def _checkpoint(store: Store) -> int:
    """The last step of which there is a whole checkpoint; 0: none."""
    markers = Path(store.path("checkpoints")).glob("step-*/complete.json")
    return max((json.loads(marker.read_text())["step"] for marker in markers), default=0)


def _until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + STRIKE
    while not true():
        assert time.monotonic() < end, "nothing to strike"
        time.sleep(0.05)


CUT_OFF = "a host cut off for 20 s"
JUDGING: dict[str, Callable[[Campaign], None]] = {
    "judge actor, kill -9": lambda one: one.kill(ACTOR, one.cluster.workers),
    "raylet, kill -9": lambda one: one.kill("raylet/raylet", one.judging_hosts[:1]),
    "driver, kill -9": Campaign.driver,
    CUT_OFF: Campaign.cut_off,
    "30-60 ms delay and 2% loss on a host's link": Campaign.bad_link,
    "judge endpoint gone for 60 s": Campaign.endpoint,
    "head powered off": Campaign.head,
}
DISK, SAMPLER, TRAINER = "disk of the run directory full", "sampler, kill -9", "training worker, kill -9"
FAULTS = [*JUDGING, DISK, SAMPLER, TRAINER]


def table(outcomes: list[Outcome]) -> str:
    """Markdown, one line a fault."""
    lines = [
        "| fault | submissions | exit codes | rows lost | rows doubled | result as undisturbed "
        "| calls in flight at the fault | calls repeated | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        codes = ", ".join(map(str, one.codes))
        went_on = f" (after step {one.checkpoint} step {one.went_on} was next)" if one.checkpoint else ""
        cells = [
            one.fault + went_on,
            one.submissions,
            codes,
            one.lost,
            one.doubled,
            "yes" if one.same else "no",
        ]
        lines.append("| " + " | ".join(map(str, [*cells, one.in_flight, one.repeated, one.seconds])) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the faults named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "faults", nargs="*", metavar="FAULT", help=f"of: {'; '.join(FAULTS)}".replace("%", "%%")
    )
    parser.add_argument("--outcomes", help="a line a fault is added to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the hosts end with us
    outcomes = []
    with Cluster() as cluster:
        cluster.start()
        campaign = Campaign(cluster)
        campaign.reference()
        for fault in options.faults or FAULTS:
            outcomes.append(campaign.one(fault))
            line = json.dumps(asdict(outcomes[-1]))
            print(line, flush=True)
            if options.outcomes:
                with open(options.outcomes, "a") as file:
                    file.write(line + "\n")
    print(table(outcomes))
    return 0 if all(one.well for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
