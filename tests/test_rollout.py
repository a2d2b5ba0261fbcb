"""Judging that stops early and goes on, on real Ray over one run directory each."""

import asyncio
import json
import random
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.demo import task
from lr_ray import config, data, flow, pipeline, plan, rows, schemas, simulated
from lr_ray.judge.actor import JudgeActor
from lr_ray.llm import client as clients
from lr_ray.llm import lease, shared, usage
from lr_ray.llm.spending import Stopped
from lr_ray.retry import failures, settle
from lr_ray.store import Store

PRICES = {"prompt": 1000.0, "completion": 3000.0}
CONCURRENCY = 8


def inputs(folder: Path, count: int, answers: int = 4) -> dict[str, list[str]]:
    """Prompts of the demo's task with answers of all its kinds, as files."""
    rng = random.Random(count)
    items, prompts = task.make_items("rollout", count), task.make_prompts("rollout", count)[0]
    kinds: Any = ("good", "wrong", "incomplete", "off_point")
    lines = [
        {
            **prompt,
            "candidates": [task.answer_of_kind(rng.choice(kinds), item, rng) for _ in range(answers)],
        }
        for prompt, item in zip(prompts, items, strict=True)
    ]
    path = folder / "candidates.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"candidates": [str(path)]}


def settings(tmp_path: Path, url: str, given: dict[str, list[str]], **judge: Any) -> config.Config:
    small = {"extract_chunk_tokens": 256, "retrieval": {"chunk_tokens": 32}, "concurrency": CONCURRENCY}
    section = {"model": "sim", "base_url": url, "prices": PRICES, **small, **judge}
    return config.Config.model_validate({"run_dir": str(tmp_path / "run"), "data": given, "judge": section})


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats", timeout=10) as reply:  # noqa: S310 - loopback
        return json.load(reply)


@pytest.mark.slow
def test_a_budget_stops_the_run_and_a_higher_one_goes_on(ray_cluster: None, tmp_path: Path) -> None:
    given = inputs(tmp_path, 24)
    with simulated.running(latency=0.02) as url:
        asked = settings(tmp_path, url, given)
        whole = plan.make(asked).money or 0.0
        budget = round(whole / 2, 3)
        with pytest.raises(
            Stopped, match=r"judge\.budget is reached: .* the same command goes on from there"
        ):
            pipeline.execute(settings(tmp_path, url, given, budget=budget), ("judge",))
        store = Store(str(tmp_path / "run"))
        spent, first = usage.money(store, PRICES_OBJECT), stats(url)
        dearest = 2.0 * 1500 / 1e6 * PRICES["prompt"]
        assert budget <= spent <= budget + CONCURRENCY * dearest
        # Everything paid is recorded, nothing was marked as failed, and what was judged is saved.
        assert sum(one.calls for one in usage.by_kind(store).values()) == first["requests"]
        assert not store.files("failed")
        judged = set(store.index("judged"))
        assert 0 < len(judged) < 24
        # With the same budget nothing more is spent than each actor's first call.
        with pytest.raises(Stopped, match=r"judge\.budget is reached"):
            pipeline.execute(settings(tmp_path, url, given, budget=budget), ("judge",))
        assert stats(url)["requests"] <= first["requests"] + 1
        assert pipeline.execute(settings(tmp_path, url, given, budget=2 * whole), ("judge",)) == 0
        assert len(store.index("judged")) == 24
        assert judged < store.index("judged").keys()
        needed = sum(row["usage"]["calls"] for row in store.rows("judged"))
        assert stats(url)["requests"] == stats(url)["answered"] == needed


