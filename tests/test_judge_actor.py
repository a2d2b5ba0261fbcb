"""Rows judged end to end over HTTP by the simulated judge: all real but the judge's brain."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lr_ray import rows, schemas, simulated
from lr_ray.config import Config
from lr_ray.judge.actor import JudgeActor
from lr_ray.llm import client as clients
from lr_ray.store import Store
from tests.sampled_row import sampled_row

NAMES = ["Mira", "Toben", "Sela", "Kano", "Dovik", "Runa"]
GOODS = ["copper", "salt", "tin", "honey", "silk", "amber"]
FACTS = " ".join(f"{name} keeps {good}." for name, good in zip(NAMES, GOODS, strict=True))
CONTEXT = f"The old mill stands near the river. {FACTS} A cold wind blows over the hills. " * 3
ANSWERS = {
    "good": "Mira keeps copper. Toben keeps salt. Sela keeps tin.",
    "wrong": "Mira keeps salt. Toben keeps salt. Sela keeps honey.",
    "incomplete": "Mira keeps copper.",
    "off": "The weather was fine this year. Thank you for asking.",
    "empty": "",
}
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulated.running() as base_url:
        yield base_url


def sampled(prompt_id: str, *texts: str, context: str = CONTEXT, question: str = "") -> rows.Packed:
    question = question or "What do Mira, Toben and Sela keep?"
    return rows.pack("sampled", sampled_row(prompt_id, context, question, texts))


class Tally:
    """Stands where the handle of the run's tally stands."""

    def __init__(self) -> None:
        self.counts: dict[str, float] = {}
        self.messages = 0
        self.add = self

    def remote(self, counts: dict[str, float]) -> None:
        self.messages += 1
        for name, number in counts.items():
            self.counts[name] = self.counts.get(name, 0) + number


def judge(url: str, folder: Path, *packed: rows.Packed, tally: Any = None, **changes: Any) -> list[Any]:
    """The rows judged by one actor; what the ledger in `folder` holds is not paid again."""
    settings = {"run_dir": str(folder), "judge": {"model": "sim", "base_url": url, **changes}}
    store = Store(str(folder))

    async def work() -> list[rows.Packed]:
        actor = JudgeActor(Config.model_validate(settings), store, tally)
        try:
            return await asyncio.gather(*map(actor, packed))
        finally:
            await actor.close()

    return [rows.unpack(row) | {"kind": row["kind"]} for row in asyncio.run(work())]


def requests(url: str) -> int:
    """Paid requests the server has had."""
    with urllib.request.urlopen(f"{url}/stats") as reply:  # noqa: S310 - loopback
        return json.load(reply)["requests"]


def test_good_answers_win_and_the_row_fits_its_schema(url: str, tmp_path: Path) -> None:
    tally = Tally()
    (row,) = judge(url, tmp_path, sampled("p", *ANSWERS.values()), tally=tally)
    rewards = dict(zip(ANSWERS, [c["reward"] for c in row["candidates"]], strict=True))
    assert rewards["good"] == 10
    assert rewards["good"] > max(rewards["wrong"], rewards["incomplete"])
    assert rewards["off"] < min(rewards["wrong"], rewards["incomplete"])
    assert rewards["empty"] is None
    assert row["candidates"][4]["unscored"] == [
        {"dimension": "faithfulness", "reason": "no factual statements"}
    ]
    store = Store(str(tmp_path))
    kind = row.pop("kind")
    assert kind == "judged"
    store.write_rows("judged", [row], schemas.JUDGED)
    assert next(store.rows("judged")) == row
    assert tally.counts["judged"] == 1
    assert tally.counts["unscored"] == 1
    assert tally.counts["calls"] == row["usage"]["calls"] == tally.counts["calls_started"]
    assert tally.counts["calls_started"] == tally.counts["calls_finished"]
    assert tally.counts["prompt_tokens"] == row["usage"]["prompt_tokens"] > 0
    assert tally.messages <= 3


def test_failed_rows_pass_through(url: str, tmp_path: Path) -> None:
    packed = rows.failed("p", "sample", "too long")
    assert judge(url, tmp_path, packed) == [rows.unpack(packed) | {"kind": "failed"}]
    assert not (tmp_path / "calls").exists()


def test_equal_answers_and_statements_are_paid_once(url: str, tmp_path: Path) -> None:
    (one,) = judge(url, tmp_path / "1", sampled("p", ANSWERS["good"]))
    (two,) = judge(url, tmp_path / "2", sampled("p", ANSWERS["good"], ANSWERS["good"]))
    assert one["usage"]["calls"] == two["usage"]["calls"] == 8
    (three,) = judge(url, tmp_path / "3", sampled("p", ANSWERS["good"], ANSWERS["incomplete"]))
    # The second answer's one statement is one of the first's.
    assert three["usage"]["calls"] == 8 + 4
    assert three["candidates"][1]["statements"][0]["verdict"] == "full"


