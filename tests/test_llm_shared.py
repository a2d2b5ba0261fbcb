import asyncio
import json
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from lr_ray import simulated
from lr_ray.config import Config, Prices
from lr_ray.llm import shared
from lr_ray.llm.client import Client
from lr_ray.llm.records import FOLDER, dump, process
from lr_ray.store import Store


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


PRICES = Prices(completion=1e6)  # a token is money of 1
DEAD, LIVING = "there-7-0123456789ab.jsonl", "there-8-0123456789ab.jsonl"


def paid(store: Store, segment: str, *tokens: int) -> None:
    """A segment of the ledger, with an answer of each number of tokens."""
    replies = [{"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": number} for number in tokens]
    units = [(f"k{number}", "p/-/extract/0", reply) for number, reply in enumerate(replies)]
    lines = [dump({"prompt_id": "p", "key": key, "unit": unit, "reply": reply}) for key, unit, reply in units]
    store.write(b"".join(lines), FOLDER, segment)


def test_money_is_known_by_who_recorded_it_over_all_ledgers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(str(tmp_path))
    paid(store, f"{process()}-0123456789ab.jsonl", 1, 2)
    paid(store, f"{process()}-ba9876543210-0000007-merged.jsonl", 4)
    paid(store.sub("evaluation", "before"), DEAD, 60)
    expected = {process(): 7.0, "there-7": 60.0}
    assert shared.recorded(store, PRICES) == expected
    # A writer merges its objects while they are read.
    paid(store, "there-8-0123456789ab-0000001.jsonl", 5)
    real, went = shared.lines, []

    def lines(ledger: Store, segment: str) -> Any:
        if segment.startswith("there-8") and not went:
            went.append(segment)
            (tmp_path / FOLDER / segment).rename(tmp_path / FOLDER / "there-8-0123456789ab-0000002.jsonl")
        return real(ledger, segment)

    monkeypatch.setattr(shared, "lines", lines)
    assert shared.recorded(store, PRICES) == {**expected, "there-8": 5.0}
    assert went


@pytest.mark.slow
def test_a_keeper_that_is_started_anew_knows_what_was_spent(ray_cluster: None, tmp_path: Path) -> None:
    import ray
    from ray.exceptions import RayError

    store = Store(str(tmp_path))
    judge = {"model": "m", "base_url": "http://127.0.0.1:9/v1", "budget": 100.0, "prices": PRICES}
    keeper = shared.keeper(Config.model_validate({"run_dir": str(tmp_path), "judge": judge}))
    here = ray.get_runtime_context().get_node_id()

    def report(process: str, **account: Any) -> Any:
        return ray.get(keeper.report.remote(f"{here}-{process}-1f", shared_report(**account)), timeout=30)

    first = report("there-7", spent=60.0)
    report("there-8", spent=30.0)
    paid(store, DEAD, 60)
    paid(store, LIVING, 30)
    ray.kill(keeper, no_restart=False)
    second = first
    while second.keeper == first.keeper:  # the one before may answer once more
        with suppress(RayError):
            second = report("there-8", spent=31.0, allowed=35.0, keeper=first.keeper)
        time.sleep(0.1)
    assert second.allowance == 4.0
    # Whoever begins now waits until nobody can hold what the first one allowed.
    assert report("there-9").allowance == 0.0
    stopped = report("there-8", spent=40.5, keeper=second.keeper)
    assert stopped.stop == "judge.budget is reached: 100.50 of 100.00 is spent"
    shared.release()


def shared_report(**account: Any) -> Any:
    from lr_ray.llm.lease import Report, Seen
    from lr_ray.llm.spending import Report as Account

    return Report([Seen()], Account(), **account)
