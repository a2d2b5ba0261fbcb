"""Embeddings are calls like others: validated, tried again, paid once, and never a score by mistake."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lr_ray import retry
from lr_ray.llm import client as clients
from lr_ray.llm.calls import Calls, Unusable
from lr_ray.llm.client import Client
from lr_ray.llm.governor import Governor
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.lookup import Recorded
from lr_ray.store import Store
from tests.endpoint import Answer, Endpoint, Script, error, in_turn, run, serving, settings


def vectors(*embeddings: Any) -> Answer:
    """An embeddings reply."""
    data = [{"index": i, "embedding": one} for i, one in enumerate(embeddings)]
    return 200, {"data": data, "usage": {"prompt_tokens": 5}}, {}


GOOD = vectors([3.0, 4.0], [0.0, 2.0])
BAD = [vectors([None, None], [1.0, 1.0]), vectors([0.0, 0.0], [1.0, 1.0]), vectors([1.0, 1.0]), vectors()]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.001)


def embed(folder: Path, script: Script, *texts: str, **changes: Any) -> tuple[Any, Endpoint, Calls]:
    """The vectors of texts or the failure, the endpoint, and the row's calls. Replays what `folder` holds."""
    store = Store(str(folder))

    async def work() -> Any:
        async with serving(script) as endpoint:
            judge = settings(endpoint.url, **changes)
            client, book = Client(judge, None, Governor(8)), Ledger(store)
            recorded = Recorded(store).replies("p")
            row = Calls("p", client, book, recorded, judge, lambda *_: None)
            try:
                found: Any = await row.embed(list(texts or ("a", "b")), "words", client)
            except Unusable as failure:
                found = failure
            await client.close()
            book.close()
            return found, endpoint, row

    return run(work)


def test_a_bad_reply_is_asked_again_and_kept(tmp_path: Path) -> None:
    found, endpoint, row = embed(tmp_path, in_turn(*BAD, GOOD))
    assert found == pytest.approx(np.array([[0.6, 0.8], [0.0, 1.0]]), abs=1e-3)
    assert len(endpoint.requests) == 5
    assert all(request == endpoint.requests[0] for request in endpoint.requests)
    assert row.usage["retries"] == 4
    assert row.usage["prompt_tokens"] == 25
    again, endpoint, row = embed(tmp_path, in_turn(error(500)))
    assert np.array_equal(again, found)
    assert endpoint.requests == []
    assert row.usage["reused"] == row.usage["calls"] == 5


def test_replies_that_stay_bad_are_a_reason_that_a_retry_can_mend(tmp_path: Path) -> None:
    found, endpoint, row = embed(tmp_path, in_turn(BAD[0]))
    assert isinstance(found, Unusable)
    assert str(found) == "the embedding endpoint did not give one usable vector a text (5 attempts)"
    assert not any(hopeless in str(found) for hopeless in retry.HOPELESS)
    assert len(endpoint.requests) == 5
    report = row._account.take()
    assert report.answered == 0
    _, endpoint, _ = embed(tmp_path, in_turn(GOOD))
    assert endpoint.requests == []
    found, endpoint, _ = embed(tmp_path, in_turn(GOOD), retry_unscored=True)
    assert found.shape == (2, 2)
    assert len(endpoint.requests) == 1


def test_a_reply_of_another_shape_is_no_vectors(tmp_path: Path) -> None:
    found, _, _ = embed(tmp_path, in_turn((200, {"object": "list"}, {}), GOOD))
    assert found.shape == (2, 2)


def test_calls_that_mix_widths_are_a_reason_that_nothing_mends(tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Answer:
        return vectors(*([1.0] * (2 if len(request["input"]) > 1 else 3) for _ in request["input"]))

    found, _, _ = embed(tmp_path, script, *map(str, range(65)))
    assert isinstance(found, Unusable)
    assert any(hopeless in str(found) for hopeless in retry.HOPELESS)


def test_equal_texts_of_a_row_are_one_call(tmp_path: Path) -> None:
    texts = [str(i % 64) for i in range(128)]
    found, endpoint, _ = embed(tmp_path, in_turn(vectors(*([1.0, i] for i in range(64)))), *texts)
    assert found.shape == (128, 2)
    (request,) = endpoint.requests
    assert request.pop("path") == "/v1/embeddings"
    assert request == {"model": "words", "input": texts[:64], "encoding_format": "base64"}