def test_a_second_run_calls_nothing_and_scores_the_same(url: str, tmp_path: Path) -> None:
    packed = [sampled(f"p{i}", *list(ANSWERS.values())[:3]) for i in range(5)]
    first = judge(url, tmp_path, *packed)
    before = requests(url)
    again = judge(url, tmp_path, *packed)
    assert requests(url) == before
    for old, new in zip(first, again, strict=True):
        assert new["usage"]["reused"] == new["usage"]["calls"] == old["usage"]["calls"]
        assert new["candidates"] == old["candidates"]
        assert new["extracts"] == old["extracts"]


def test_passages_by_embeddings_are_one_setting_away_and_resume_too(url: str, tmp_path: Path) -> None:
    retrieval = {"embedding_model": "words", "chunk_tokens": 16, "top_k": 3}
    (row,) = judge(url, tmp_path, sampled("p", ANSWERS["good"]), retrieval=retrieval)
    statement = row["candidates"][0]["statements"][0]
    assert any("Mira keeps copper" in passage["text"] for passage in statement["passages"])
    before = requests(url)
    judge(url, tmp_path, sampled("p", ANSWERS["good"]), retrieval=retrieval)
    assert requests(url) == before


def test_faults_of_every_kind_change_no_score(url: str, tmp_path: Path) -> None:
    packed = [
        sampled(f"p{i}", *list(ANSWERS.values())[:3], question=f"What does {n} keep?")
        for i, n in enumerate(NAMES)
    ]
    clean = judge(url, tmp_path / "clean", *packed)
    with simulated.running(faults=0.2) as faulty:
        faulted = judge(faulty, tmp_path / "faulty", *packed, timeout=3)
        paid = requests(faulty)
    assert sum(row["usage"]["retries"] for row in faulted) > 10
    scored = missing = 0
    for before, after in zip(clean, faulted, strict=True):
        assert after["kind"] == "judged"
        for one, two in zip(before["candidates"], after["candidates"], strict=True):
            reasons = {u["dimension"] for u in two["unscored"]}
            for dimension, score in two["scores"].items():
                missing += score is None
                assert (score is None) == (dimension in reasons)
                # A new sample (temperature 0.95) may be off by one point; a verdict lost is no score.
                if score is not None and one["scores"][dimension] is not None:
                    scored += 1
                    assert abs(score - one["scores"][dimension]) <= 1
    assert scored > 50
    assert missing < 10
    needed = sum(row["usage"]["calls"] for row in clean)
    assert paid < 1.5 * needed


def test_a_dead_endpoint_fails_the_row_and_keeps_what_was_paid(url: str, tmp_path: Path) -> None:
    with simulated.running() as gone:
        pass
    tally = Tally()
    (row,) = judge(gone, tmp_path, sampled("p", ANSWERS["good"]), tally=tally)
    assert row["kind"] == "failed"
    assert row["stage"] == "judge"
    assert "gave up after 8 tries" in row["reason"]
    assert tally.counts["failed"] == 1
    (row,) = judge(url, tmp_path, sampled("p", ANSWERS["good"]))
    assert row["kind"] == "judged"


def test_a_refused_key_stops_the_run(tmp_path: Path) -> None:
    with (
        simulated.running(api_key="right") as guarded,
        pytest.raises(ValueError, match=r"refuses the key in OPENAI_API_KEY .HTTP 401"),
    ):
        judge(guarded, tmp_path, sampled("p", ANSWERS["good"]))


KILLED = """
import asyncio, sys
from lr_ray.config import Config
from lr_ray.judge.actor import JudgeActor
from lr_ray.store import Store
from tests.test_judge_actor import ANSWERS, sampled

async def main(url, folder):
    judge = {"model": "sim", "base_url": url, "concurrency": 4}
    config = Config.model_validate({"run_dir": folder, "judge": judge})
    actor = JudgeActor(config, Store(folder))
    await asyncio.gather(*(actor(sampled(f"p{i}", *list(ANSWERS.values())[:3])) for i in range(20)))

asyncio.run(main(*sys.argv[1:]))
"""


