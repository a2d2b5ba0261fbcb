"""Leave for each call: in order, no faster and no more at once than the lease, at the best replica.

A process has one governor. It takes its lease from a `Bureau`: its own, or the one that all judge actors of
the run share; that one is asked beside the calls, never for one (`beats`).
"""

import asyncio
import heapq
import itertools
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from lr_ray.llm.bureau import Bureau
from lr_ray.llm.lease import INF, LEASE_LASTS, Lease, Reply, Report
from lr_ray.llm.replicas import Lane
from lr_ray.llm.spending import Account, Stopped

ACCOUNT_EVERY = 0.05  # seconds between looks at whether money is there again
TICK = 0.1  # seconds between reports to a bureau in this process
SHORTEST_SLEEP = 0.001
BEAT = 0.2  # seconds between reports to a bureau elsewhere
SHORTEST_BEAT, LONGEST_ASK, BRAKE = 0.01, 5.0, 0.25

Order = tuple[int, ...]  # calls that wait are let through in this order, smallest first

NO_HEADERS: Mapping[str, str] = {}


class Permit:
    """Leave for one try of a call, at base URL number `replica`; see `Governor.permit`.

    Whoever holds it says how the try ended, with the response's headers where there was a response.
    """

    __slots__ = ("_epoch", "_governor", "_granted_at", "_lane", "_order", "_out", "replica", "tokens")

    def __init__(self, governor: "Governor", tokens: float, order: Order) -> None:
        self._governor, self.tokens, self._order = governor, tokens, order
        self._out = False

    async def __aenter__(self) -> "Permit":
        await self._governor.enter(self, self._order)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._governor.held += self._governor.clock() - self._granted_at
        self.leave()

    def granted(self, replica: int, lane: Lane, now: float) -> None:
        """It is given, at `replica`."""
        self.replica, self._lane, self._epoch = replica, lane, lane.lease.epoch
        self._granted_at, self._out = now, True

    def leave(self) -> None:
        """Give it back."""
        if self._out:
            self._out = False
            self._lane.in_flight -= 1
        self._governor.pump()

    def succeeded(self, tokens: int = 0, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """The call was answered and used `tokens`, prompt and completion together."""
        governor, lane = self._governor, self._lane
        now = governor.clock()
        lane.answered(tokens, self.tokens, headers, now)
        lane.health.answered(now - self._granted_at, governor.quickest_but(lane), now)

    def throttled(self, retry_after: float | None, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """The call was refused for its rate (429); `retry_after` in seconds, where the endpoint said so."""
        governor, lane = self._governor, self._lane
        now = governor.clock()
        if self._out:
            # The endpoint has let go of it: what is in flight now is what it admitted.
            self._out = False
            lane.in_flight -= 1
        lane.refused(self._epoch, self.tokens, now - self._granted_at, retry_after, headers, now)
        governor.refused(lane)

    def broke(self, reason: str) -> None:
        """A time-out, a broken connection or a 5xx: says something of the replica, not of the rate."""
        self._lane.health.broke(self._governor.clock())
        self._governor.account.broke(reason)


class Governor:
    """Permits for the calls of one process, from one event loop; granted by `order`, then as they came.

    `ceiling` is of calls in flight, `replicas` are base URLs that share them; `requests` and `tokens` a
    second are upper limits the user knows. `waited` and `held` are the seconds that calls waited for leave
    and then held it. With `remote` the lease comes from elsewhere, by `beats`.
    """

    def __init__(
        self,
        ceiling: int,
        replicas: int = 1,
        *,
        requests: float = INF,
        tokens: float = INF,
        remote: bool = False,
    ) -> None:
        assert ceiling >= 1
        assert replicas >= 1
        self.account = Account()
        self.waited = self.held = 0.0
        self._bureau = None if remote else Bureau(ceiling, replicas, requests=requests, tokens=tokens)
        self._replicas = replicas
        self._keeper: str | None = None
        self._lanes: list[Lane] = []
        self._places = 1.0 if remote else INF
        self._lease_until = INF
        self._waiting: list[tuple[Order, int, asyncio.Future[None], Permit]] = []
        self._arrivals = itertools.count()
        self._spent = self._allowed = 0.0
        self._hungry, self._hungry_since, self._reported_at = 0.0, INF, -INF
        self._timer: asyncio.TimerHandle | None = None

    @property
    def limit(self) -> int:
        """Calls that this process may have in flight."""
        return int(min(self._places, sum(lane.lease.window for lane in self._lanes)))

    @property
    def in_flight(self) -> int:
        """Calls that it has in flight."""
        return sum(lane.in_flight for lane in self._lanes)

    def leased(self) -> bool:
        """Whether its lease holds: one of a keeper that cannot be reached ends."""
        return not self._lanes or self.clock() < self._lease_until

    def permit(self, tokens: int = 0, order: Order = ()) -> Permit:
        """Leave to make one call, for an ``async with``: it waits at the start and gives back at the end.

        `tokens` is about what the call will use, prompt and completion together (0: as the others).

        Raises:
            Stopped: the account says that no call may begin any more.
        """
        if not self._lanes:
            self._start()
        return Permit(self, tokens, order)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        self.clock, self._later = loop.time, loop.call_at
        now = self.clock()
        self._lanes = [Lane(Lease(), now) for _ in range(self._replicas)]
        self._urgent = asyncio.Event()
        self._report_here(now)

    async def enter(self, permit: Permit, order: Order) -> None:
        """Wait until `permit` is granted."""
        now = self.clock()
        if not self._waiting and self.account.may_begin and self._granted(permit, now):
            return
        leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._hungry_since = now
        heapq.heappush(self._waiting, (order, next(self._arrivals), leave, permit))
        self.pump()
        try:
            await leave
        except asyncio.CancelledError:
            # The grant and the cancellation may have crossed: a granted place must not leak.
            if leave.done() and not leave.cancelled() and leave.exception() is None:
                permit.leave()
            raise
        self.waited += self.clock() - now

    def _granted(self, permit: Permit, now: float) -> bool:
        lane = self._best(now) if now < self._lease_until else None
        if lane is None:
            return False
        lane.grant(permit.tokens, now)
        permit.granted(self._lanes.index(lane), lane, now)
        return True

    def _best(self, now: float) -> Lane | None:
        """Of the replicas that are well and may take a call, the one that should answer soonest."""
        lanes = self._lanes
        if len(lanes) > 1:
            if self.in_flight >= self._places:
                return None
            # Where none is well, all are as good as each other.
            lanes = [lane for lane in lanes if lane.health.well(now, lane.in_flight)] or lanes
            lanes = [lane for lane in lanes if lane.ready_at(now) <= now]
            return min(lanes, key=lambda lane: (lane.in_flight + 1) * lane.health.latency, default=None)
        return lanes[0] if lanes[0].ready_at(now) <= now else None

    def quickest_but(self, lane: Lane) -> float:
        """The usual seconds to an answer of the quickest replica other than `lane`; inf: not known."""
        if len(self._lanes) == 1:
            return INF
        others = (other.health for other in self._lanes if other is not lane)
        return min((one.latency for one in others if one.answers and not one.trial), default=INF)

    def pump(self) -> None:
        """Grant what may be granted now, and come again when more may be."""
        now = self.clock()
        if self._bureau is not None and now - self._reported_at >= TICK:
            self._report_here(now)
        waiting = self._waiting
        try:
            while waiting and self.account.may_begin:
                if waiting[0][2].done():  # cancelled
                    heapq.heappop(waiting)
                elif self._granted(waiting[0][3], now):
                    heapq.heappop(waiting)[2].set_result(None)
                else:
                    break
        except Stopped as stopped:
            while waiting:
                leave = heapq.heappop(waiting)[2]
                if not leave.done():
                    leave.set_exception(Stopped(*stopped.args))
        if not waiting:
            self._fed(now)
        else:
            self._come_again(now)

    def _fed(self, now: float) -> None:
        if self._hungry_since < now:
            self._hungry += now - self._hungry_since
        self._hungry_since = INF

    def _come_again(self, now: float) -> None:
        when = min(max(lane.ready_at(now), lane.health.aside_until) for lane in self._lanes)
        when = min(when, now + TICK)
        when = max(when, now + (SHORTEST_SLEEP if self.account.may_begin else ACCOUNT_EVERY))
        if self._timer is not None and now < self._timer.when() <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._later(when, self._awake)

    def _awake(self) -> None:
        self._timer = None
        self.pump()

    def refused(self, lane: Lane) -> None:
        """A call at `lane` was refused for its rate: say so at once."""
        if self._bureau is not None:
            self._report_here(self.clock())
        else:
            lane.braked_until = self.clock() + BRAKE  # or until the answer: a burst must not go on
            self._urgent.set()

    def _report(self, now: float) -> Report:
        if self._hungry_since < now:
            self._hungry += now - self._hungry_since
            self._hungry_since = now
        hungry, self._hungry, self._reported_at = self._hungry, 0.0, now
        account = self.account.take()
        self._spent += account.money
        seen = [lane.take(hungry, now) for lane in self._lanes]
        return Report(seen, account, self._spent, self._keeper, self._allowed)

    def _adopt(self, reply: Reply, now: float) -> None:
        self._keeper, self._places = reply.keeper, reply.places
        # From the question on: who answered it counts from when it came.
        self._lease_until = INF if self._bureau is not None else self._reported_at + LEASE_LASTS
        self._allowed = self._spent + (reply.allowance or 0.0)
        self.account.told(reply.stop, reply.allowance)
        for lane, lease in zip(self._lanes, reply.leases, strict=True):
            lane.adopt(lease, now)

    def _report_here(self, now: float) -> None:
        if self._bureau is not None:
            self._adopt(self._bureau.report("here", self._report(now), now), now)

    async def beats(self, ask: Callable[[Report], Awaitable[Reply]]) -> None:
        """For ever: report by `ask` every `BEAT` seconds, at once after a refusal, and go on as it says.

        While `ask` raises ConnectionError or TimeoutError, calls go on under the last lease, for
        `LEASE_LASTS` seconds; then they wait until it is renewed. Any other failure is raised and stops
        the calls: nobody would keep the budget.
        """
        if not self._lanes:
            self._start()
        try:
            await self._beat(ask)
        except Exception as error:
            self.account.told(f"the keeper of the limits failed: {type(error).__name__}: {error}", None)
            self.pump()
            raise

    async def _beat(self, ask: Callable[[Report], Awaitable[Reply]]) -> None:
        while True:
            began = self.clock()
            try:
                async with asyncio.timeout(LONGEST_ASK):
                    reply = await ask(self._report(began))
                self._adopt(reply, self.clock())
            except (ConnectionError, TimeoutError):
                pass  # it will be back
            self.pump()
            await asyncio.sleep(SHORTEST_BEAT)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, began + BEAT - self.clock())):
                    await self._urgent.wait()
            self._urgent.clear()
