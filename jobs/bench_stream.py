"""Does judging stream: peak memory with ten times the rows, and the shared limit's share of the time.

    python -m jobs.bench_stream [--rows 300 3000] [--context-tokens 16000] [--actors 4]

For each number of rows one `lr-ray judge` of candidates from files on a Ray of its own, against a simulated
endpoint, while Ray's object store and its processes are looked at twice a second. Prints a table.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.bench_judge import machine
from jobs.judging import onejudge, workload
from lr_ray import simulated

CANDIDATES, SENTENCES = 2, 3
EVERY = 0.5  # seconds between looks
USED = re.compile(r"Plasma memory usage ([\d.]+) MiB")
LOOK = """
import sys, time, ray
from ray._private.internal_api import memory_summary
ray.init(sys.argv[1], log_to_driver=False, logging_level="error")
while True:
    print(memory_summary(stats_only=True).replace(chr(10), " "), flush=True)
    time.sleep(float(sys.argv[2]))
"""


@dataclass
class Seen:
    """`store` MiB of objects and `driver`, `judge` MiB resident, at most; `keeper` CPU seconds a second."""

    rows: int
    seconds: float = 0.0
    store: float = 0.0
    driver: float = 0.0
    judge: float = 0.0
    keeper: float = 0.0
    calls: int = 0


def files(folder: Path, rows: int, tokens: int) -> dict[str, list[str]]:
    """Prompts and candidates on disk."""
    made = workload.rows(0, rows, tokens, candidates=CANDIDATES, sentences=SENTENCES)
    prompts = [{k: row[k] for k in ("prompt_id", "context", "question")} for row in made]
    answers = [
        {"prompt_id": r["prompt_id"], "candidates": [c["text"] for c in r["candidates"]]} for r in made
    ]
    for name, lines in (("prompts", prompts), ("candidates", answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {name: [str(folder / f"{name}.jsonl")] for name in ("prompts", "candidates")}


def measure(rows: int, tokens: int, actors: int, address: str) -> Seen:
    """One run, looked at until it ends."""
    seen, keeper = Seen(rows), 0.0
    with tempfile.TemporaryDirectory() as name, simulated.running(plain=True, latency=0.2) as url:
        folder = Path(name)
        judge = {"model": "sim", "base_url": url, "actors": actors, "concurrency": 64 * actors}
        config = {"run_dir": f"{name}/run", "data": files(folder, rows, tokens), "judge": judge}
        (folder / "run.json").write_text(json.dumps(config))
        command = [sys.executable, "-m", "lr_ray.cli", "judge", f"{name}/run.json"]
        look = [sys.executable, "-c", LOOK, address, str(EVERY)]
        began = time.monotonic()
        with (
            subprocess.Popen(look, stdout=subprocess.PIPE, text=True) as looking,
            subprocess.Popen(command, env=os.environ | {"RAY_ADDRESS": address}) as driver,
        ):
            assert looking.stdout is not None
            try:
                for line in looking.stdout:
                    if driver.poll() is not None:
                        break
                    seen.store = max(seen.store, *map(float, USED.findall(line)), 0.0)
                    seen.driver = max(seen.driver, _resident(psutil.Process(driver.pid)))
                    for process in psutil.process_iter(["cmdline"]):
                        title = " ".join(process.info["cmdline"] or ())
                        if title.startswith("ray::") and "JudgeActor" in title:
                            seen.judge = max(seen.judge, _resident(process))
                        elif title.startswith("ray::Keeper"):
                            keeper = max(keeper, sum(process.cpu_times()[:2]))
            finally:
                looking.kill()
        assert driver.returncode == 0, "the run failed"
        seen.seconds = time.monotonic() - began
        seen.keeper = keeper / seen.seconds
        seen.calls = onejudge.stats(url)["requests"]
    return seen


def _resident(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 2**20
    except psutil.NoSuchProcess:
        return 0.0


def table(found: list[Seen]) -> str:
    """Markdown, a line a run."""
    lines = [
        "| rows | seconds | calls | object store, peak MiB | driver, peak MiB | a judge actor, peak MiB "
        "| keeper of the limit, CPU s a second |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in found:
        cells = [one.rows, f"{one.seconds:.0f}", f"{one.calls:,}", f"{one.store:.1f}", f"{one.driver:.0f}"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{one.judge:.0f}", f"{one.keeper:.3f}"])) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--context-tokens", type=int, default=16000)
    parser.add_argument("--actors", type=int, default=4)
    options = parser.parse_args()
    print(machine(), flush=True)
    import ray

    found: list[Any] = []
    for rows in options.rows:
        context: Any = ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
        found.append(measure(rows, options.context_tokens, options.actors, context.address_info["address"]))
        ray.shutdown()
    print(table(found))


if __name__ == "__main__":
    main()
