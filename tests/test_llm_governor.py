import asyncio

from lr_ray.llm.governor import Governor, Permit
from tests.endpoint import run


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


def test_a_burst_of_429s_cuts_once() -> None:
    governor = Governor(100)
    burst = [Permit(governor, 10.0) for _ in range(50)]
    for permit in burst:
        governor.throttled(permit, None)
    assert governor.limit == 75


def test_a_429_after_the_cut_cuts_again_but_never_below_one() -> None:
    async def work() -> None:
        governor = Governor(2)
        for _ in range(9):
            async with governor.permit() as permit:
                await asyncio.sleep(0.001)
                governor.throttled(permit, None)
        assert governor.limit == 1

    run(work)


def test_successes_raise_the_limit_up_to_the_ceiling() -> None:
    async def work() -> None:
        governor = Governor(8)
        governor.throttled(Permit(governor, 1.0), None)
        assert governor.limit == 6
        for _ in range(24):
            governor.succeeded()
        assert governor.limit == 6
        governor.succeeded()
        assert governor.limit == 7
        for _ in range(500):
            governor.succeeded()
        assert governor.limit == 8

    run(work)


def test_retry_after_pauses_everybody() -> None:
    async def work() -> float:
        governor, loop = Governor(4), asyncio.get_running_loop()
        governor.throttled(Permit(governor, loop.time()), 0.3)
        began = loop.time()

        async def call() -> None:
            async with governor.permit():
                pass

        await asyncio.gather(*(call() for _ in range(10)))
        return loop.time() - began

    assert 0.28 <= run(work) < 2


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
