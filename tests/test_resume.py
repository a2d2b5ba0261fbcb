"""kill -9 at random points: no row lost or doubled, the same pairs, nothing paid twice that was durable."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobs import chaos_judge
from lr_ray import config as configs
from lr_ray import rows, simulated
from lr_ray import store as stores
from lr_ray.config import Config
from lr_ray.judge.actor import JudgeActor
from lr_ray.pipeline import Run
from lr_ray.store import Store
from tests.test_judge_actor import ANSWERS, requests, sampled
from tests.test_llm_ledger_lookup import bucket  # noqa: F401 - a fixture


def test_on_object_storage_a_living_actor_pays_nothing_of_what_a_dead_one_paid(
    bucket: str,  # noqa: F811 - the fixture
) -> None:
    store = Store(bucket.format("handed-over"))
    packed = [sampled(f"p{i}", *list(ANSWERS.values())[:3]) for i in range(4)]

    async def work(url: str) -> tuple[list[rows.Packed], int]:
        settings = {"run_dir": store.url, "judge": {"model": "sim", "base_url": url}}
        dies, lives = (JudgeActor(Config.model_validate(settings), store) for _ in range(2))
        await lives(packed[0])
        await asyncio.gather(*map(dies, packed[1:]))
        await dies.close()
        before = requests(url)
        again = await asyncio.gather(*map(lives, packed[1:]))
        await lives.close()
        return again, requests(url) - before

    with simulated.running() as url:
        again, paid = asyncio.run(work(url))
    assert paid == 0
    assert all(0 < row["usage"]["calls"] == row["usage"]["reused"] for row in map(rows.unpack, again))


def judge(url: str, folder: Path, *lives: list[rows.Packed], **changes: Any) -> list[list[Any]]:
    """The rows of each of `lives`, one after another through one living actor."""
    settings = {"run_dir": str(folder), "judge": {"model": "sim", "base_url": url, **changes}}

    async def work() -> list[list[rows.Packed]]:
        actor = JudgeActor(Config.model_validate(settings), Store(str(folder)))
        try:
            return [await asyncio.gather(*map(actor, packed)) for packed in lives]
        finally:
            await actor.close()

    return [[rows.unpack(row) for row in life] for life in asyncio.run(work())]


def test_a_living_actor_that_is_handed_a_row_again_pays_nothing(tmp_path: Path) -> None:
    packed = [sampled(f"p{i}", *list(ANSWERS.values())[:3]) for i in range(4)]
    with simulated.running() as url:
        first, again = judge(url, tmp_path, packed, packed)
        paid = sum(row["usage"]["calls"] for row in first)
        assert requests(url) == paid > 0
    for old, new in zip(first, again, strict=True):
        assert new["usage"]["reused"] == new["usage"]["calls"] == old["usage"]["calls"]
        assert new["candidates"] == old["candidates"]


def test_a_row_that_is_handed_out_again_while_it_is_judged_is_paid_once(tmp_path: Path) -> None:
    packed = [sampled(f"p{i}", *list(ANSWERS.values())[:3]) for i in range(4)]
    with simulated.running(latency=0.02) as url:
        (found,) = judge(url, tmp_path, [*packed, *packed])
        assert requests(url) == sum(row["usage"]["calls"] for row in found[:4]) > 0
    assert found[:4] == found[4:]


def test_another_aggregation_in_another_directory_calls_nothing_and_stands_alone(tmp_path: Path) -> None:
    packed = [sampled(f"p{i}", *ANSWERS.values()) for i in range(4)]
    changed = {
        "weights": {"helpfulness": 0, "faithfulness": 3},
        "no_statements_score": 5.0,
        "prices": {"prompt": 1.0},
    }
    with simulated.running() as url:
        (first,) = judge(url, tmp_path / "first", packed)
        before = requests(url)
        (second,) = judge(url, tmp_path / "second", packed, reuse=[str(tmp_path / "first")], **changed)
        # The third need not know the first: what the second used it holds itself.
        (tmp_path / "first").rename(tmp_path / "away")
        (third,) = judge(url, tmp_path / "third", packed, reuse=[str(tmp_path / "second")], **changed)
        assert requests(url) == before
    for old, new, last in zip(first, second, third, strict=True):
        assert new["usage"]["reused"] == new["usage"]["calls"] > 0
        assert new["usage"]["prompt_tokens"] == new["usage"]["completion_tokens"] == 0
        assert last["candidates"] == new["candidates"]
        assert [c["reward"] for c in new["candidates"]] != [c["reward"] for c in old["candidates"]]
        assert old["candidates"][4]["scores"]["faithfulness"] is None
        assert new["candidates"][4]["scores"]["faithfulness"] == 5.0


def lr_ray(verb: str, config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lr_ray.cli", verb, str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def configured(folder: Path, name: str, run_dir: str, url: str, **judge: Any) -> Path:
    file = folder / f"{name}.json"
    settings = {"model": "sim", "base_url": url, "concurrency": 16, **judge}
    data = {kind: [str(folder / f"{kind}.jsonl")] for kind in ("prompts", "candidates")}
    config = {"run_dir": run_dir, "data": data, "judge": settings, "pairs": {"min_candidates": 2}}
    file.write_text(json.dumps(config))
    return file


@pytest.mark.slow
def test_kills_of_every_kind_lose_nothing(tmp_path: Path) -> None:
    for outcome in chaos_judge.trials(tmp_path, [0, 1, 2], 26479, kills=2):
        assert outcome.kills + outcome.missed == 2
        assert outcome.lost == outcome.doubled == 0, outcome
        assert outcome.judged_equal, outcome
        assert outcome.pairs_equal, outcome
        assert outcome.repeated <= chaos_judge.CONCURRENCY * outcome.kills, outcome
        assert set(outcome.codes) == {0}


@pytest.mark.slow
def test_kills_of_a_judge_actor_on_object_storage_lose_nothing(tmp_path: Path) -> None:
    (outcome,) = chaos_judge.trials(tmp_path, [1], 26480, ("actor",), kills=3, remote=True)
    assert outcome.kills + outcome.missed == 3
    assert outcome.lost == outcome.doubled == 0, outcome
    assert outcome.judged_equal, outcome
    assert outcome.pairs_equal, outcome
    assert outcome.repeated <= chaos_judge.bound(outcome), outcome
    assert set(outcome.codes) == {0}


@pytest.mark.slow
def test_a_run_on_object_storage_judges_pairs_and_resumes_without_a_call(
    tmp_path: Path,
    bucket: str,  # noqa: F811 - the fixture
) -> None:
    chaos_judge.workload(tmp_path)
    with simulated.running() as url:
        config = configured(tmp_path, "s3", bucket.format("whole"), url)
        done = lr_ray("judge", config)
        assert done.returncode == 0, done.stderr
        store, paid = Store(bucket.format("whole")), requests(url)
        assert len(store.index("judged")) == chaos_judge.PROMPTS
        # As after a crash in which every judged row was lost, but no paid answer.
        store.clear("judged")
        again = lr_ray("judge", config)
        assert again.returncode == 0, again.stderr
        assert requests(url) == paid
        assert len(store.index("judged")) == chaos_judge.PROMPTS
        assert all(row["usage"]["reused"] == row["usage"]["calls"] for row in store.rows("judged"))
        local = configured(tmp_path, "local", str(tmp_path / "local"), url, reuse=[bucket.format("whole")])
        assert lr_ray("judge", local).returncode == 0
        assert requests(url) == paid
        for one in (config, local):
            Run(configs.load(str(one)), None).pairs()  # type: ignore[arg-type]
        pairs = [list(s.rows("pairs")) for s in (store, Store(str(tmp_path / "local")))]
        assert pairs[0] == pairs[1]
        assert len(pairs[0]) > 10


HOLDER = """
import sys, time
from lr_ray.store import Store
with Store(sys.argv[1]).claimed():
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in a run directory."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            yield holder
        finally:
            holder.kill()


def test_two_drivers_on_one_directory_are_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with held(tmp_path) as holder:
        with (
            pytest.raises(ValueError, match=rf"is in use by another run \(process {holder.pid} on .+\)$"),
            store.claimed(),
        ):
            pass
        holder.kill()
        holder.wait()
        began = time.monotonic()
        with store.claimed():
            assert time.monotonic() - began < 1


def test_a_submitted_job_waits_for_the_lock_of_one_that_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(stores.SUBMITTED, "{}")
    monkeypatch.setattr(stores, "LOOK_EVERY", 0.05)
    place = Store(str(tmp_path))
    with held(tmp_path) as holder:
        # A server that lets go of a dead client's lock after a while.
        threading.Timer(0.5, holder.kill).start()
        began = time.monotonic()
        with place.claimed():
            assert 0.4 < time.monotonic() - began < 10
    said = capsys.readouterr().err
    assert (
        said.count(f"in use by another run (process {holder.pid} on ")
        == said.count("waiting up to 120 s")
        == 1
    )
    monkeypatch.setattr(stores, "PATIENCE", 0.3)
    with held(tmp_path), pytest.raises(ValueError, match="is in use by another run"), place.claimed():
        raise AssertionError
