"""Every kind of fault through whole judge rows, over HTTP: what each costs, and that none becomes a score."""

import asyncio
import json
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lr_ray import rows, simulated
from lr_ray.config import DIMENSIONS, Config
from lr_ray.judge.actor import JudgeActor
from lr_ray.llm import client as clients
from lr_ray.llm.records import FOLDER, lines, parse
from lr_ray.simulated.limits import FAULTS, SENT_BACK, SPOILT
from lr_ray.store import Store
from tests.test_judge_actor import ANSWERS, NAMES, sampled

TIMEOUT = 8.0  # long enough for a busy machine: a call given up early would be one too many
PACKED = [
    sampled(f"p{i}", *list(ANSWERS.values())[:4], question=f"What do {name}, Toben and Sela keep?")
    for i, name in enumerate(NAMES * 2)
]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.005)


def judge(url: str, folder: Path, *packed: rows.Packed, **changes: Any) -> list[Any]:
    settings = {"model": "sim", "base_url": url, "timeout": TIMEOUT, "rows_in_flight": 16, **changes}
    config = Config.model_validate({"run_dir": str(folder), "judge": settings})

    async def work() -> list[rows.Packed]:
        actor = JudgeActor(config, Store(str(folder)))
        try:
            return await asyncio.gather(*map(actor, packed))
        finally:
            await actor.close()

    return [rows.unpack(row) | {"kind": row["kind"]} for row in asyncio.run(work())]


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats", timeout=10) as reply:  # noqa: S310 - loopback
        return json.load(reply)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Any], int]]:
    """The rows without any fault, and the calls they need."""
    with simulated.running() as url:
        judged = judge(url, tmp_path_factory.mktemp("clean"), *PACKED)
        needed = sum(row["usage"]["calls"] for row in judged)
        assert stats(url)["requests"] == stats(url)["answered"] == needed
        yield judged, needed


def compare(clean: list[Any], faulted: list[Any]) -> tuple[int, Counter[str]]:
    """How many scores are there, all of them right, and the reasons of those that are not."""
    scored, reasons = 0, Counter[str]()
    for before, after in zip(clean, faulted, strict=True):
        assert after["kind"] == "judged"
        for one, two in zip(before["candidates"], after["candidates"], strict=True):
            why = {missing["dimension"]: missing["reason"] for missing in two["unscored"]}
            for name in DIMENSIONS:
                if two["scores"][name] is None:
                    reasons[why[name]] += one["scores"][name] is not None
                    continue
                scored += 1
                assert name not in why
                # A new sample of a rating (temperature 0.95) may be off by one point; a verdict never is.
                slack = 0 if name == "faithfulness" else 1
                assert abs(two["scores"][name] - one["scores"][name]) <= slack
    reasons[""] = 0
    return scored, +reasons


# What an unscored dimension may say; a kind that is sent back is tried until it is answered.
REASONS = {
    "truncated": "cut off at its longest (5 attempts)",
    "refusal": "the judge refused (2 attempts)",
    "content_filter": "a content filter stopped the judge (2 attempts)",
    "invalid": "not valid JSON (5 attempts)",
    "out_of_range": "not what was asked for",
    "empty": "the reply was empty (5 attempts)",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_costs_its_own_calls_and_no_score(
    kind: str, clean: tuple[list[Any], int], tmp_path: Path
) -> None:
    share = {"throttled": 0.01, "timeout": 0.05}.get(kind, 0.2)
    with simulated.running(faults=f"{kind}={share}") as url:
        faulted = judge(url, tmp_path, *PACKED)
        told = stats(url)
    scored, reasons = compare(clean[0], faulted)
    assert told["faulted"].keys() == {kind}
    assert told["faulted"][kind] > share * clean[1] / 2
    # One more call for each fault, and not one besides.
    assert told["requests"] <= clean[1] + told["faulted"][kind]
    assert scored > 150
    if kind in SENT_BACK:
        assert not reasons
        assert told["requests"] == clean[1] + told["faulted"][kind]
    else:
        assert all(REASONS[kind] in reason for reason in reasons), reasons


def test_each_spoilt_kind_is_asked_again_in_its_own_way(tmp_path: Path) -> None:
    """What is sent the second time: more room for what was cut, a new sample for the rest."""
    found: dict[str, list[tuple[float, int]]] = {}
    for kind in SPOILT:
        with simulated.running(faults=f"{kind}=1") as url:
            judge(url, tmp_path / kind, PACKED[0], attempts=3, max_tokens=100, timeout=20)
        store = Store(str(tmp_path / kind))
        records = [parse(line) for name in store.files(FOLDER, ".jsonl") for line in lines(store, name)]
        units = Counter(record["unit"] for record in records if record)
        found[kind] = sorted(set(units.values()))  # type: ignore[assignment]
    assert found.pop("refusal") == found.pop("content_filter") == [2]
    assert all(tries == [3] for tries in found.values())


def test_all_kinds_at_five_percent_cost_what_they_hit(
    clean: tuple[list[Any], int], tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with simulated.running(faults=0.05) as url:
        faulted = judge(url, tmp_path, *PACKED)
        told = stats(url)
    scored, reasons = compare(clean[0], faulted)
    hit = sum(told["faulted"].values())
    ratio = (told["requests"] - hit) / clean[1]
    record_property("calls a needed call, beyond those hit", ratio)
    assert ratio <= 1.02
    assert hit > 0.03 * clean[1]
    assert scored + sum(reasons.values()) == scored_of(clean[0])
    assert sum(reasons.values()) <= 0.02 * scored


def scored_of(judged: list[Any]) -> int:
    return sum(
        score is not None for row in judged for c in row["candidates"] for score in c["scores"].values()
    )


def test_a_unit_that_failed_is_retried_alone_by_a_later_run(
    clean: tuple[list[Any], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An endpoint too ill for some units fails their rows; the next run pays for those units only."""
    monkeypatch.setattr(clients, "BROKEN_TRIES", 2)
    with simulated.running(faults="error=0.15") as url:
        first = judge(url, tmp_path, *PACKED)
        ill = stats(url)
    failed = [row for row in first if row["kind"] == "failed"]
    assert 0 < len(failed) < len(PACKED)
    assert all("gave up after 2 tries: HTTP 500" in row["reason"] for row in failed)
    ids = {row["prompt_id"] for row in failed}
    again = [packed for packed in PACKED if packed["prompt_id"] in ids]
    with simulated.running() as url:
        second = judge(url, tmp_path, *again)
        well = stats(url)
    assert ill["answered"] + well["requests"] == clean[1]
    done = {row["prompt_id"]: row for row in (*first, *second) if row["kind"] == "judged"}
    for row in clean[0]:
        assert done[row["prompt_id"]]["candidates"] == row["candidates"]
