"""Ray for a run: join or start it quietly, count and show."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lr_ray.config import Prices
from lr_ray.progress import Display, Tally

LAST_EXPORT = 5.0  # seconds
TASK_CPUS = 0.1
"""CPUs of a task that loads or writes rows: it waits for disks more than it computes."""


def start() -> None:
    """Join the cluster of RAY_ADDRESS (as a submitted job does), or start Ray on this machine."""
    # Ray Data keeps the share of a driver that was killed reserved for so long (read when it is imported;
    # 180 s by default): on a small cluster the same command again would wait for all of it.
    os.environ.setdefault("RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S", "30")
    import ray
    import ray.data

    if not ray.is_initialized():
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray 2.60 offers no other way to set an async actor's concurrency in `map`.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    # Where few rows are left, fewer tasks save them than might.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for")
    for name in ("ray.data", "ray.train", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def beside() -> Any:
    """The strategy of an actor that shares this process's fate: on its node, and gone with it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Where an actor takes no resources, Ray 2.60 does not heed a soft one.
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class Watch:
    """What a stage shows itself with: the tally that actors add to, and the display that reads it."""

    def __init__(self, tally: Any, display: Display) -> None:
        self.tally = tally
        self.display = display


@contextmanager
def watch(prices: Prices, run: str = "") -> Iterator[Watch]:
    """A tally actor and a display that polls it, for as long as the context lasts.

    The tally exports metrics under the label `run` (`metrics.run_label`); none: no metrics.
    """
    import ray

    # A run should outlive any node but the driver's.
    tally: Any = ray.remote(Tally).options(num_cpus=0, scheduling_strategy=beside()).remote(run, prices)
    try:
        with Display(None, prices, poll=lambda: ray.get(tally.snapshot.remote(), timeout=10)) as display:
            yield Watch(tally, display)
    finally:
        # Ended in peace it exports what it counted last, up to 10 s of the run; killed, that would be lost.
        ray.wait([tally.__ray_terminate__.remote()], timeout=LAST_EXPORT)


def root(error: BaseException) -> BaseException:
    """The error under Ray's wrappers: what a user needs to read."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        failures = getattr(error, "worker_failures", None)
        inner = next(iter(failures.values())) if failures else getattr(error, "cause", None)
        inner = inner or error.__cause__
        if isinstance(inner, BaseException) and not isinstance(error, ValueError):
            error = inner
    return error
