"""The direct baseline's calls: one order and both, over HTTP by one actor."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from lr_ray import rows, schemas, simulated
from lr_ray.agreement import direct, inputs
from lr_ray.agreement.inputs import Label
from lr_ray.config import Config
from lr_ray.judge import chunks
from lr_ray.judge.direct import KIND
from lr_ray.labelled import Pair
from lr_ray.llm import client as clients
from lr_ray.store import Store
from tests.endpoint import chat, error, run, serving

LABEL = Label([1], [0], "s")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.001)


def said(*winners: tuple[int, int, str | None]) -> direct.Said:
    return {(first, second): winner for first, second, winner in winners}


@pytest.mark.parametrize(
    ("one", "other", "single", "both"),
    [
        # Answer 1 is the better one; `one` has 0 first, `other` has 1 first.
        ("second", "first", "right", "right"),
        ("first", "second", "wrong", "wrong"),
        ("first", "first", "wrong", "tie"),
        ("second", "second", "right", "tie"),
        ("tie", "tie", "tie", "tie"),
        ("second", "tie", "right", "tie"),
        (None, "first", "unscored", "unscored"),
        ("second", None, "right", "unscored"),
    ],
)
def test_outcomes_of_one_order_and_of_both(one: str, other: str, single: str, both: str) -> None:
    calls = said((0, 1, one), (1, 0, other))
    assert direct.single(calls, LABEL) == single
    assert direct.both(calls, LABEL) == both
    turned = Label([0], [1], "s")
    other_way = {"right": "wrong", "wrong": "right"}
    assert direct.single(calls, turned) == other_way.get(single, single)
    assert direct.both(calls, turned) == other_way.get(both, both)


def test_no_calls_are_unscored() -> None:
    assert direct.single({}, LABEL) == direct.both({}, LABEL) == "unscored"


def test_several_answers_are_right_when_every_couple_is() -> None:
    label = Label([0], [1, 2], "s")
    right = said((0, 1, "first"), (1, 0, "second"), (0, 2, "first"), (2, 0, "second"))
    assert direct.single(right, label) == direct.both(right, label) == "right"
    assert direct.single({**right, (0, 2): "tie"}, label) == "tie"
    assert direct.single({**right, (0, 2): "second", (0, 1): "tie"}, label) == "wrong"
    assert direct.single({**right, (0, 2): "second", (0, 1): None}, label) == "unscored"


def test_each_couple_is_asked_about_in_both_orders_once() -> None:
    labels = [
        {"chosen": [2], "rejected": [0, 1], "subset": "s"},
        {"chosen": [0], "rejected": [2], "subset": "s"},
    ]
    assert direct.orders(labels) == [(0, 2), (2, 0), (1, 2), (2, 1)]


def row(context: str | None = "Mira keeps copper.", prompt_id: str = "p") -> dict[str, Any]:
    pair = Pair(prompt_id, context, "What does Mira keep?", ["Mira keeps copper."], ["Salt.", "x"], "s")
    return inputs.row([pair], 0, chunks.measure(None))


def asked(url: str, folder: Path, *given: dict[str, Any], **judge: Any) -> list[Any]:
    settings = {"run_dir": str(folder), "judge": {"model": "m", "base_url": url, **judge}}

    async def work() -> list[Any]:
        actor = direct.Comparer(Config.model_validate(settings), Store(str(folder)))
        try:
            return await asyncio.gather(*(actor(rows.pack("sampled", one)) for one in given))
        finally:
            await actor.close()

    return [rows.unpack(one) | {"kind": one["kind"]} for one in run(work)]


def test_what_is_asked_and_kept(tmp_path: Path) -> None:
    async def work() -> Any:
        script = lambda _: chat('{"analysis": "a", "winner": "first"}')  # noqa: E731
        async with serving(script) as endpoint:
            made = await asyncio.to_thread(asked, endpoint.url, tmp_path, row(), row(None, "q"))
            again = await asyncio.to_thread(asked, endpoint.url, tmp_path, row(), row(None, "q"))
            return made, again, endpoint.requests, endpoint.headers

    made, again, requests, headers = run(work)
    assert made == again
    assert len(requests) == 8
    texts = [request["messages"][1]["content"] for request in requests]
    assert sum(text.startswith("<document ") for text in texts) == 4  # where there is a document
    assert all(request["response_format"]["json_schema"]["name"] == KIND for request in requests)
    good = row()["candidates"].index("Mira keeps copper.")
    couples = {tuple(sorted((good, bad))) for bad in range(3) if bad != good}
    calls = [(call["first"], call["second"]) for call in made[0]["calls"]]
    assert {tuple(sorted(call)) for call in calls} == couples
    assert len(set(calls)) == 4
    assert {header["x-lr-unit"] for header in headers} >= {f"p/{one}/direct/{two}" for one, two in calls}
    assert [one.pop("kind") for one in made] == ["preferred", "preferred"]
    store = direct.folder(Store(str(tmp_path)))
    store.write_rows("preferred", made, schemas.PREFERRED)
    assert list(store.rows("preferred")) == made
    assert direct.said(Store(str(tmp_path)))["p"] == dict.fromkeys(calls, "first")


def test_a_call_that_gives_nothing_has_no_winner(tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Any:
        # The document is too long where "x" is shown first.
        first = request["messages"][1]["content"].partition("<first ")[2]
        too_long = first.partition("\n")[2].startswith("x")
        return (
            error(400, "context_length_exceeded") if too_long else chat('{"analysis": "", "winner": "tie"}')
        )

    async def work() -> Any:
        async with serving(script) as endpoint:
            return await asyncio.to_thread(asked, endpoint.url, tmp_path, row(), attempts=2)

    (made,) = run(work)
    assert made["kind"] == "preferred"
    x = row()["candidates"].index("x")
    for call in made["calls"]:
        assert (call["winner"] is None) == (call["first"] == x)
        assert bool(call["unscored"]) == (call["first"] == x)


def test_the_first_call_of_a_document_goes_ahead(tmp_path: Path) -> None:
    with simulated.running(latency=0.3, cache_block=64) as url:
        long = row("Mira keeps copper. The mill is old. " * 200)
        (made,) = asked(url, tmp_path, long)
        import urllib.request

        with urllib.request.urlopen(f"{url}/stats") as reply:  # noqa: S310 - loopback
            stats = json.load(reply)
    assert made["kind"] == "preferred"
    assert stats["in_flight_peak"] == 3
    assert stats["hit_tokens"] > 0.6 * stats["prompt_tokens"]
