"""In which order a judge actor's calls go out, so that prefix caches hit although they are small.

Rows that began first go first, so that what their calls share is used again before it is dropped. Rows on
one document in flight together are one group: its extracts go chunk by chunk, then the calls that share
little more than their instructions kind by kind, then the rest row by row.

Calls that begin together all miss a cache that learns a prompt only when it is answered. So of calls that
share a beginning the first leads, and the others stay back until it is answered: as long as there are other
calls to make, which costs no time, and where they share so much that it pays for the time, in any case. The
first call of each kind is waited for once, by all rows in flight, for the instructions. Whoever stayed back
for a long beginning then goes before all others: the leader may have gone out early, into a place that was
free, and what it left in the cache will not stay there until the turn of its group.
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
HOT = -1  # in place of a group: before all of them
SHORT = ("statements", "helpfulness", "logicality")  # what their calls share is short
KINDS = ("statements", "helpfulness", "logicality", "completeness", "support")

A = TypeVar("A", bound=BaseModel)
Beginning = tuple[str | int, ...]


class Lead:
    """A call that others wait for: when it has begun, and when it is answered (or came to nothing).

    Until it has begun it waits as everybody does, and the others may as well wait with it.
    """

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.done: asyncio.Future[None] = loop.create_future()

    def begin(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)

    def end(self) -> None:
        self.begin()
        self.done.set_result(None)

    async def wait(self, place: asyncio.Future[None] | None = None) -> None:
        """Until it is answered or `place` is given, but no longer than `LONGEST_STAY` after it began."""
        others = [] if place is None else [place]
        # Waits, not awaits: neither the leader's end nor ours may cancel the other's.
        await asyncio.wait([self.begun, *others], return_when=asyncio.FIRST_COMPLETED)
        if place is None or not place.done():
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait([self.done, *others], timeout=LONGEST_STAY, return_when=first)


@dataclass
class _Group:
    """The rows in flight on one document, the first of them `number`."""

    number: int
    rows: int = 0
    leads: dict[Beginning, Lead] = field(default_factory=dict)


class Turns:
    """The turns of the rows of one event loop. `limit` tells how many calls may be in flight at present."""

    def __init__(self, limit: Callable[[], float] = lambda: math.inf) -> None:
        self._limit = limit
        self._out = 0
        self._back: list[tuple[Order, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._groups: dict[str, _Group] = {}
        self._firsts: dict[str, Lead] = {}

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

    async def after_the_first(self, kind: str, mine: Lead) -> None:
        """Wait for the first call of `kind`, unless it is `mine`; a row alone is quicker without."""
        first = self._firsts.setdefault(kind, mine)
        alone = sum(group.rows for group in self._groups.values()) == 1
        if first is not mine and not first.done.done() and not alone:
            await first.wait()

    async def stay_back(self, lead: Lead, order: Order, *, long: bool) -> None:
        """Wait for `lead` to be answered; unless it is `long`, no longer than there are other calls."""
        if long:
            await lead.wait()
        elif self._out >= self._limit():
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._back, (order, next(self._numbers), place))
            await lead.wait(place)
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
        mine = Lead()
        leads.update(dict.fromkeys(beginnings[len(ahead) :], mine))
        try:
            await self._turns.after_the_first(call.name, mine)
            if ahead:
                if not ahead[-1].done.done():
                    # Passages may differ after the first, so that a long stay need not pay.
                    long = shared >= LONG and call.name != "support"
                    await self._turns.stay_back(ahead[-1], call.order, long=long)
                if ahead[-1].done.done() and call.name not in SHORT:
                    # What it shares is in the cache; later it might not be.
                    call = replace(call, order=(HOT, *call.order))
            with self._turns.out():
                return await ask(replace(call, begun=mine.begin))
        finally:
            mine.end()

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
        if kind in SHORT:
            return (self._group.number, 1, KINDS.index(kind), self._number, *where)
        return (self._group.number, 2, self._number, KINDS.index(kind), *where)
