"""One `Bureau` for all judge actors of a run: a Ray actor, asked beside the calls and never for one.

When it dies, Ray starts it anew and calls go on meanwhile under the last leases; what it had learned it
learns again from what the judge actors hold.
"""

import hashlib
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from lr_ray.config import Config, Judge
from lr_ray.llm.bureau import Bureau
from lr_ray.llm.governor import Governor
from lr_ray.llm.lease import INF, Reply, Report
from lr_ray.llm.spending import Spending

Ask = Callable[[Report], Awaitable[Reply]]

_kept: dict[str, Any] = {}  # a named actor lives as long as somebody holds its handle


class Keeper:
    """The actor: a bureau with a clock."""

    def __init__(self, judge: Judge, already: float) -> None:
        spending = Spending(judge.budget, already, judge.max_error_rate)
        self._bureau = Bureau(
            judge.concurrency,
            replicas(judge),
            requests=a_second(judge.requests_per_minute),
            tokens=a_second(judge.tokens_per_minute),
            spending=spending,
        )

    def report(self, name: str, report: Report) -> Reply:
        """See `Bureau.report`."""
        return self._bureau.report(name, report, time.monotonic())


def keeper(config: Config, already: float = 0.0) -> Any:
    """The handle of the run's keeper, from the driver; `already` is money that was spent before."""
    import ray

    name = f"lr-ray-governor-{hashlib.sha256(config.run_dir.encode()).hexdigest()[:16]}"
    options = {"name": name, "get_if_exists": True, "num_cpus": 0, "max_restarts": -1}
    _kept[name] = ray.remote(Keeper).options(**options).remote(config.judge, already)
    return _kept[name]


def release() -> None:
    """End this process's keepers: the next run may have another budget, and starts unstopped."""
    import ray
    from ray.exceptions import ActorHandleNotFoundError

    while _kept:
        handle = _kept.popitem()[1]
        # One of a Ray that this process has left is gone already.
        with suppress(ActorHandleNotFoundError):
            ray.kill(handle)


def replicas(judge: Judge) -> int:
    """How many base URLs share the calls."""
    return len(judge.base_url) if isinstance(judge.base_url, list) else 1


def a_second(a_minute: float | None) -> float:
    """A rate a second of one a minute; none: without limit."""
    return INF if a_minute is None else a_minute / 60


def governor(judge: Judge, remote: bool) -> Governor:
    """A process's governor as the config has it; `remote`: its leases come from the keeper."""
    requests, tokens = a_second(judge.requests_per_minute), a_second(judge.tokens_per_minute)
    return Governor(judge.concurrency, replicas(judge), requests=requests, tokens=tokens, remote=remote)


def asking(handle: Any) -> Ask:
    """How this process reports to the keeper: what `Governor.beats` wants."""
    from ray.exceptions import RayError

    name = uuid.uuid4().hex

    async def ask(report: Report) -> Reply:
        try:
            return await handle.report.remote(name, report)
        except RayError as error:
            raise ConnectionError("the keeper of the limits is not there") from error

    return ask
