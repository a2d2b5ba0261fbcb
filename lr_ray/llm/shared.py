"""One `Bureau` for all judge actors of a run: a Ray actor, asked beside the calls and never for one.

When it dies, Ray starts it anew and calls go on meanwhile under the last leases; what it had learned it
learns again from what the judge actors hold, and what was spent from the ledger.
"""

import json
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from lr_ray import metrics
from lr_ray.config import Config, Judge, Prices
from lr_ray.llm import usage
from lr_ray.llm.bureau import Bureau
from lr_ray.llm.governor import Governor
from lr_ray.llm.lease import INF, LEASE_LASTS, Reply, Report
from lr_ray.llm.lookup import TRIES
from lr_ray.llm.records import FOLDER, SUFFIX, lines, merged_away, parse, process, process_of
from lr_ray.llm.spending import Spending
from lr_ray.meter import cost
from lr_ray.runtime import beside
from lr_ray.store import Store

SHOW_EVERY = 1.0  # seconds

Ask = Callable[[Report], Awaitable[Reply]]

GONE_FOR = 60.0  # seconds; a keeper that Ray restarts is back by then

_kept: dict[str, Any] = {}  # an actor lives as long as somebody holds its handle


class Keeper:
    """The actor: a bureau with a clock, which shows limits and their use as metrics of `run`.

    `already` is money that was spent before. One that Ray has started anew reads it from the ledgers of
    `store`: what was spent since, and who spent it.
    """

    def __init__(self, judge: Judge, already: float, run: str = "", store: Store | None = None) -> None:
        anew = store is not None and _anew()
        self._recorded: dict[str, float] = {}
        if store is not None and anew and judge.budget:
            self._recorded = recorded(store, judge.prices)
            already = sum(self._recorded.values())
        spending = Spending(judge.budget, already, judge.max_error_rate)
        self._bureau = Bureau(
            judge.concurrency,
            replicas(judge),
            requests=a_second(judge.requests_per_minute),
            tokens=a_second(judge.tokens_per_minute),
            spending=spending,
            inherits_until=time.monotonic() + LEASE_LASTS if anew else -INF,
        )
        self._exporter, self._shown_at = metrics.Exporter(run), 0.0

    def report(self, name: str, report: Report) -> Reply:
        """See `Bureau.report`; `name` is one of `asking`.

        Raises:
            RuntimeError: the cluster has given that node up.
        """
        now = time.monotonic()
        if not self._bureau.knows(name, now):
            _refuse_the_dead(name)
            # A process that had the same name before may have recorded more.
            before = self._recorded.pop(name.partition("-")[2].rpartition("-")[0], 0.0)
            self._bureau.credit(name, min(before, report.spent))
        reply = self._bureau.report(name, report, now)
        if now - self._shown_at >= SHOW_EVERY:
            self._shown_at = now
            self._exporter.put(shown(self._bureau))
        return reply


def _anew() -> bool:
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def recorded(store: Store, prices: Prices) -> dict[str, float]:
    """Money by the process that recorded it (`records.process`), in all ledgers of the run directory."""
    for left in reversed(range(TRIES)):
        try:
            return _recorded(store, prices)
        except OSError:
            # A writer has merged its small objects into a larger one: see `Recorded.replies`.
            if not left:
                raise
    raise AssertionError


def _recorded(store: Store, prices: Prices) -> dict[str, float]:
    money: dict[str, float] = defaultdict(float)
    for ledger in usage.ledgers(store):
        twice = merged_away(ledger)
        for segment in ledger.files(FOLDER, SUFFIX):
            for line in () if segment in twice else lines(ledger, segment):
                record = parse(line)
                if record is not None:
                    money[process_of(segment)] += cost(record["reply"], prices) or 0.0
    return money


def _refuse_the_dead(name: str) -> None:
    """A host that was cut off and given up comes back with its actors, whose rows others have by now.

    Until its Ray notices and ends, such an actor would pay for those rows a second time.
    """
    import ray

    node = name.partition("-")[0]
    if not any(one["NodeID"] == node and one["Alive"] for one in ray.nodes()):
        raise RuntimeError("the cluster has given this node up")


def shown(bureau: Bureau) -> dict[metrics.Key, float]:
    """Limits and their use as gauges; where no limit is known it is infinite, and not shown."""
    found: dict[metrics.Key, float] = {}
    for i, limits in enumerate(bureau.limits):
        for what in ("requests", "tokens"):
            found["lr_limit", str(i), f"{what} a second"] = getattr(limits, what).limit
            found["lr_use", str(i), f"{what} a second"] = getattr(limits.usage, what)
        found["lr_limit", str(i), "in flight"] = limits.window.limit
        found["lr_use", str(i), "in flight"] = limits.usage.in_flight
    left = bureau.spending.remaining if bureau.spending else None
    return found if left is None else {**found, ("lr_budget_left",): left}


def keeper(config: Config, already: float = 0.0) -> Any:
    """The handle of the run's keeper, from the driver; `already` is money that was spent before.

    Stages at other endpoints have other limits: theirs begins when the one before has ended.
    """
    import ray

    # The session too: this process may have left the Ray that its last keeper was in.
    session = ray.get_runtime_context().gcs_address
    whose = json.dumps([session, config.run_dir, config.judge.base_url])
    if whose not in _kept:
        release()
        # Without a name, by which one that was just ended might still be found.
        options: dict[str, Any] = {"num_cpus": 0, "max_restarts": -1}
        # Elsewhere it could be cut off together with judge actors, and let them go on paying.
        options["scheduling_strategy"] = beside()
        run = metrics.run_label(config.run_dir)
        arguments = config.judge, already, run, Store(config.run_dir)
        _kept[whose] = ray.remote(Keeper).options(**options).remote(*arguments)
    return _kept[whose]


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
    import ray
    from ray.exceptions import ActorDiedError, RayError, RayTaskError

    name = f"{ray.get_runtime_context().get_node_id()}-{process()}-{uuid.uuid4().hex}"
    died_at: float | None = None

    async def ask(report: Report) -> Reply:
        nonlocal died_at
        try:
            reply = await handle.report.remote(name, report)
        except RayTaskError:
            raise  # its own failure, which it would have again
        except RayError as error:
            if isinstance(error, ActorDiedError):
                died_at = died_at or time.monotonic()
                if time.monotonic() - died_at > GONE_FOR:
                    raise RuntimeError("the keeper of the limits is gone for good") from error
            raise ConnectionError("the keeper of the limits is not there") from error
        died_at = None
        return reply

    return ask
