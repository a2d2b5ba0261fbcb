import asyncio
import math
import random

import pytest

from lr_ray.llm.governor import Governor, Permit
from tests import virtual
from tests.virtual import Endpoint, Load, Outcome, measure, run

FORMS = [("requests", 100), ("tokens", 100_000), ("places", 64)]
PHASE = 45.0  # seconds until the limit halves, and until it doubles again


def steps(limit: float) -> virtual.Limit:
    return lambda at: limit / 2 if PHASE <= at < 2 * PHASE else limit


def steady(seconds: float) -> virtual.Draw:
    return lambda _: seconds


def scattered(seconds: float) -> virtual.Draw:
    """Log-normal: one in twenty takes more than twice the mean."""
    return lambda rng: rng.lognormvariate(0, 0.6) * seconds / math.exp(0.18)


def sizes(rng: random.Random) -> int:
    return 1 + int(rng.lognormvariate(0, 0.8) * 1000 / math.exp(0.32))


def driven(endpoint: Endpoint, latency: float, processes: int) -> Outcome:
    load = Load(endpoint, processes, 400 if processes == 1 else 100, alone=processes == 1)
    if endpoint.form == "tokens":
        load.tokens = sizes
    run(lambda: load.go(3 * PHASE))
    return measure(endpoint, 3 * PHASE, [PHASE, 2 * PHASE], latency)


@pytest.mark.parametrize("retry_after", ["none", "exact"])
@pytest.mark.parametrize(("form", "limit"), FORMS)
def test_one_process_fills_an_unknown_limit_that_halves_and_doubles(
    form: str, limit: float, retry_after: str
) -> None:
    outcome = driven(Endpoint(form, steps(limit), scattered(0.2), retry_after), 0.2, 1)
    # A probe for more places ends in a refusal. Where that asks for a pause, places come free in it and stay
    # so: probes that find a doubled limit within 10 s would cost more than 5%, and rarer ones take longer.
    paused = (form, retry_after) == ("places", "exact")
    assert outcome.used >= (0.94 if paused else 0.95)
    assert outcome.refused <= 0.02
    assert max(outcome.settled) <= (21 if paused else 10)


@pytest.mark.parametrize(("form", "limit"), FORMS)
def test_eight_processes_share_a_limit_nearly_as_well_as_one(form: str, limit: float) -> None:
    outcome = driven(Endpoint(form, steps(limit), steady(0.2)), 0.2, 8)
    assert outcome.used >= 0.95
    # Word of a cut takes a beat (0.2 s) to reach all eight, and meanwhile they go on asking at the old rate;
    # of places they ask for no more than come free.
    assert outcome.refused <= (0.02 if form == "places" else 0.03)
    assert max(outcome.settled) <= 10


@pytest.mark.parametrize("processes", [1, 8])
@pytest.mark.parametrize(("form", "limit"), FORMS)
def test_pauses_of_whole_seconds_cost_what_is_not_begun_in_them(
    form: str, limit: float, processes: int
) -> None:
    outcome = driven(Endpoint(form, steps(limit), scattered(0.2), "whole"), 0.2, processes)
    assert outcome.refused <= 0.02
    # A rate is made up for afterwards, as far as the endpoint's bucket (1 s) holds what was not asked for.
    # Places hold nothing: those of 5 answers are lost in each second, so that the few probes that can be
    # afforded neither fill them nor find a doubled limit soon.
    assert outcome.used >= (0.65 if form == "places" else 0.92)
    assert max(outcome.settled) <= (25 if form == "places" else 10)


def test_retry_after_in_whole_seconds_is_honoured_and_made_up_for() -> None:
    endpoint = Endpoint("requests", steps(100), steady(0.2), "whole")
    outcome = driven(endpoint, 0.2, 1)
    assert outcome.used >= 0.92  # as above
    assert outcome.refused <= 0.01
    # After a refusal nothing begins for a second, but what was on its way.
    times = sorted(at for at, _ in endpoint.used)
    first = endpoint.refused[0]
    assert not [at for at in times if first + 0.02 < at < first + 0.98]


@pytest.mark.parametrize("processes", [1, 4])
def test_pauses_of_several_seconds_end(processes: int) -> None:
    endpoint = Endpoint("requests", lambda _: 50, steady(0.2), "exact", pause=3.0)
    load = Load(endpoint, processes, 100, alone=processes == 1)
    run(lambda: load.go(120))
    assert sum(at > 60 for at, _ in endpoint.used) >= 0.6 * 50 * 60


def test_a_named_limit_is_kept_without_a_refusal_once_it_is_understood() -> None:
    endpoint = Endpoint("requests", steps(100), steady(0.2), headers=True)
    outcome = driven(endpoint, 0.2, 1)
    assert outcome.used >= 0.98
    assert outcome.refused <= 0.01
    assert max(outcome.settled) <= 2
    assert len([at for at in endpoint.refused if at > 10]) <= 15


