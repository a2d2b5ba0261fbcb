"""What a prefix cache of limited size saves of a judge's calls, by the order in which they go out.

A pure model, as inference servers do it: a prompt is cut into blocks, a block is known by the hash of
itself and all before it, and of known blocks the least recently used is dropped first, the end of a
prompt before its beginning.
"""

import asyncio
import heapq
import itertools
import random
import selectors
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lr_ray.config import Judge
from lr_ray.judge import core
from lr_ray.judge.order import Turns
from lr_ray.llm.calls import Call
from lr_ray.llm.governor import Order
from lr_ray.rows import Message, Sampled, no_usage
from lr_ray.simulated import rules

BLOCK = 64  # characters: 16 tokens, vLLM's block
SECONDS = (1.0, 3.0)  # least and most that a call takes


class Cache:
    """Blocks of prompts, at most `capacity` of them (none: all)."""

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._known: OrderedDict[int, None] = OrderedDict()

    def hits(self, chain: list[int]) -> int:
        """Blocks at the beginning of `chain` that are known; they have been used now."""
        known = next((i for i, block in enumerate(chain) if block not in self._known), len(chain))
        for block in reversed(chain[:known]):
            self._known.move_to_end(block)
        return known

    def add(self, chain: list[int]) -> None:
        for block in reversed(chain):
            self._known[block] = None
            self._known.move_to_end(block)
        while self._capacity is not None and len(self._known) > self._capacity:
            self._known.popitem(last=False)


def chain(messages: list[Message]) -> list[int]:
    """The hashes of a prompt's full blocks."""
    text = "\0".join(message["content"] for message in messages)
    hashes, last = [], 0
    for end in range(BLOCK, len(text) + 1, BLOCK):
        last = hash((last, text[end - BLOCK : end]))
        hashes.append(last)
    return hashes


@dataclass
class Reuse:
    """Blocks of all prompts, those a cache without limit would have saved, and those this one saved.

    `seconds` of virtual time that all took.
    """

    calls: int = 0
    blocks: int = 0
    possible: int = 0
    hits: int = 0
    seconds: float = 0.0

    @property
    def reached(self) -> float:
        return self.hits / self.possible


class Endpoint:
    """Many calls in flight before one cache, in virtual time; the replies are the simulated judge's.

    `late`: a prompt's blocks are known once it is answered (hosted endpoints), else once it is begun (an
    engine that schedules it). Calls that wait go by their order, or as they came.
    """

    def __init__(self, capacity: int | None, concurrency: int, *, late: bool) -> None:
        self.reuse = Reuse()
        self._cache, self._all = Cache(capacity), Cache()
        self._late = late
        self._free = concurrency
        self._waiting: list[tuple[Order, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        self._rng = random.Random(0)

    async def ask(self, call: Call[Any]) -> Any:
        blocks = chain(call.messages)
        await self._turn(call.order)
        if call.begun is not None:
            call.begun()
        self.reuse.calls += 1
        self.reuse.blocks += len(blocks)
        self.reuse.possible += self._all.hits(blocks)
        self._all.add(blocks)
        self.reuse.hits += self._cache.hits(blocks)
        if not self._late:
            self._cache.add(blocks)
        await self.send(call)
        if self._late:
            self._cache.add(blocks)
        self._free += 1
        self._grant()
        reply = rules.answer(call.name, call.messages[-1]["content"])
        return call.answer.model_validate(reply)

    async def send(self, call: Call[Any]) -> None:
        """Take the time that a call takes."""
        await asyncio.sleep(self._rng.uniform(*SECONDS))

    async def _turn(self, order: Order) -> None:
        leave: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (order, next(self._arrivals), leave))
        self._grant()
        await leave

    def _grant(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            heapq.heappop(self._waiting)[-1].set_result(None)


class VirtualTime(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next event, and whose threads are function calls."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(self._Selector(self))

    class _Selector(selectors.SelectSelector):
        def __init__(self, loop: "VirtualTime") -> None:
            super().__init__()
            self._loop = loop

        def select(self, timeout: float | None = None) -> Any:
            self._loop._now += timeout or 0.0
            return super().select(0)

    def time(self) -> float:
        return self._now

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        done = self.create_future()
        done.set_result(func(*args))
        return done


class Asks:
    """The calls of one row: equal ones once."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.usage = no_usage()
        self.first_call_at = 0.0
        self._endpoint = endpoint
        self._asked: dict[str, asyncio.Task[Any]] = {}

    async def ask(self, call: Call[Any]) -> Any:
        key = call.name + call.messages[-1]["content"]
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._endpoint.ask(call))
        return await self._asked[key]


class FirstCome(Turns):
    """No order: every call goes as it comes."""

    @contextmanager
    def row(self, context: str) -> Iterator[Any]:
        yield self

    async def take(self, call: Call[Any], where: Any, shared: int, ask: Any) -> Any:
        return await ask(call)


def measure(
    rows: Iterable[Sampled],
    settings: Judge,
    capacity: int | None,
    *,
    late: bool = False,
    ordered: bool = True,
) -> Reuse:
    """The reuse of `rows`; first come, first served unless `ordered`."""
    endpoint = Endpoint(capacity, settings.concurrency, late=late)
    with asyncio.Runner(loop_factory=VirtualTime) as runner:
        runner.run(judge(rows, settings, endpoint, ordered=ordered))
        endpoint.reuse.seconds = runner.get_loop().time()
    return endpoint.reuse


async def judge(rows: Iterable[Sampled], settings: Judge, endpoint: Endpoint, *, ordered: bool) -> None:
    """Send the calls of `rows`, as many rows at once as the settings say."""
    turns = Turns(lambda: settings.concurrency) if ordered else FirstCome()
    places = asyncio.Semaphore(settings.rows_in_flight)

    async def one(row: Sampled) -> None:
        async with places:
            await core.judge_row(row, Asks(endpoint), settings, turns=turns)

    await asyncio.gather(*map(one, rows))