@pytest.mark.slow
def test_a_judge_that_refuses_everything_is_not_paid_for_long(ray_cluster: None, tmp_path: Path) -> None:
    given = inputs(tmp_path, 40)
    with simulated.running(latency=0.02, faults="refusal=1") as url:
        asked = settings(tmp_path, url, given)
        with pytest.raises(
            Stopped, match=r"of the last \d+ tries failed, \d+ of them because the judge refused"
        ):
            pipeline.execute(asked, ("judge",))
        assert stats(url)["requests"] < 150 + CONCURRENCY
    with simulated.running() as url:
        assert pipeline.execute(settings(tmp_path, url, given), ("judge",)) == 0


@pytest.mark.slow
def test_retry_failed_takes_up_what_failed_and_pays_for_what_is_missing(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = inputs(tmp_path, 12)
    store = Store(str(tmp_path / "run"))
    with simulated.running() as url:
        judged = judge_here(settings(tmp_path / "clean", url, given))
        needed = sum(rows.unpack(row)["usage"]["calls"] for row in judged)
    monkeypatch.setattr(clients, "BACKOFF", 0.005)
    monkeypatch.setattr(clients, "BROKEN_TRIES", 2)
    with simulated.running(faults="error=0.15") as url:
        saved = judge_here(settings(tmp_path, url, given))
        ill = stats(url)
    for kind, schema in (("judged", schemas.JUDGED), ("failed", schemas.FAILED)):
        store.write_rows(kind, [rows.unpack(row) for row in saved if row["kind"] == kind], schema)
    failed = {row["prompt_id"] for row in failures(store)}
    assert 0 < len(failed) < 12
    with simulated.running() as url:
        assert pipeline.execute(settings(tmp_path, url, given), ("judge",)) == len(failed)
        assert stats(url)["requests"] == 0
        assert pipeline.execute(settings(tmp_path, url, given), pipeline.RETRY) == 0
        assert ill["answered"] + stats(url)["requests"] == needed
        assert pipeline.execute(settings(tmp_path, url, given), pipeline.RETRY) == 0
    assert not store.files("failed")
    assert len(store.index("judged")) == 12
    clean = {row["prompt_id"]: rows.unpack(row)["candidates"] for row in judged}
    assert {row["prompt_id"]: row["candidates"] for row in store.rows("judged")} == clean


@pytest.mark.slow
def test_retry_failed_takes_up_the_failed_rows_of_an_evaluation(ray_cluster: None, tmp_path: Path) -> None:
    given = inputs(tmp_path, 4, answers=2)
    with simulated.running() as url:
        asked = settings(tmp_path, url, given)
        held_out = {"prompts": given["candidates"], "baseline": "old", "model": "new"}
        asked = config.Config.model_validate({**asked.model_dump(), "evaluation": held_out})
        sampled = [rows.unpack(row) for row in packed_rows(asked)]
        for side in ("before", "after"):
            store = Store(asked.run_dir).sub("evaluation", side)
            store.write_rows("sampled", sampled, schemas.SAMPLED)
            store.write_rows("failed", [failure(sampled[0]["prompt_id"], "no answer")], schemas.FAILED)
        assert pipeline.execute(asked, ("evaluate",)) == 2
        assert pipeline.execute(asked, pipeline.RETRY) == 0
        assert pipeline.execute(asked, pipeline.RETRY) == 0
    written = json.loads(Store(asked.run_dir).read("evaluation.json") or b"")
    assert written["failed"] == {"before": 0, "after": 0}
    assert written["table"][0]["prompts"] == 4
    assert not Store(asked.run_dir).sub("evaluation", "after").files("failed")


def packed_rows(asked: config.Config) -> list[rows.Packed]:
    pointers = data.scan(asked.data.prompts, asked.data.candidates)
    return [rows.pack("sampled", data.load(one, asked.data.prompt_template)) for one in pointers]


def judge_here(asked: config.Config) -> list[rows.Packed]:
    """All rows through one judge actor in this process."""

    async def work() -> list[rows.Packed]:
        actor = JudgeActor(asked, Store(asked.run_dir))
        try:
            return await asyncio.gather(*map(actor, packed_rows(asked)))
        finally:
            await actor.close()

    return asyncio.run(work())


def failure(prompt_id: str, reason: str) -> dict[str, Any]:
    return {"prompt_id": prompt_id, "stage": "judge", "reason": reason}


def test_what_succeeds_or_fails_anew_leaves_the_old_files(tmp_path: Path) -> None:
    from tests.test_pipeline import judged

    store = Store(str(tmp_path))
    store.write_rows("failed", [failure(one, "old") for one in "abc"], schemas.FAILED)
    store.write_rows("failed", [failure("d", "old")], schemas.FAILED)
    before = store.files("failed")
    store.write_rows("judged", [judged("a", [1, 2])], schemas.JUDGED)
    assert sorted(row["prompt_id"] for row in failures(store)) == ["b", "c", "d"]
    store.write_rows("failed", [failure("b", "new")], schemas.FAILED)
    store.write_rows("failed", [failure("d", "new")], schemas.FAILED)  # the name of its old file
    settle(store, before)
    assert {row["prompt_id"]: row["reason"] for row in store.rows("failed")} == {
        "b": "new",
        "c": "old",
        "d": "new",
    }
    settle(store, store.files("failed"))
    assert sorted(store.index("failed")) == ["b", "c", "d"]


def test_what_failed_in_sampling_is_saved_once(tmp_path: Path) -> None:
    packed = pa.Table.from_pylist([rows.failed("a", "sample", "too long"), rows.failed("b", "judge", "ill")])
    store = Store(str(tmp_path))
    flow._save(packed, store, keep=False, again=True)
    assert [row["prompt_id"] for row in store.rows("failed")] == ["b"]
    # Where nothing comes after sampling there is one chance.
    flow._save(packed.slice(0, 1), store, keep=False)
    assert sorted(row["prompt_id"] for row in store.rows("failed")) == ["a", "b"]


def test_rows_that_are_left_are_saved_nowhere_and_say_why(tmp_path: Path) -> None:
    from tests.test_pipeline import judged

    packed = [
        rows.pack("judged", judged("a", [1, 2])),
        rows.left("b", "the budget"),
        rows.failed("c", "judge", "it broke"),
    ]
    out = flow._save(pa.Table.from_pylist(packed), Store(str(tmp_path)), keep=False)
    assert out.to_pylist() == [
        {"prompt_id": "a", "kind": "judged", "reason": ""},
        {"prompt_id": "b", "kind": "left", "reason": "the budget"},
        {"prompt_id": "c", "kind": "failed", "reason": ""},
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["failed", "judged"]


class Cluster:
    """Where the handle of the keeper stands: the same keeper for several actors of this process."""

    def __init__(self, asked: config.Config, already: float = 0.0) -> None:
        self._keeper, self.report = shared.Keeper(asked.judge, already), self

    async def remote(self, name: str, report: lease.Report) -> lease.Reply:
        await asyncio.sleep(0.002)
        return self._keeper.report(name, report)


@pytest.mark.slow
def test_engines_do_not_work_on_for_a_judge_that_stopped(ray_cluster: None, tmp_path: Path) -> None:
    import ray
    import ray.data

    from lr_ray.progress import Display, Tally
    from lr_ray.runtime import Watch

    def sample(item: dict[str, Any]) -> dict[str, Any]:
        time.sleep(0.3)
        (tmp_path / str(item["id"])).touch()
        return {"prompt_id": "p", "kind": "left", "reason": "the budget"}

    tally: Any = ray.remote(Tally).options(num_cpus=0).remote()
    rows_left = ray.data.from_items([{"id": i} for i in range(400)], override_num_blocks=400)
    counts: dict[str, int] = {}
    watch = Watch(tally, Display(None, config.Prices()))
    assert flow.flow(rows_left.map(sample), counts, watch, engines=True) == "the budget"
    assert 0 < counts["left"] < 300
    time.sleep(2)
    done = len(list(tmp_path.iterdir()))
    time.sleep(2)
    assert len(list(tmp_path.iterdir())) == done < 400


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_why_the_judge_stopped_is_known_without_the_tally() -> None:
    import ray

    from lr_ray.progress import Display, Tally
    from lr_ray.runtime import Watch

    tally: Any = ray.remote(Tally).options(num_cpus=0).remote()
    ray.kill(tally)
    left = {"prompt_id": "p", "kind": "left", "reason": "the budget"}

    class Slow:
        """Rows as a dataset gives them, over more seconds than the counters lag."""

        def iter_rows(self) -> Iterator[dict[str, Any]]:
            yield left
            time.sleep(flow.SETTLED + 0.1)
            yield left
            raise AssertionError("engines work on")

    watch = Watch(tally, Display(None, config.Prices()))
    rows_left: Any = Slow()
    assert flow.flow(rows_left, {}, watch, engines=True) == "the budget"


def judge_together(asked: config.Config, actors: int, already: float = 0.0) -> list[rows.Packed]:
    """All rows through several judge actors under one keeper, without Ray."""

    async def work() -> list[rows.Packed]:
        keeper = Cluster(asked, already)
        made = [JudgeActor(asked, Store(asked.run_dir), keeper=keeper) for _ in range(actors)]
        try:
            return await asyncio.gather(*(made[i % actors](one) for i, one in enumerate(packed_rows(asked))))
        finally:
            for actor in made:
                await actor.close()

    return asyncio.run(work())


@pytest.mark.parametrize("actors", [1, 4])
def test_a_budget_is_overshot_by_the_calls_in_flight_at_most(tmp_path: Path, actors: int) -> None:
    given = inputs(tmp_path, 30)
    with simulated.running(latency=0.02) as url:
        asked = settings(tmp_path, url, given, rows_in_flight=4)
        budget = (plan.make(asked).money or 0.0) / 3
        asked = settings(tmp_path, url, given, rows_in_flight=4, budget=budget)
        done = judge_together(asked, actors)
        store, told = Store(asked.run_dir), stats(url)
    used = usage.by_kind(store)
    spent = usage.money(store, asked.judge.prices)
    dearest = max((plan.cost(vars(one), asked.judge.prices) or 0.0) / one.calls for one in used.values())
    assert budget <= spent <= budget + CONCURRENCY * 1.5 * dearest
    assert sum(one.calls for one in used.values()) == told["requests"] == told["answered"]
    kinds = {row["kind"] for row in done}
    assert kinds == {"judged", "left"}
    assert all(
        "judge.budget is reached" in row["reason"] for row in map(rows.unpack, done) if "reason" in row
    )


def test_what_was_spent_before_counts(tmp_path: Path) -> None:
    with simulated.running() as url:
        asked = settings(tmp_path, url, inputs(tmp_path, 6), budget=5.0)
        done = judge_together(asked, 2, already=5.0)
        assert {row["kind"] for row in done} == {"left"}
        assert stats(url)["requests"] <= 2


@pytest.mark.parametrize(
    ("fault", "says"), [("refusal", "the judge refused"), ("invalid", "the reply is not valid JSON")]
)
def test_a_judge_of_no_use_is_not_paid_for_long(tmp_path: Path, fault: str, says: str) -> None:
    given = inputs(tmp_path, 40)
    with simulated.running(latency=0.02, faults=f"{fault}=0.9") as url:
        done = judge_together(settings(tmp_path, url, given, rows_in_flight=20), 2)
        assert stats(url)["requests"] < 150
    left = [rows.unpack(row)["reason"] for row in done if row["kind"] == "left"]
    assert len(left) > 35
    assert all(f"because {says}" in reason for reason in left)
    assert not any(row["kind"] == "failed" for row in done)


PRICES_OBJECT = config.Prices.model_validate(PRICES)
