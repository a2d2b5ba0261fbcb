import asyncio
import functools

import pytest

from lr_ray.llm.governor import Governor, Permit
from tests.test_llm_governor import _visits as visits_of
from tests.virtual import Shared, run


@pytest.mark.parametrize("processes", [1, 3])
def test_the_ceiling_is_of_all_replicas_together(processes: int) -> None:
    shared, most = Shared(12, replicas=3), 0

    async def work() -> None:
        async def behave(permit: Permit) -> None:
            nonlocal most
            if loop.time() > 1:  # until they are heard they may begin one each
                most = max(most, sum(one.in_flight for one in governors))
            await asyncio.sleep(0.1)
            permit.succeeded(10)

        loop = asyncio.get_running_loop()
        governors = [Governor(12, 3, remote=processes > 1) for _ in range(processes)]
        beats = [
            asyncio.create_task(governor.beats(functools.partial(shared.ask, str(n))))
            for n, governor in enumerate(governors)
            if processes > 1
        ]
        visits = await asyncio.gather(*(visits_of(governor, behave, 20) for governor in governors))
        assert all(at[-1][0] > 18 for at in visits)  # none starved
        assert sum(len(at) for at in visits) >= 0.8 * 12 / 0.1 * 20
        for beat in beats:
            beat.cancel()

    run(work)
    assert most <= 12
