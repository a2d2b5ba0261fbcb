"""The order of calls: what goes first, who waits for whom, and what a prefix cache makes of it."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from jobs.judging import prefix_cache, workload
from lr_ray.config import Judge
from lr_ray.judge import order
from lr_ray.judge.answers import SCHEMAS, Rating
from lr_ray.judge.order import LONG, Lead, Turn, Turns
from lr_ray.llm.calls import Call

RATING = Rating(analysis="", score=1)


def call(kind: str, candidate: int | None, index: int = 0) -> Call[Rating]:
    return Call(kind, [], SCHEMAS[kind], Rating, candidate, index)


class Endpoint:
    """Takes calls down as they begin, and answers each when told to."""

    def __init__(self) -> None:
        self.begun: list[Call[Any]] = []
        self._answers: list[asyncio.Future[Rating]] = []

    async def ask(self, asked: Call[Any]) -> Rating:
        self.begun.append(asked)
        if asked.begun is not None:
            asked.begun()
        self._answers.append(asyncio.get_running_loop().create_future())
        return await self._answers[-1]

    def answer(self, number: int, failure: Exception | None = None) -> None:
        answer = self._answers[number]
        _ = answer.set_exception(failure) if failure else answer.set_result(RATING)

    @property
    def names(self) -> list[tuple[str, int]]:
        return [(c.name, c.index if c.candidate is None else c.candidate) for c in self.begun]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def within(work: Callable[[Endpoint], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(work(Endpoint()), 10)

    asyncio.run(run())


class Going(Turns):
    """Turns after the first call of each kind."""

    async def after_the_first(self, kind: str, mine: Lead) -> None:
        """It was answered long ago."""


def start(
    turn: Turn, endpoint: Endpoint, asked: Call[Any], shared: int = 0, where: tuple[int, ...] = ()
) -> Awaitable[Any]:
    return asyncio.ensure_future(turn.take(asked, where, shared, endpoint.ask))


def test_rows_go_as_they_began_and_extracts_of_a_document_chunk_by_chunk() -> None:
    async def work(endpoint: Endpoint) -> None:
        turns = Going()
        with turns.row("A") as one, turns.row("B") as other, turns.row("A") as two:
            for turn in (two, other, one):
                chunks = call("extract", None, 1), call("extract", None, 0)
                for asked in (call("support", 0), call("logicality", 0), call("helpfulness", 0), *chunks):
                    start(turn, endpoint, asked, where=(5, 7) if asked.name == "support" else ())
            await settle()
            rows = dict(zip(map(id, endpoint.begun), "222221111100000", strict=True))
            found = sorted(endpoint.begun, key=lambda c: c.order)
            assert [(rows[id(c)], c.name, c.index) for c in found] == [
                ("0", "extract", 0),
                ("2", "extract", 0),
                ("0", "extract", 1),
                ("2", "extract", 1),
                ("0", "helpfulness", 0),
                ("2", "helpfulness", 0),
                ("0", "logicality", 0),
                ("2", "logicality", 0),
                ("0", "support", 0),
                ("2", "support", 0),
                ("1", "extract", 0),
                ("1", "extract", 1),
                ("1", "helpfulness", 0),
                ("1", "logicality", 0),
                ("1", "support", 0),
            ]

    within(work)


def test_a_document_out_of_flight_is_forgotten() -> None:
    turns = Going()
    with turns.row("A"), turns.row("A"):
        pass
    assert not turns._groups


def test_verdicts_go_by_their_passages() -> None:
    async def work(endpoint: Endpoint) -> None:
        with Going().row("A") as turn:
            places = [(3, 9), (1, 4), (3, 5), (1, 2)]
            for number, where in enumerate(places):
                start(turn, endpoint, call("support", number), where=where)
            await settle()
            found = sorted(endpoint.begun, key=lambda c: c.order)
            assert [places[c.candidate] for c in found] == sorted(places)

    within(work)


def test_with_places_free_no_call_waits_for_another() -> None:
    async def work(endpoint: Endpoint) -> None:
        with Going(lambda: 100).row("A") as turn:
            for number in range(5):
                start(turn, endpoint, call("helpfulness", number), LONG - 1)
                start(turn, endpoint, call("support", number), LONG, where=(1, 2))
            await settle()
            assert len(endpoint.begun) == 10

    within(work)


def test_the_first_call_of_a_kind_is_waited_for_once() -> None:
    async def work(endpoint: Endpoint) -> None:
        turns = Turns(lambda: 100)
        with turns.row("A") as one, turns.row("B") as two:
            for kind in ("helpfulness", "statements"):
                for turn in (one, two):
                    start(turn, endpoint, call(kind, 0))
            await settle()
            assert endpoint.names == [("helpfulness", 0), ("statements", 0)]
            endpoint.answer(1, OSError())
            await settle()
            assert endpoint.names[2:] == [("statements", 0)]
            endpoint.answer(0)
            await settle()
            assert endpoint.names[3:] == [("helpfulness", 0)]
            start(two, endpoint, call("helpfulness", 1))
            await settle()
            assert len(endpoint.begun) == 5

    within(work)


def test_a_row_alone_does_not_wait_for_the_first_of_a_kind() -> None:
    async def work(endpoint: Endpoint) -> None:
        with Turns(lambda: 100).row("A") as turn:
            for number in range(3):
                start(turn, endpoint, call("helpfulness", number))
            await settle()
            assert len(endpoint.begun) == 3

    within(work)


def test_who_stayed_back_for_a_chunk_goes_before_all_others() -> None:
    async def work(endpoint: Endpoint) -> None:
        turns = Going(lambda: 100)
        with turns.row("A") as first, turns.row("B") as one, turns.row("B") as two:
            start(one, endpoint, call("extract", None, 0), LONG)
            start(two, endpoint, call("extract", None, 0), LONG)
            start(first, endpoint, call("support", 0), where=(1,))
            await settle()
            assert len(endpoint.begun) == 2
            endpoint.answer(0)
            await settle()
            assert endpoint.begun[2].name == "extract"
            assert endpoint.begun[2].order < endpoint.begun[1].order < endpoint.begun[0].order

    within(work)


def test_a_leader_that_waits_for_its_leave_is_not_in_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "LONGEST_STAY", 0.02)

    async def work(endpoint: Endpoint) -> None:
        leave: list[Call[Any]] = []

        async def ask(asked: Call[Any]) -> Any:
            leave.append(asked)
            await asyncio.sleep(0.2)
            return await endpoint.ask(asked)

        with Going(lambda: 1).row("A") as turn:
            asked = [
                asyncio.ensure_future(turn.take(call("completeness", number), (), LONG, ask))
                for number in range(2)
            ]
            await asyncio.sleep(0.15)
            assert len(leave) == 1
            await asyncio.sleep(0.15)
            assert len(leave) == 2
            for one in asked:
                one.cancel()

    within(work)


def test_of_a_long_shared_beginning_one_goes_first_and_then_all() -> None:
    async def work(endpoint: Endpoint) -> None:
        turns = Going(lambda: 100)
        with turns.row("A") as turn, turns.row("A") as other:
            done = [start(turn, endpoint, call("completeness", number), LONG) for number in range(4)]
            done += [
                start(t, endpoint, call("extract", None, n), LONG) for t in (turn, other) for n in (0, 1)
            ]
            await settle()
            assert endpoint.names == [("completeness", 0), ("extract", 0), ("extract", 1)]
            endpoint.answer(2)
            await settle()
            assert endpoint.names[3:] == [("extract", 1)]
            endpoint.answer(0)
            await settle()
            assert endpoint.names[4:] == [("completeness", n) for n in (1, 2, 3)]

    within(work)


def test_while_there_are_other_calls_the_others_stay_back() -> None:
    async def work(endpoint: Endpoint) -> None:
        with Going(lambda: 2).row("A") as turn:
            start(turn, endpoint, call("logicality", 0))
            for number in range(3):
                start(turn, endpoint, call("support", number), where=(1, 2, 3))
            start(turn, endpoint, call("support", 9), where=(4, 5, 6))
            await settle()
            assert endpoint.names == [("logicality", 0), ("support", 0), ("support", 9)]
            # Its leader is answered: hot, they go although no place is free.
            endpoint.answer(1)
            await settle()
            assert endpoint.names[3:] == [("support", 1), ("support", 2)]

    within(work)


def test_a_free_place_calls_up_the_first_of_those_that_stay_back() -> None:
    async def work(endpoint: Endpoint) -> None:
        with Going(lambda: 2).row("A") as turn:
            start(turn, endpoint, call("logicality", 0))
            start(turn, endpoint, call("support", 0), where=(1, 2))
            for number, where in ((8, (1, 9)), (7, (1, 7))):
                start(turn, endpoint, call("support", number), where=where)
            await settle()
            assert len(endpoint.begun) == 2
            endpoint.answer(0)
            await settle()
            assert endpoint.names[2:] == [("support", 7)]

    within(work)


def test_a_leader_that_fails_or_is_cancelled_frees_the_others() -> None:
    async def work(endpoint: Endpoint) -> None:
        with Going(lambda: 1).row("A") as turn:
            for kind in ("completeness", "helpfulness"):
                first = start(turn, endpoint, call(kind, 0), LONG)
                start(turn, endpoint, call(kind, 1), LONG)
                await settle()
                before = len(endpoint.begun)
                _ = first.cancel() if kind == "helpfulness" else endpoint.answer(before - 1, OSError())  # type: ignore[attr-defined]
                await asyncio.gather(first, return_exceptions=True)
                await settle()
                assert endpoint.names[before:] == [(kind, 1)]

    within(work)


def test_a_leader_in_trouble_holds_nobody_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "LONGEST_STAY", 0.02)

    async def work(endpoint: Endpoint) -> None:
        with Going(lambda: 1).row("A") as turn:
            start(turn, endpoint, call("completeness", 0), LONG)
            start(turn, endpoint, call("completeness", 1), LONG)
            start(turn, endpoint, call("helpfulness", 0))
            start(turn, endpoint, call("helpfulness", 1))
            await asyncio.sleep(0.2)
            assert len(endpoint.begun) == 4

    within(work)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("questions", "size"), [(1, 1), (4, 2)])
def test_the_order_reaches_nearly_all_the_reuse_that_is_possible(
    questions: int, size: int, late: bool, record_property: Callable[[str, object], None]
) -> None:
    settings = Judge(model="m", concurrency=32)
    neighbours = workload.rows(0, 12, 8000, candidates=4, questions=questions)
    scattered = random.Random(0).sample(neighbours, len(neighbours))
    whole = prefix_cache.measure(neighbours, settings, None)
    blocks = size * ((whole.blocks - whole.possible) // len(neighbours))
    first_come = prefix_cache.measure(scattered, settings, blocks, late=late, ordered=False)
    ordered = prefix_cache.measure(neighbours, settings, blocks, late=late)
    record_property("of the possible reuse, first come and ordered", [first_come.reached, ordered.reached])
    assert ordered.calls == first_come.calls
    if late or questions > 1:  # else nothing is shared that could be dropped on the way
        assert ordered.reached > first_come.reached + 0.05
    assert ordered.reached > 0.95
    # Nobody waits while there is nothing else to do: all together take as long.
    assert ordered.seconds < 1.05 * first_come.seconds
