"""In which order a judge actor's calls go out, so that prefix caches hit although they are small.

Rows that began first go first, so that what their calls share is used again before it is dropped. Rows on
one document in flight together are one group, whose extracts go chunk by chunk.

Calls that begin together all miss a cache that learns a prompt only when it is answered. So of calls that
share a beginning the first leads, and the others stay back until it is answered: as long as there are other
calls to make, which costs no time, and where they share so much that it pays for the time, in any case.
"""

import asyncio
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pydantic import BaseModel

from lr_ray.llm.calls import Call
from lr_ray.llm.governor import Order

LONG = 8192  # characters, about 2,000 tokens
LONGEST_STAY = 15.0  # seconds; a leader in trouble holds the others back no longer
KINDS = ("statements", "helpfulness", "logicality", "completeness", "support")

A = TypeVar("A", bound=BaseModel)
Beginning = tuple[str | int, ...]


@dataclass
class _Group:
    """The rows in flight on one document, the first of them `number`; a lead is done once answered."""

    number: int
    rows: int = 0
    leads: dict[Beginning, asyncio.Future[None]] = field(default_factory=dict)


class Turns:
    """The turns of the rows of one event loop. `limit` tells how many calls may be in flight at present."""

    def __init__(self, limit: Callable[[], float] = lambda: math.inf) -> None:
        self._limit = limit
        self._out = 0
        self._back: list[tuple[Order, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._groups: dict[str, _Group] = {}

    @contextmanager
    def row(self, context: str) -> Iterator["Turn"]:
        """The turn of a row over `context`, for as long as it is judged."""
        number = next(self._numbers)
        group = self._groups.setdefault(context, _Group(number))
        group.rows += 1
        try:
            yield Turn(self, group, number)
        finally:
            group.rows -= 1
            if not group.rows:
                del self._groups[context]

    @contextmanager
    def out(self) -> Iterator[None]:
        """Around a call that is in flight or waits for leave to be."""
        self._out += 1
        try:
            yield
        finally:
            self._out -= 1
            self._call_up()

    async def stay_back(self, lead: asyncio.Future[None], order: Order, *, long: bool) -> None:
        """Wait for `lead` to be answered; unless it is `long`, no longer than there are other calls."""
        if long:
            # A wait, not an await: neither the leader's end nor ours may cancel the other's.
            await asyncio.wait([lead], timeout=LONGEST_STAY)
        elif self._out >= self._limit():
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._back, (order, next(self._numbers), place))
            await asyncio.wait([lead, place], timeout=LONGEST_STAY, return_when=asyncio.FIRST_COMPLETED)
            place.cancel()

    def _call_up(self) -> None:
        free = self._limit() - self._out
        while self._back and (free > 0 or self._back[0][-1].done()):
            place = heapq.heappop(self._back)[-1]
            if not place.done():
                place.set_result(None)
                free -= 1


class Turn:
    """Where one row's calls stand among those of all rows."""

    def __init__(self, turns: Turns, group: _Group, number: int) -> None:
        self._turns, self._group, self._number = turns, group, number

    async def take(
        self, call: Call[A], where: tuple[int, ...], shared: int, ask: Callable[[Call[A]], Awaitable[A]]
    ) -> A:
        """The answer to `call`, asked in its order once it is its turn.

        `where` are the places of the passages of a verdict; `shared` is how many characters calls of this
        kind have in common.
        """
        where = where or (call.index if call.candidate is None else call.candidate,)
        call = replace(call, order=self._order(call.name, where))
        leads, beginnings = self._group.leads, self._beginnings(call.name, where)
        ahead = [leads[beginning] for beginning in beginnings if beginning in leads]
        mine = asyncio.get_running_loop().create_future()
        leads.update(dict.fromkeys(beginnings[len(ahead) :], mine))
        try:
            if ahead and not ahead[-1].done():
                # Passages may differ after the first, so that a long stay need not pay.
                long = shared >= LONG and call.name != "support"
                await self._turns.stay_back(ahead[-1], call.order, long=long)
            with self._turns.out():
                return await ask(call)
        finally:
            mine.set_result(None)

    def _beginnings(self, kind: str, where: tuple[int, ...]) -> list[Beginning]:
        """What the call shares with others, from the least to the most."""
        if kind == "extract":
            return [(kind, *where)]
        if kind == "support":
            return [(kind, self._number, *where[:end]) for end in range(1, len(where) + 1)]
        return [(kind, self._number)]

    def _order(self, kind: str, where: tuple[int, ...]) -> Order:
        if kind == "extract":
            return (self._group.number, 0, *where, self._number)
        return (self._group.number, 1, self._number, KINDS.index(kind), *where)
