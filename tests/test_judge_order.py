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
from lr_ray.judge.order import LONG, Turn, Turns
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


def start(
    turn: Turn, endpoint: Endpoint, asked: Call[Any], shared: int = 0, where: tuple[int, ...] = ()
) -> Awaitable[Any]:
    return asyncio.ensure_future(turn.take(asked, where, shared, endpoint.ask))


def test_rows_go_as_they_began_and_extracts_of_a_document_chunk_by_chunk() -> None:
    async def work(endpoint: Endpoint) -> None:
        turns = Turns()
        with turns.row("A") as one, turns.row("B") as other, turns.row("A") as two:
            for turn in (two, other, one):
                for asked in (call("support", 0), call("extract", None, 1), call("extract", None, 0)):
                    start(turn, endpoint, asked, where=(5, 7) if asked.name == "support" else ())
            await settle()
            rows = dict(zip(map(id, endpoint.begun), "222111000", strict=True))
            found = sorted(endpoint.begun, key=lambda c: c.order)
            assert [(rows[id(c)], c.name, c.index) for c in found] == [
                ("0", "extract", 0),
                ("2", "extract", 0),
                ("0", "extract", 1),
                ("2", "extract", 1),
                ("0", "support", 0),
                ("2", "support", 0),
                ("1", "extract", 0),
                ("1", "extract", 1),
                ("1", "support", 0),
            ]

    within(work)


def test_a_document_out_of_flight_is_forgotten() -> None:
    turns = Turns()
    with turns.row("A"), turns.row("A"):
        pass
    assert not turns._groups


def test_verdicts_go_by_their_passages() -> None:
    async def work(endpoint: Endpoint) -> None:
        with Turns().row("A") as turn:
            places = [(3, 9), (1, 4), (3, 5), (1, 2)]
            for number, where in enumerate(places):
                start(turn, endpoint, call("support", number), where=where)
            await settle()
            found = sorted(endpoint.begun, key=lambda c: c.order)
            assert [places[c.candidate] for c in found] == sorted(places)

    within(work)


def test_with_places_free_no_call_waits_for_another() -> None:
    async def work(endpoint: Endpoint) -> None:
        with Turns(lambda: 100).row("A") as turn:
            for number in range(5):
                start(turn, endpoint, call("helpfulness", number), LONG - 1)
                start(turn, endpoint, call("support", number), LONG, where=(1, 2))
            await settle()
            assert len(endpoint.begun) == 10

    within(work)


def test_of_a_long_shared_beginning_one_goes_first_and_then_all() -> None:
    async def work(endpoint: Endpoint) -> None:
        turns = Turns(lambda: 100)
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
        with Turns(lambda: 2).row("A") as turn:
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
        with Turns(lambda: 2).row("A") as turn:
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
        with Turns(lambda: 1).row("A") as turn:
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
        with Turns(lambda: 1).row("A") as turn:
            start(turn, endpoint, call("completeness", 0), LONG)
            start(turn, endpoint, call("completeness", 1), LONG)
            start(turn, endpoint, call("helpfulness", 0))
            start(turn, endpoint, call("helpfulness", 1))
            await asyncio.sleep(0.2)
            assert len(endpoint.begun) == 4

    within(work)


@pytest.mark.parametrize("late", [False, True])
def test_the_order_reaches_nearly_all_the_reuse_that_is_possible(late: bool) -> None:
    settings = Judge(model="m", concurrency=32)
    neighbours = workload.rows(0, 16, 8000, candidates=5, questions=2)
    scattered = random.Random(0).sample(neighbours, len(neighbours))
    whole = prefix_cache.measure(neighbours, settings, None)
    worth = (whole.blocks - whole.possible) // len(neighbours)
    first_come = prefix_cache.measure(scattered, settings, 2 * worth, late=late, ordered=False)
    ordered = prefix_cache.measure(neighbours, settings, 2 * worth, late=late)
    assert ordered.calls == first_come.calls
    assert ordered.reached > first_come.reached + 0.04
    assert ordered.reached > (0.9 if late else 0.95)
    # Nobody waits while there is nothing else to do: all together take as long.
    assert ordered.seconds < 1.05 * first_come.seconds
