"""kill -9 of the driver, of a judge actor or of the whole Ray at random points of judging, and what is left.

    python -m jobs.chaos_judge --seeds 0 34        # about 200 kills; seeds that are in --outcomes are done
    python -m jobs.chaos_judge --s3 --kinds driver actor --seeds 0 6 --outcomes s3.jsonl

A trial is one run directory: `lr-ray judge` on given candidates against the simulated judge, killed again and
again at points drawn from the seed, then left to finish, then `pairs`. Its rows must be those of an
undisturbed run, each once, its pairs the same bytes, and the calls that were asked for more than once at most
those that may be in flight when something is killed: asked for, and their answers not yet durable, which is
the limit of calls in flight. They are counted at the server (requests) and in the ledger (different answers).
What the server has in hand at the kill is shown beside it; answers on their way to the disk are not in that.
With `--s3` run directories lie on a local S3, where an answer may be on its way longer than its call keeps
its place: those that the server gave in the last `LATE` seconds before a kill may be repeated too.
Prints one JSON line a trial and a table of all.
"""

import argparse
import json
import logging
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from lr_ray import config as configs
from lr_ray import simulated
from lr_ray.llm import records
from lr_ray.pipeline import Run
from lr_ray.store import Store

KILLS = {"driver": 4, "actor": 10, "ray": 4}  # a trial
KINDS = tuple(KILLS)
LATENCY, CONCURRENCY, ACTORS = 0.15, 16, 2
PROMPTS, CANDIDATES = 24, 5
LATE = 1.5  # seconds: those of an object (`ledger.OBJECT_EVERY`), and of two uploads on this machine
UNDISTURBED = 240.0  # seconds within which a life that nobody kills must end
NAMES = ["Mira", "Toben", "Sela", "Kano", "Dovik", "Runa", "Pell", "Osk"]
GOODS = ["copper", "salt", "tin", "honey", "silk", "amber", "wax", "flax"]
OF_ITS_OWN = ("usage", "sampled_at", "first_call_at", "judged_at")  # what two equal runs differ in


@dataclass
class Outcome:
    """What became of a trial. `in_flight` (at the server), `late` (answers of the last `LATE` seconds, on
    object storage) and `repeated` are sums over its kills."""

    seed: int
    kind: str
    kills: int = 0
    missed: int = 0
    lost: int = 0
    doubled: int = 0
    judged_equal: bool = False
    pairs_equal: bool = False
    in_flight: int = 0
    repeated: int = 0
    late: int = 0
    seconds: float = 0.0
    codes: list[int] = field(default_factory=list)


def workload(folder: Path) -> None:
    """Prompts with candidates of different quality, of few and short calls."""
    rng = random.Random(0)
    with (folder / "prompts.jsonl").open("w") as prompts, (folder / "candidates.jsonl").open("w") as answers:
        for number in range(PROMPTS):
            goods = rng.sample(GOODS, len(NAMES))
            facts = [f"{name} keeps {good}." for name, good in zip(NAMES, goods, strict=True)]
            context = " ".join(["The old mill stands near the river.", *facts, "A cold wind blows."] * 2)
            prompt = {"prompt_id": f"p{number}", "context": context, "question": "What does each keep?"}
            prompts.write(json.dumps(prompt) + "\n")
            texts = []
            for right in rng.sample(range(len(facts)), CANDIDATES):
                wrong = [f"{name} keeps nothing." for name in rng.sample(NAMES, 2)]
                texts.append(" ".join(rng.sample(facts[:right], min(right, 3)) + wrong[: right % 3]) or "No.")
            answers.write(json.dumps({"prompt_id": f"p{number}", "candidates": texts}) + "\n")


