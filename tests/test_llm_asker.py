"""Two endpoints of one actor: what one refuses says nothing of the other, and both stop together."""

import asyncio
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lr_ray import rows
from lr_ray.config import Config
from lr_ray.judge.answers import SCHEMAS, Rating
from lr_ray.llm import client as clients
from lr_ray.llm.asker import Asker
from lr_ray.llm.calls import Call, Calls
from lr_ray.llm.spending import Account, Beside, Stopped
from lr_ray.store import Store
from tests.endpoint import Answer, Endpoint, chat, error, run, serving
from tests.sampled_row import sampled_row


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.001)


class Both(Asker):
    """Asks both endpoints for a row, and keeps what its calls gave."""

    takes: ClassVar[rows.Kind] = "sampled"
    makes: ClassVar[rows.Kind] = "judged"
    stage: ClassVar[str] = "judge"

    def start(self) -> None:
        self.other = self.client(self.config.judge.retrieval.embedding_base_url)
        self.mine = self.client(None)

    async def work(self, row: Any, calls: Calls) -> Any:
        ask: Call[Rating] = Call(
            "helpfulness", [{"role": "user", "content": "x"}], SCHEMAS["helpfulness"], Rating
        )
        self.found = await asyncio.gather(
            calls.ask(ask), *(calls.embed([str(i)], "words", self.other) for i in range(8))
        )
        raise Stopped("enough")


def both(tmp_path: Path, work: Any, embeddings: Any, **judge: Any) -> Any:
    """What `work` gives with an actor that has begun, and its embedding endpoint."""

    async def begun() -> Any:
        async with (
            serving(lambda _: chat('{"analysis": "fine", "score": 7}')) as one,
            serving(embeddings) as other,
        ):
            changes = {"model": "m", "base_url": one.url, **judge}
            changes["retrieval"] = {"embedding_base_url": other.url, "embedding_model": "words"}
            config = Config.model_validate({"run_dir": str(tmp_path), "judge": changes})
            actor = Both(config, Store(str(tmp_path)))
            try:
                return await work(actor, other)
            finally:
                await actor.close()

    return run(begun)


def refusing(times: int) -> Any:
    """An embedding endpoint that refuses so many calls for their rate first."""
    left = [error(429, retry_after="0.3")] * times

    def script(request: dict[str, Any]) -> Answer:
        data = [{"index": i, "embedding": [1.0, 2.0]} for i, _ in enumerate(request["input"])]
        return left.pop() if left else (200, {"data": data, "usage": {"prompt_tokens": 1}}, {})

    return script


ROW = rows.pack("sampled", sampled_row("p", "context", "question", ("answer",)))


def test_refusals_of_the_other_endpoint_leave_the_judges_limits_alone(tmp_path: Path) -> None:
    async def work(actor: Both, other: Endpoint) -> None:
        assert (await actor(ROW))["kind"] == "left"
        assert len(actor.found) == 9
        assert len(other.requests) > 8
        judges, theirs = (client.governor._bureau for client in (actor.mine, actor.other))
        assert judges is not None
        assert theirs is not None
        assert judges.limits[0].epoch == 0
        assert judges.limits[0].paused_until < 0
        assert theirs.limits[0].paused_until > 0

    both(tmp_path, work, refusing(4))


@pytest.mark.parametrize(("actors", "places"), [(1, 6), (4, 1), (9, 1)])
def test_the_ceiling_holds_for_each_endpoint(tmp_path: Path, actors: int, places: int) -> None:
    async def work(actor: Both, _: Endpoint) -> None:
        actor._start()
        bureau = actor.other.governor._bureau
        assert bureau is not None
        assert bureau._ceiling == places
        assert actor.mine.governor is actor.governor

    both(tmp_path, work, refusing(0), concurrency=6, actors=actors)


def test_a_stop_of_the_run_stops_calls_to_the_other_endpoint(tmp_path: Path) -> None:
    async def work(actor: Both, other: Endpoint) -> None:
        at_work = asyncio.ensure_future(actor(ROW))
        while not other.requests:  # noqa: ASYNC110 - the endpoint has no event for it
            await asyncio.sleep(0.01)
        actor.governor.account.told("the budget is spent", None)
        assert (await asyncio.wait_for(at_work, 5))["kind"] == "left"
        asked = len(other.requests)
        with pytest.raises(Stopped, match="the budget is spent"):
            await actor.other.post("/embeddings", b"{}", "u", lambda *_: None)
        assert len(other.requests) == asked

    both(tmp_path, work, lambda _: error(429, retry_after="60"))


def test_an_account_beside_another_is_reported_by_that_alone() -> None:
    account = Account()
    beside = Beside(account, lambda: True)
    beside.paid(2.0)
    beside.answered()
    beside.broke("HTTP 500")
    beside.unusable("empty")
    beside.row("empty")
    assert beside.take().money == 0
    report = account.take()
    assert (report.money, report.answered) == (2.0, 1)
    assert dict(report.broken | report.unusable | report.rows) == {"HTTP 500": 1, "empty": 1}
    beside.told("nothing", 0.0)
    assert beside.may_begin
    account.told(None, 0.0)
    assert not beside.may_begin
    account.told(None, 9.0)
    assert beside.may_begin
    assert not Beside(account, lambda: False).may_begin
    account.told("over", None)
    assert beside.ended.is_set()
    with pytest.raises(Stopped, match="over"):
        _ = beside.may_begin
