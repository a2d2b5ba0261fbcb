"""How many calls may be in flight: additive increase, multiplicative decrease, one cut a burst."""

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

CUT = 0.75  # of the limit remains after a 429
SUCCESSES_A_STEP = 25  # successes that raise the limit by one


Order = tuple[int, ...]  # calls that wait are let through in this order, smallest first

NO_HEADERS: Mapping[str, str] = {}


@dataclass(frozen=True)
class Permit:
    """Leave for one try of a call, at base URL number `replica`. `granted_at` is monotonic seconds.

    Whoever holds it says how the try ended, with the response's headers where there was a response.
    """

    governor: "Governor"
    granted_at: float
    replica: int = 0

    def succeeded(self, tokens: int = 0, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """The call was answered and used `tokens`, prompt and completion together."""
        self.governor.succeeded()

    def throttled(self, retry_after: float | None, headers: Mapping[str, str] = NO_HEADERS) -> None:
        """The call was refused for its rate (429); `retry_after` in seconds, where the endpoint said so."""
        self.governor.throttled(self, retry_after)

    def broke(self, reason: str) -> None:
        """A time-out, a broken connection or a 5xx: says something of the replica, not of the rate."""


class Governor:
    """The limit of one process, at most `ceiling` calls in flight. Use it from one event loop.

    Permits are granted by `order`, then as they were asked for.
    """

    def __init__(self, ceiling: int) -> None:
        assert ceiling >= 1
        self.limit = float(ceiling)
        self.in_flight = 0
        self._ceiling = ceiling
        self._waiting: list[tuple[Order, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        self._cut_at = float("-inf")
        self._paused_until = float("-inf")
        self._successes = 0

    @asynccontextmanager
    async def permit(self, tokens: int = 0, order: Order = ()) -> AsyncIterator[Permit]:
        """Wait for leave to make one call; it is given back at the end of the block.

        `tokens` is about what the call will use, prompt and completion together.
        """
        leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (order, next(self._arrivals), leave))
        self._grant()
        try:
            await leave
        except asyncio.CancelledError:
            # The grant and the cancellation may have crossed: a granted place must not leak.
            if leave.done() and not leave.cancelled():
                self._give_back()
            raise
        try:
            yield Permit(self, time.monotonic())
        finally:
            self._give_back()

    def succeeded(self) -> None:
        """A call was answered: the limit grows by one per 25 of them, up to the ceiling."""
        self._successes += 1
        if self._successes >= SUCCESSES_A_STEP:
            self._successes = 0
            self.limit = min(self._ceiling, self.limit + 1)
            self._grant()

    def throttled(self, permit: Permit, retry_after: float | None) -> None:
        """A call was refused for its rate (429): pause for `retry_after` seconds and cut the limit.

        The refusals of one burst were all granted before its cut: only the first of them cuts.
        """
        now = time.monotonic()
        if permit.granted_at > self._cut_at:
            self._cut_at, self._successes = now, 0
            self.limit = max(1.0, self.limit * CUT)
        if retry_after:
            self._paused_until = max(self._paused_until, now + retry_after)

    def _give_back(self) -> None:
        self.in_flight -= 1
        self._grant()

    def _grant(self) -> None:
        pause = self._paused_until - time.monotonic()
        if pause > 0:
            if self._waiting:
                asyncio.get_running_loop().call_later(pause, self._grant)
            return
        while self._waiting and self.in_flight < int(self.limit):
            leave = heapq.heappop(self._waiting)[-1]
            if not leave.done():
                self.in_flight += 1
                leave.set_result(None)
