import asyncio
import json
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from lr_ray import simulated
from lr_ray.config import Config
from lr_ray.llm import shared
from lr_ray.llm.client import Client


class Asker:
    """Asks as a judge actor does, with a limit that it shares."""

    def __init__(self, config: Config, keeper: Any) -> None:
        self._config, self._keeper = config, keeper

    async def ask(self, calls: int) -> int:
        governor = shared.governor(self._config.judge, remote=True)
        beats = asyncio.create_task(governor.beats(shared.asking(self._keeper)))
        client = Client(self._config.judge, None, governor)
        body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}]})
        one = client.post("/chat/completions", body, "a/0/b/0", lambda *_: None)
        replies = [
            await one,
            *await asyncio.gather(
                *(
                    client.post("/chat/completions", body, "a/0/b/0", lambda *_: None)
                    for _ in range(calls - 1)
                )
            ),
        ]
        beats.cancel()
        await client.close()
        return len(replies)


def test_a_process_that_works_alone_keeps_to_the_config() -> None:
    judge = Config.model_validate({"run_dir": "x", "judge": {"base_url": ["a", "b"], "concurrency": 7}}).judge
    assert shared.replicas(judge) == 2
    assert shared.a_second(None) == float("inf")
    assert shared.a_second(120.0) == 2


@pytest.mark.slow
def test_actors_share_the_ceiling_and_go_on_when_the_keeper_dies(ray_cluster: None, tmp_path: Path) -> None:
    import ray

    # Ray's workers cannot import this file.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with simulated.running(latency=0.1, plain=True) as url:
        judge = {"model": "m", "base_url": url, "concurrency": 10}
        config = Config.model_validate({"run_dir": str(tmp_path), "judge": judge})
        keeper = shared.keeper(config)
        actor: Any = ray.remote(Asker).options(num_cpus=0)
        askers = [actor.remote(config, keeper) for _ in range(3)]
        work = [asker.ask.remote(150) for asker in askers]
        done, _ = ray.wait(work, timeout=2)
        assert not done
        ray.kill(keeper, no_restart=False)
        assert ray.get(work, timeout=60) == [150, 150, 150]
        with urllib.request.urlopen(url.removesuffix("/v1") + "/v1/stats") as reply:  # noqa: S310
            stats = json.load(reply)
        assert stats["answered"] == 450
        assert 6 <= stats["in_flight_peak"] <= 12  # each may begin with one before it has heard
        # The run's keeper is one and the same for every stage, and it was started anew.
        assert shared.keeper(config) == keeper
        here = ray.get_runtime_context().get_node_id()
        assert ray.get(keeper.report.remote(f"{here}-nobody", shared_report()), timeout=30).leases
        with pytest.raises(RuntimeError, match="the cluster has given this node up"):
            ray.get(keeper.report.remote(f"{'0' * len(here)}-nobody", shared_report()), timeout=30)
        # A stage at other endpoints, of which there may be more, has a keeper with limits of its own.
        judge["base_url"] = [url, url]
        other = Config.model_validate({"run_dir": str(tmp_path), "judge": judge})
        assert ray.get(actor.remote(other, shared.keeper(other)).ask.remote(2), timeout=20) == 2
        assert ray.get(actor.remote(config, shared.keeper(config)).ask.remote(2), timeout=20) == 2


@pytest.mark.slow
def test_a_keeper_is_never_one_that_was_ended(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    judge = {"model": "m", "base_url": "http://127.0.0.1:9/v1"}
    config = Config.model_validate({"run_dir": str(tmp_path), "judge": judge})
    for _ in range(5):
        keeper = shared.keeper(config)

        async def ask(handle: Any = keeper) -> Any:
            return await shared.asking(handle)(shared_report())

        assert asyncio.run(ask()).leases
        shared.release()

    # Calls that waited for the lease of one that is gone would wait for ever.
    monkeypatch.setattr(shared, "GONE_FOR", 0.5)

    async def insist() -> None:
        ask = shared.asking(keeper)
        while True:
            with suppress(ConnectionError):
                await ask(shared_report())
            await asyncio.sleep(0.1)

    with pytest.raises(RuntimeError, match="gone for good"):
        asyncio.run(asyncio.wait_for(insist(), 20))


def shared_report() -> Any:
    from lr_ray.llm.lease import Report, Seen
    from lr_ray.llm.spending import Report as Account

    return Report([Seen()], Account())