class Trial:
    """A run directory in `folder` (or at `place`) that is judged at `url`; drivers join `ray` (address and
    process id; none: start their own)."""

    def __init__(
        self, folder: Path, name: str, url: str, ray: tuple[str, int] | None, place: str = ""
    ) -> None:
        self._url, self._ray = url, ray
        self.store = Store(place or str(folder / name))
        self._heard: deque[tuple[float, int]] = deque()
        self._config = folder / f"{name}.json"
        judge = {"model": "sim", "base_url": url, "concurrency": CONCURRENCY, "actors": ACTORS}
        config = {
            "run_dir": self.store.url,
            "data": {
                "prompts": [str(folder / "prompts.jsonl")],
                "candidates": [str(folder / "candidates.jsonl")],
            },
            "judge": judge | {"rows_in_flight": 4},
            "pairs": {"min_candidates": 2},
        }
        self._config.write_text(json.dumps(config))

    @contextmanager
    def driver(self, own_ray: bool = False) -> Iterator[subprocess.Popen[bytes]]:
        """`lr-ray judge`, which is at its end when the block is."""
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        if self._ray is not None and not own_ray:
            environment["RAY_ADDRESS"] = self._ray[0]
        command = [sys.executable, "-m", "lr_ray.cli", "judge", str(self._config)]
        with (
            (self._config.with_suffix(".log")).open("ab") as log,
            subprocess.Popen(command, env=environment, stdout=log, stderr=log) as driver,
        ):
            try:
                yield driver
                driver.wait(UNDISTURBED)
            finally:
                kill(tree(driver.pid))

    def finish(self) -> int:
        """Judge to the end, undisturbed. Returns the exit code."""
        with self.driver() as driver:
            return driver.wait(UNDISTURBED)

    def pairs(self) -> dict[str, bytes]:
        """The pairs' files."""
        Run(configs.load(str(self._config)), None).pairs()  # type: ignore[arg-type]
        return {name: self.store.read("pairs", name) or b"" for name in self.store.files("pairs")}

    def judged(self) -> list[dict[str, Any]]:
        """All judged rows on disk without what differs between equal runs, doubled ones included."""
        files = self.store.files("judged")
        rows = [row for name in files for row in self.store.table("judged", name).to_pylist()]
        kept = [{k: v for k, v in row.items() if k not in OF_ITS_OWN} for row in rows]
        return sorted(kept, key=lambda row: row["prompt_id"])

    def stats(self) -> dict[str, Any]:
        """The server's counts."""
        with urllib.request.urlopen(f"{self._url}/stats") as reply:  # noqa: S310 - loopback
            counts = json.load(reply)
        self._heard.append((time.monotonic(), counts["answered"]))
        while self._heard[-1][0] - self._heard[0][0] > LATE:
            self._heard.popleft()
        return counts

    def late(self) -> int:
        """Answers of the last `LATE` seconds that may not be durable, though their calls have ended."""
        return 0 if self.store.local else self._heard[-1][1] - self._heard[0][1]

    def answers(self) -> int:
        """Different answers in the ledger."""
        keys = set()
        for segment in self.store.files(records.FOLDER, records.SUFFIX):
            for line in records.lines(self.store, segment):
                record = records.parse(line)
                keys.add((record["prompt_id"], record["key"]) if record else None)
        return len(keys - {None})

    def actors(self) -> list[int]:
        """Processes of Ray that have written a segment of the ledger: its name holds their ids."""
        assert self._ray is not None
        writers = map(records.process_of, self.store.files(records.FOLDER, records.SUFFIX))
        pids = {int(name.rpartition("-")[2]) for name in writers}
        return sorted(pids & {process.pid for process in tree(self._ray[1])})