def test_kill_9_repeats_at_most_what_was_in_flight(tmp_path: Path) -> None:
    packed = [sampled(f"p{i}", *list(ANSWERS.values())[:3]) for i in range(20)]
    with simulated.running(latency=0.02) as slow:
        command = [sys.executable, "-c", KILLED, slow, str(tmp_path)]
        with subprocess.Popen(command, cwd=Path(__file__).parents[1]) as victim:
            while requests(slow) < 60:
                time.sleep(0.01)
            victim.send_signal(signal.SIGKILL)
        begun = requests(slow)
        done = judge(slow, tmp_path, *packed)
        needed = sum(row["usage"]["calls"] for row in done)
        assert begun > 0
        assert sum(row["usage"]["reused"] for row in done) >= begun - 4
        assert requests(slow) <= needed + 4
        before = requests(slow)
        judge(slow, tmp_path, *packed)
        assert requests(slow) == before


def shared(name: str) -> dict[str, dict[str, Any]]:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"NOT RUN: the shared folder with {name} is not beside this checkout")
    return {row["prompt_id"]: row for row in map(json.loads, path.read_text("utf-8").splitlines())}


@pytest.mark.parametrize("seed", range(2))
def test_real_answers_of_known_order_are_ranked(url: str, tmp_path: Path, seed: int) -> None:
    prompts, candidates = shared("real_prompts.jsonl"), shared("real_candidates.jsonl")
    rng = random.Random(seed)
    packed, qualities = [], []
    for prompt_id, row in candidates.items():
        answers = row["candidates"]
        rng.shuffle(answers)
        qualities.append([answer["quality"] for answer in answers])
        prompt = prompts[prompt_id]
        texts = [answer["text"] for answer in answers]
        packed.append(sampled(prompt_id, *texts, context=prompt["context"], question=prompt["question"]))
    assert len(packed) == 3
    for row, order in zip(judge(url, tmp_path, *packed), qualities, strict=True):
        rewards = dict(zip(order, [candidate["reward"] for candidate in row["candidates"]], strict=True))
        assert rewards["good"] > rewards["unsupported"]
        assert rewards["good"] > rewards["incomplete"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_stage_runs_on_ray_data_and_resumes_without_a_call(url: str, tmp_path: Path) -> None:
    import ray

    from lr_ray.judge.actor import judge_stage
    from lr_ray.progress import Tally as RunTally

    settings = {"model": "sim", "base_url": url, "actors": 2, "concurrency": 16}
    config = Config.model_validate({"run_dir": str(tmp_path), "judge": settings})
    store = Store(str(tmp_path))
    packed = [sampled(f"p{i}", *list(ANSWERS.values())[:3]) for i in range(12)]
    packed.append(rows.failed("lost", "sample", "too long"))
    tally = ray.remote(RunTally).remote()

    def stage() -> dict[str, Any]:
        dataset = ray.data.from_items(packed, override_num_blocks=4)
        found = judge_stage(dataset, config, store, tally).take_all()
        return {row["prompt_id"]: (row["kind"], rows.unpack(row)) for row in found}

    first = stage()
    assert len(first) == 13
    assert first["lost"] == ("failed", rows.unpack(packed[-1]))
    assert all(kind == "judged" for key, (kind, _) in first.items() if key != "lost")
    assert 1 <= len(store.files("calls", ".jsonl")) <= 2
    before = requests(url)
    again = stage()
    assert requests(url) == before
    for key, (_, row) in again.items():
        assert row.get("candidates") == first[key][1].get("candidates")
    counts = ray.get(tally.snapshot.remote())
    assert counts["judged"] == 24
    assert counts["calls"] == 2 * counts["calls_reused"] == 2 * counts["calls_started"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_actor_comes_back_and_pays_only_for_what_was_in_flight(tmp_path: Path) -> None:
    import ray

    from lr_ray.judge.actor import judge_stage

    packed = [sampled(f"p{i}", *list(ANSWERS.values())[:3]) for i in range(16)]
    with simulated.running(latency=0.05) as slow:
        config = Config.model_validate(
            {"run_dir": str(tmp_path), "judge": {"model": "sim", "base_url": slow, "concurrency": 4}}
        )
        store = Store(str(tmp_path))

        def kill() -> None:
            while requests(slow) < 40:
                time.sleep(0.02)
            # A segment's name holds the process that writes it.
            (segment,) = store.files("calls", ".jsonl")
            os.kill(int(segment.split("-")[-2]), signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        found = judge_stage(ray.data.from_items(packed), config, store).take_all()
        killer.join()
        judged = [rows.unpack(row) for row in found]
        assert sorted(row["prompt_id"] for row in judged) == sorted(row["prompt_id"] for row in packed)
        assert len(store.files("calls", ".jsonl")) == 2
        needed = sum(row["usage"]["calls"] for row in judged)
        # Which rows were under way at the kill is chance; what they had paid is not paid again.
        assert sum(row["usage"]["reused"] for row in judged) > 0
        assert needed <= requests(slow) <= needed + 4