def test_a_limit_the_user_knows_is_never_passed() -> None:
    async def work() -> int:
        governor, began = Governor(64, requests=20.0), asyncio.get_running_loop().time()
        granted = 0

        async def calls() -> None:
            nonlocal granted
            while asyncio.get_running_loop().time() < began + 10:
                async with governor.permit() as permit:
                    granted += 1
                    await asyncio.sleep(0.05)
                    permit.succeeded(10)

        await asyncio.gather(*(calls() for _ in range(64)))
        return granted

    assert 190 <= run(work) <= 64 + 205  # those who wait at the end are let through


def test_no_more_in_flight_than_the_ceiling_and_first_come_first_served() -> None:
    async def work() -> tuple[int, list[int]]:
        governor, most, order = Governor(3), 0, []

        async def call(number: int) -> None:
            nonlocal most
            async with governor.permit():
                order.append(number)
                most = max(most, governor.in_flight)
                await asyncio.sleep(0.001)

        await asyncio.gather(*map(call, range(20)))
        assert governor.in_flight == 0
        return most, order

    assert run(work) == (3, list(range(20)))


def test_waiting_calls_go_by_their_order() -> None:
    async def work() -> list[int]:
        governor, went = Governor(1), []

        async def call(number: int) -> None:
            async with governor.permit(order=(number % 3, number)):
                went.append(number)
                await asyncio.sleep(0.01)

        await asyncio.gather(*map(call, range(7)))
        return went

    assert run(work) == [0, 3, 6, 1, 4, 2, 5]


def test_a_burst_of_429s_cuts_once() -> None:
    async def work() -> tuple[int, int]:
        governor = Governor(16)
        permits = [governor.permit() for _ in range(16)]
        for permit in permits:
            await permit.__aenter__()
        await asyncio.sleep(0.005)
        permits[0].throttled(None)
        after_one = governor.limit
        for permit in permits[1:]:
            permit.throttled(None)
        return after_one, governor.limit

    assert run(work) == (15, 15)


def test_retry_after_pauses_everybody() -> None:
    async def work() -> float:
        governor, loop = Governor(4), asyncio.get_running_loop()
        async with governor.permit() as permit:
            permit.throttled(0.3)
        began = loop.time()

        async def call() -> None:
            async with governor.permit():
                pass

        await asyncio.gather(*(call() for _ in range(10)))
        return loop.time() - began

    assert 0.29 <= run(work) < 2


def test_a_cancelled_wait_leaks_no_place() -> None:
    async def work() -> None:
        governor = Governor(1)

        async def call(seconds: float) -> None:
            async with governor.permit():
                await asyncio.sleep(seconds)

        first = asyncio.create_task(call(0.05))
        await asyncio.sleep(0)
        second = asyncio.create_task(call(10))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await asyncio.wait_for(call(0), 1)
        assert governor.in_flight == 0

    run(work)


async def _visits(governor: Governor, behave: virtual.Behave, seconds: float) -> list[tuple[float, int]]:
    """Calls without end for so long: when each began, and at which replica; `behave` answers one."""
    loop, visits = asyncio.get_running_loop(), []
    end = loop.time() + seconds

    async def calls() -> None:
        while loop.time() < end:
            async with governor.permit() as permit:
                visits.append((loop.time(), permit.replica))
                await behave(permit)

    await asyncio.gather(*(calls() for _ in range(32)))
    return visits


def _shares(visits: list[tuple[float, int]], since: float, until: float) -> dict[int, float]:
    there = [replica for at, replica in visits if since <= at < until]
    return {replica: there.count(replica) / len(there) for replica in (0, 1)}


def test_replicas_share_the_calls_by_how_quick_they_are() -> None:
    async def work() -> list[tuple[float, int]]:
        async def behave(permit: Permit) -> None:
            await asyncio.sleep(0.1 if permit.replica == 0 else 0.2)
            permit.succeeded(10)

        return await _visits(Governor(24, 2), behave, 30)

    shares = _shares(run(work), 5, 30)
    assert 0.55 <= shares[0] <= 0.85


@pytest.mark.parametrize("fault", ["fails", "is slow"])
def test_a_bad_replica_is_set_aside_and_tried_again(fault: str) -> None:
    async def work() -> list[tuple[float, int]]:
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def behave(permit: Permit) -> None:
            if permit.replica == 1 and loop.time() < began + 20:
                await asyncio.sleep(0.01 if fault == "fails" else 1.0)
                if fault == "fails":
                    permit.broke("HTTP 500")
                    return
            else:
                await asyncio.sleep(0.1)
            permit.succeeded(10)

        return await _visits(Governor(24, 2), behave, 60)

    visits = run(work)
    assert _shares(visits, 10, 20)[1] < 0.03
    assert _shares(visits, 50, 60)[1] > 0.3


def test_where_every_replica_fails_calls_still_go_out() -> None:
    async def work() -> list[tuple[float, int]]:
        async def behave(permit: Permit) -> None:
            await asyncio.sleep(0.1)
            permit.broke("HTTP 500")

        return await _visits(Governor(8, 2), behave, 10)

    assert len(run(work)) > 100