def tree(pid: int) -> list[psutil.Process]:
    """A process and all that come from it."""
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: list[psutil.Process]) -> None:
    """kill -9, all at once."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)


def compared(trial: Trial, reference: Trial) -> tuple[int, int, bool, bool]:
    """Rows lost, rows doubled, and whether the rest and the pairs are those of `reference`."""
    expected, found = reference.judged(), trial.judged()
    ids = {row["prompt_id"] for row in found}
    lost = len({row["prompt_id"] for row in expected} - ids)
    return lost, len(found) - len(ids), found == expected, trial.pairs() == reference.pairs()


def trial(seed: int, trial: Trial, reference: Trial, calls: int, kind: str, kills: int) -> Outcome:
    """Judge with `kills` kills at points drawn from `seed`; `calls` is what an undisturbed run takes."""
    outcome, rng, began = Outcome(seed, kind), random.Random(seed), time.monotonic()
    before = trial.stats()["requests"]
    points = sorted(rng.uniform(0, calls) for _ in range(kills))
    if kind == "actor":
        with trial.driver() as driver:
            for point in points:
                _strike(trial, driver, before + point, outcome, rng, kind)
            outcome.codes.append(driver.wait(UNDISTURBED))
    else:
        for point in points:
            with trial.driver(own_ray=kind == "ray") as driver:
                _strike(trial, driver, before + point, outcome, rng, kind)
    outcome.codes.append(trial.finish())
    outcome.lost, outcome.doubled, outcome.judged_equal, outcome.pairs_equal = compared(trial, reference)
    outcome.repeated = trial.stats()["requests"] - before - trial.answers()
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _strike(
    trial: Trial,
    driver: subprocess.Popen[bytes],
    point: float,
    outcome: Outcome,
    rng: random.Random,
    kind: str,
) -> None:
    """Kill when the server has had `point` requests, and up to a third of a second later."""
    wait = rng.uniform(0, 0.3)
    while trial.stats()["requests"] < point or (kind == "actor" and not trial.actors()):
        if driver.poll() is not None:
            outcome.missed += 1
            return
        time.sleep(0.01)
    time.sleep(wait)
    if driver.poll() is not None:
        outcome.missed += 1
        return
    actors = trial.actors() if kind != "ray" else []
    if kind == "actor" and not actors:
        outcome.missed += 1
        return
    seen = [(time.monotonic(), trial.stats()["in_flight"])]
    kill([psutil.Process(rng.choice(actors))] if kind == "actor" else tree(driver.pid))
    while kind == "driver" and any(map(_alive, actors)):
        # Its actors end a little later, when Ray has noticed: what is in flight then counts.
        seen.append((time.monotonic(), trial.stats()["in_flight"]))
        time.sleep(0.005)
    in_flight = max(number for at, number in seen if at >= seen[-1][0] - LATENCY)
    outcome.kills += 1
    outcome.in_flight += in_flight
    outcome.late += trial.late()


def _alive(pid: int) -> bool:
    """Whether a process runs; one that only waits for its parent to take notice does not."""
    try:
        return psutil.Process(pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def head(folder: Path, port: int) -> Iterator[tuple[str, int]]:
    """A Ray that drivers join and leave; the value is its address and process id."""
    command = ["start", "--head", "--block", f"--port={port}", "--num-cpus=8", "--include-dashboard=false"]
    command += ["--node-ip-address=127.0.0.1", f"--temp-dir={folder}", "--object-store-memory=200000000"]
    ray = str(Path(sys.executable).with_name("ray"))
    # Drivers inherit it. A Ray on a port of its own wants a token of its own.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    quiet = subprocess.DEVNULL
    with subprocess.Popen([ray, *command], stdout=quiet, stderr=quiet) as process:
        try:
            yield f"127.0.0.1:{port}", process.pid
        finally:
            kill(tree(process.pid))


@contextmanager
def s3() -> Iterator[str]:
    """A local S3 in this process; the value is the URL of a run directory of the name {} there."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else each request is a line
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    # Drivers and the Ray that they join inherit these.
    os.environ.update(dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test"))
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    try:
        yield f"s3://bucket/runs/{{}}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    finally:
        server.stop()


def table(outcomes: list[Outcome]) -> str:
    """Markdown, one line a kind of kill."""
    lines = [
        "| killed | trials | kills | rows lost | rows doubled | judged rows equal | pairs identical "
        f"| calls repeated | at the server at the kills | {CONCURRENCY} a kill "
        f"| answered in the last {LATE} s | trials over both |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        of = [outcome for outcome in outcomes if outcome.kind == kind]
        if of:
            sums = [sum(getattr(o, name) for o in of) for name in ("kills", "lost", "doubled")]
            equal = [f"{sum(getattr(o, n) for o in of)}/{len(of)}" for n in ("judged_equal", "pairs_equal")]
            calls = [sum(o.repeated for o in of), sum(o.in_flight for o in of), CONCURRENCY * sums[0]]
            late, over = sum(o.late for o in of), sum(o.repeated > bound(o) for o in of)
            cells = [kind, len(of), *sums, *equal, *calls, late, over]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def bound(outcome: Outcome) -> int:
    """The calls that its kills may repeat."""
    return CONCURRENCY * outcome.kills + outcome.late


def trials(
    folder: Path,
    seeds: list[int],
    port: int,
    kinds: tuple[str, ...] = KINDS,
    kills: int | None = None,
    remote: bool = False,
) -> Iterator[Outcome]:
    """One trial a seed, of the kind that its number tells, against one undisturbed run; `remote`: on S3."""
    workload(folder)
    with ExitStack() as stack:
        place = stack.enter_context(s3()) if remote else ""
        url = stack.enter_context(simulated.running(latency=LATENCY))
        ray = None
        if set(kinds) != {"ray"}:
            ray_folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="lr", ignore_cleanup_errors=True)
            )
            ray = stack.enter_context(head(Path(ray_folder), port))
        reference = Trial(folder, "undisturbed", url, ray, place.format("undisturbed"))
        assert reference.finish() == 0, (folder / "undisturbed.log").read_text()
        calls = reference.stats()["requests"]
        for seed in seeds:
            name = f"trial{seed}"
            one = Trial(folder, name, url, ray, place.format(name))
            kind = kinds[seed % len(kinds)]
            yield trial(seed, one, reference, calls, kind, kills or KILLS[kind])


def main() -> None:
    """Run a slice of seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 34), metavar=("FIRST", "END"))
    parser.add_argument("--minutes", type=float, default=600.0, help="after which no trial is begun")
    parser.add_argument("--port", type=int, default=26379, help="of the Ray that is started")
    parser.add_argument("--s3", action="store_true", help="run directories on a local S3")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of kills, seed by seed")
    parser.add_argument("--kills", type=int, help="a trial; default: by kind")
    parser.add_argument("--outcomes", default="chaos.jsonl", help="a line a trial is added to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the Ray started here ends with us
    outcomes = Path(options.outcomes)
    outcomes.touch()
    done = [json.loads(line)["seed"] for line in outcomes.read_text().splitlines()]
    left = [seed for seed in range(*options.seeds) if seed not in done]
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="lr-chaos") as folder:
        kinds = tuple(options.kinds)
        for outcome in trials(Path(folder), left, options.port, kinds, options.kills, options.s3):
            line = json.dumps(asdict(outcome))
            print(line, flush=True)
            with outcomes.open("a") as file:
                file.write(line + "\n")
            if time.monotonic() > end:
                break
    print(table([Outcome(**json.loads(line)) for line in outcomes.read_text().splitlines()]))


if __name__ == "__main__":
    main()
