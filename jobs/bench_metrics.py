"""What being seen costs: CPU a count, a record in Ray's metrics, a line of the log.

    python -m jobs.bench_metrics [--times 20000]

Starts a Ray of its own for the records. Nothing here is random. Prints markdown.
"""

import argparse
import contextlib
import logging
import os
import time
from collections.abc import Callable

from jobs.bench_client import machine
from lr_ray import metrics
from lr_ray.journal import Journal

CALL = {"prompt_id": "p", "unit": "p/0/support/3", "outcome": "answered", "seconds": 0.2}


def cost(work: Callable[[], object], times: int) -> float:
    """Microseconds of CPU of this process that `work` takes, after a first time."""
    work()
    began = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - began) / times * 1e6


def main(argv: list[str] | None = None) -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20_000)
    times = parser.parse_args(argv).times
    counts: dict[metrics.Key, float] = {}

    def count() -> None:
        key = metrics.call("support", "answered")
        counts[key] = counts.get(key, 0) + 1

    quiet, talking = Journal("r"), Journal("r", "debug")
    found = {"a count in an actor": cost(count, times)}
    found["a call that is not logged"] = cost(lambda: quiet.every_call, times)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        found["a line of the log, without the disk"] = cost(lambda: talking.debug("answer", **CALL), times)
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    exporter = metrics.Exporter("bench")
    found["a counter in Ray"] = cost(lambda: exporter.add({metrics.call("support", "cut"): 1}), times)
    found["a gauge in Ray"] = cost(lambda: exporter.put({("lr_use", "0", "in flight"): 3}), times)
    ray.shutdown()
    print(f"{machine()}\n\n| what | CPU |\n|---|---|")
    for what, microseconds in found.items():
        print(f"| {what} | {microseconds:.2f} µs |")


if __name__ == "__main__":
    main()
