"""An event loop whose time is free: sleeping costs nothing, so that minutes of load are tested in a second.

And endpoints in that time, with a limit that nobody tells: a bucket of requests, a bucket of tokens, or
places for calls in flight.
"""

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from lr_ray.llm.bureau import Bureau
from lr_ray.llm.governor import Governor, Permit
from lr_ray.llm.lease import INF, Reply, Report
from lr_ray.llm.spending import Spending

Limit = Callable[[float], float]  # seconds since the start → what is allowed
Draw = Callable[[random.Random], float]
Behave = Callable[[Permit], Awaitable[None]]


class _Selector(selectors.DefaultSelector):  # type: ignore[misc,valid-type]
    """Does not sleep: moves the loop's clock on by what it was to sleep."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits for something that never comes"
        self.now += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)
        self._clock_resolution = 1e-9

    def time(self) -> float:
        return self._virtual.now


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run `work` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(work())  # type: ignore[arg-type]


@dataclass
class Endpoint:
    """Allows `limit(now)` of `form`: requests or tokens a second (a bucket of `burst` seconds), or places.

    `retry_after`: none, exact, or rounded up to whole seconds, and never less than `pause`. A share of the
    tries (`noise`) is refused whatever the limit.
    """

    form: str
    limit: Limit
    latency: Draw
    retry_after: str = "none"
    headers: bool = False
    burst: float = 1.0
    pause: float = 0.0
    noise: float = 0.0
    began: float = 0.0
    in_flight: int = 0
    used: list[tuple[float, float]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(7))
    _left: float = 1e18
    _at: float = 0.0

    async def answer(self, tokens: float) -> float | None:
        """None: answered; else refused, with Retry-After (-1: without)."""
        now = asyncio.get_running_loop().time()
        cost = {"requests": 1.0, "tokens": tokens, "places": 0.0}[self.form]
        limit = self.limit(now - self.began)
        if self.form == "places":
            wait = 0.0 if self.in_flight < limit else 0.1
        else:
            self._left = min(max(limit * self.burst, 1.0), self._left + (now - self._at) * limit)
            self._at = now
            wait = max(0.0, min(cost, limit * self.burst) - self._left) / limit
            wait = 0.0 if wait < 1e-9 else wait
        if wait or (self.noise and self.rng.random() < self.noise):
            self.refused.append(now)
            await asyncio.sleep(0.005)
            wait = {"none": -1.0, "exact": wait, "whole": float(int(wait) + 1)}[self.retry_after]
            return max(wait, self.pause) if self.retry_after != "none" else wait
        self._left -= cost
        self.in_flight += 1
        self.used.append((now, cost))
        await asyncio.sleep(self.latency(self.rng))
        self.in_flight -= 1
        return None

    def about(self) -> dict[str, str]:
        """The headers about the limit, as OpenAI writes them; none, if it keeps it to itself."""
        if not self.headers:
            return {}
        now = asyncio.get_running_loop().time()
        limit = self.limit(now - self.began)
        left = min(limit * self.burst, self._left + (now - self._at) * limit)
        return {
            f"x-ratelimit-limit-{self.form}": str(int(limit * 60)),
            f"x-ratelimit-remaining-{self.form}": str(int(max(0, left))),
            f"x-ratelimit-reset-{self.form}": f"{int((limit * self.burst - left) / limit * 1000)}ms",
        }


@dataclass
class Load:
    """Processes with calls without end, `rows` at once each, of `tokens` each."""

    endpoint: Endpoint
    processes: int = 1
    rows: int = 400
    ceiling: int = 512
    tokens: Callable[[random.Random], int] = lambda _: 1000
    alone: bool = False
    governors: list[Governor] = field(default_factory=list)
    ask: Callable[[str, Report], Awaitable[Reply]] | None = None

    async def go(self, seconds: float) -> None:
        """Load the endpoint for so long."""
        loop = asyncio.get_running_loop()
        self.endpoint.began = loop.time()
        bureau = self.bureau = Bureau(self.ceiling)

        async def there_and_back(name: str, report: Report) -> Reply:
            await asyncio.sleep(0.003)
            reply = bureau.report(name, report, loop.time())
            await asyncio.sleep(0.002)
            return reply

        ask = self.ask or there_and_back

        tasks: list[asyncio.Task[Any]] = []
        for n in range(self.processes):
            governor = Governor(self.ceiling, remote=not self.alone)
            self.governors.append(governor)
            if not self.alone:
                tasks.append(asyncio.create_task(governor.beats(lambda r, n=n: ask(str(n), r))))
            rng = random.Random(n)
            tasks += [asyncio.create_task(self._calls(governor, rng)) for _ in range(self.rows)]
        await asyncio.sleep(seconds)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _calls(self, governor: Governor, rng: random.Random) -> None:
        while True:
            tokens, tries = self.tokens(rng), 0
            while True:
                async with governor.permit(tokens) as permit:
                    wait = await self.endpoint.answer(tokens)
                    if wait is None:
                        permit.succeeded(tokens, self.endpoint.about())
                        break
                    permit.throttled(None if wait < 0 else wait, self.endpoint.about())
                tries += 1
                await asyncio.sleep(rng.uniform(0, min(60, 0.5 * 2.0 ** (tries - 1))) + max(wait, 0))


@dataclass
class Outcome:
    """Of what was allowed, the share used; of the tries, the share refused; seconds to settle a change."""

    used: float
    refused: float
    settled: list[float]


def measure(endpoint: Endpoint, seconds: float, changes: list[float], latency: float = 0.0) -> Outcome:
    """What came of a load; for `places` use is the time they were filled, by the mean `latency`."""
    step = 0.01
    allowed = sum(endpoint.limit(i * step) * step for i in range(int(seconds / step)))
    used = sum(latency if endpoint.form == "places" else cost for _, cost in endpoint.used)
    tries = len(endpoint.used) + len(endpoint.refused)
    settled = [_settled(endpoint, change, latency) for change in changes]
    return Outcome(used / allowed, len(endpoint.refused) / tries, settled)


def _settled(endpoint: Endpoint, change: float, latency: float, window: float = 2.0) -> float:
    """Seconds after `change` until over the next `window` use is at its limit and few are refused."""
    for i in range(200):
        at = endpoint.began + change + i * 0.25
        inside = [c for t, c in endpoint.used if at <= t < at + window]
        refused = sum(at <= t < at + window for t in endpoint.refused)
        limit = endpoint.limit(at - endpoint.began) * window
        used = len(inside) * latency if endpoint.form == "places" else sum(inside)
        if 0.9 <= used / limit <= 1.15 and refused <= 0.05 * (len(inside) + refused):
            return i * 0.25
    return float("inf")


class Shared:
    """A keeper that can be lost and replaced."""

    def __init__(self, ceiling: int, spending: Spending | None = None, replicas: int = 1) -> None:
        self._ceiling = ceiling
        self.bureau = Bureau(ceiling, replicas, spending=spending)
        self.there = True

    async def ask(self, name: str, report: Report) -> Reply:
        await asyncio.sleep(0.003)
        if not self.there:
            raise ConnectionError
        return self.bureau.report(name, report, asyncio.get_running_loop().time())

    def anew(self, spending: Spending | None = None, inherits_until: float = -INF) -> None:
        self.bureau = Bureau(self._ceiling, spending=spending, inherits_until=inherits_until)
        self.there = True
