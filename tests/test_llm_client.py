import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lr_ray import metrics
from lr_ray.llm import client as clients
from lr_ray.llm import transport
from lr_ray.llm.client import Client
from lr_ray.llm.failures import EndpointRefused, GaveUp, Unanswerable
from lr_ray.llm.governor import Governor
from lr_ray.llm.spending import Account, Stopped
from tests.endpoint import Answer, Endpoint, Script, chat, error, in_turn, run, serving, settings

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.001)


def post(script: Script, **changes: Any) -> tuple[Any, Endpoint, Counter[Any]]:
    """What one post gives (a reply or an exception), the endpoint, the counts."""
    counts: Counter[Any] = Counter()

    async def work() -> tuple[Any, Endpoint]:
        async with serving(script) as endpoint:
            client = Client(settings(endpoint.url, **changes), KEY, Governor(4))
            try:
                reply: Any = await client.post(
                    "/chat/completions", b'{"a": 1}', "p/0/x/0", lambda name, n: counts.update({name: n})
                )
            except Exception as error:
                reply = error
            await client.close()
            return reply, endpoint

    reply, endpoint = run(work)
    return reply, endpoint, counts


def test_a_reply_comes_back_as_it_is_and_the_request_goes_out_as_it_is() -> None:
    reply, endpoint, counts = post(in_turn(chat("yes")))
    assert reply["choices"][0]["message"]["content"] == "yes"
    assert endpoint.requests == [{"a": 1, "path": "/v1/chat/completions"}]
    assert endpoint.headers[0]["x-lr-unit"] == "p/0/x/0"
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    assert counts == {"calls_started": 1, "calls_finished": 1}


@pytest.mark.parametrize(
    "failure",
    [
        error(429, "rate_limit_exceeded"),
        error(500),
        error(503),
        error(408),
        (200, None, {}),
        (200, b"<html>oops</html>", {}),
        (200, {"error": {"message": "overloaded"}}, {}),
        (200, {"error": {"message": "overloaded", "code": 503}}, {}),
        (200, {"error": "overloaded"}, {}),
        (200, b"[" * 100_000, {}),
        (200, [], {}),
    ],
    ids=[
        *("429", "500", "503", "408", "hang-up", "not json", "error in 200", "503 in 200", "a word in 200"),
        *("too deep", "no object"),
    ],
)
def test_what_a_retry_can_help_is_tried_again(failure: Answer) -> None:
    reply, endpoint, counts = post(in_turn(failure, failure, chat("yes")))
    assert reply["choices"]
    assert len(endpoint.requests) == 3
    failed = metrics.call("x", "throttled" if failure[0] == 429 else "broken")
    assert counts == {"calls_started": 3, "calls_finished": 3, "retries": 2, failed: 2}


def test_silence_is_given_up_after_the_timeout_and_tried_again() -> None:
    reply, endpoint, _ = post(in_turn((200, 3.0, {}), chat("yes")), timeout=0.2)
    assert reply["choices"]
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(status: int) -> None:
    began = time.monotonic()
    reply, endpoint, _ = post(in_turn(error(status, "slow down", retry_after="0.5"), chat("yes")))
    assert reply["choices"]
    assert len(endpoint.requests) == 2
    assert time.monotonic() - began >= 0.5


def test_retry_after_in_milliseconds_goes_first() -> None:
    began = time.monotonic()
    answer = error(429, "slow down", retry_after="30", retry_after_ms="300")
    assert post(in_turn(answer, chat("yes")))[0]["choices"]
    assert 0.3 <= time.monotonic() - began < 5


@pytest.mark.parametrize("said", ["", "soon", "nan", "inf", "-5", "Mon, 99 Foo 2020", "1e999"])
def test_a_retry_after_of_no_sense_is_left_alone(said: str) -> None:
    began = time.monotonic()
    assert post(in_turn(error(429, retry_after=said), chat("yes")))[0]["choices"]
    assert time.monotonic() - began < 5


def test_an_endpoint_that_stays_broken_is_given_up() -> None:
    reply, endpoint, _ = post(in_turn(error(500)))
    assert isinstance(reply, GaveUp)
    assert str(reply) == "p/0/x/0: gave up after 8 tries: HTTP 500"
    assert len(endpoint.requests) == clients.BROKEN_TRIES


@pytest.mark.parametrize(("status", "asked"), [(401, 1), (402, 1), (404, 1), (400, 2), (403, 2), (422, 2)])
def test_what_no_retry_can_help_stops_at_once(status: int, asked: int) -> None:
    reply, endpoint, _ = post(in_turn(error(status, f"bad {KEY}" if status in (401, 403) else "bad")))
    assert isinstance(reply, EndpointRefused)
    assert len(endpoint.requests) == asked
    assert KEY not in str(reply)
    assert f"HTTP {status}" in str(reply)


def test_a_used_up_quota_is_no_rate_limit() -> None:
    reply, endpoint, _ = post(in_turn(error(429, "insufficient_quota")))
    assert isinstance(reply, EndpointRefused)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        error(413),
        error(400, "context_length_exceeded"),
        error(400, "content_filter"),
        (400, {"error": {"message": "This model's maximum context length is 8 tokens", "code": 400}}, {}),
    ],
)
def test_one_request_that_is_too_long_or_filtered_does_not_stop_the_run(answer: Answer) -> None:
    assert isinstance(post(in_turn(answer))[0], Unanswerable)


def test_an_absurdly_large_reply_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LARGEST_REPLY", 1 << 20)
    reply, endpoint, _ = post(in_turn((200, b" " * (3 << 20), {})))
    assert isinstance(reply, Unanswerable)
    assert len(endpoint.requests) == 1


def test_a_redirect_is_told_and_the_key_stays_here() -> None:
    reply, endpoint, _ = post(in_turn((307, {}, {"location": "https://me:word@elsewhere/v1/x"})))
    assert isinstance(reply, EndpointRefused)
    assert "redirects to 'https://elsewhere/v1/x' (HTTP 307)" in str(reply)
    assert len(endpoint.requests) == 1


class Permits:
    """In place of a governor: gives leave at once, at the replicas in turn, and hears what becomes of it."""

    def __init__(self, *replicas: int) -> None:
        self.replicas, self.heard = list(replicas), []
        self.asked: list[tuple[int, tuple[int, ...]]] = []
        self.replica, self.account = 0, Account()

    @asynccontextmanager
    async def permit(self, tokens: int, order: tuple[int, ...]) -> AsyncIterator["Permits"]:
        self.asked.append((tokens, order))
        self.replica = self.replicas.pop(0)
        yield self

    def succeeded(self, tokens: int = 0, headers: Mapping[str, str] | None = None) -> None:
        self.heard.append(("succeeded", tokens, (headers or {}).get("X-Left")))

    def throttled(self, retry_after: float | None, headers: Mapping[str, str]) -> None:
        self.heard.append(("throttled", retry_after, headers.get("X-Left")))

    def broke(self, reason: str) -> None:
        self.heard.append(("broke", reason))


def test_each_try_goes_where_its_permit_says_and_its_end_is_told() -> None:
    permits: Any = Permits(0, 1, 1, 0, 1)
    first = in_turn(error(429, retry_after="0.01", x_left="7"), (200, None, {}))
    status, body, _ = chat("yes")
    second = in_turn(error(500), error(503, retry_after="0.01"), (status, body, {"x-left": "5"}))

    async def work() -> tuple[int, int]:
        async with serving(first) as a, serving(second) as b:
            client = Client(settings([a.url, b.url]), KEY, permits)  # pyrefly: ignore
            reply = await client.post("/x", b"{}", "u", lambda *_: None, tokens=9, order=(1, 2))
            assert reply["choices"]
            await client.close()
            return len(a.requests), len(b.requests)

    assert run(work) == (2, 3)
    assert permits.asked == [(9, (1, 2))] * 5
    assert permits.heard == [
        ("throttled", 0.01, "7"),
        ("broke", "HTTP 500"),
        ("broke", "HTTP 503"),
        ("broke", "the connection broke (ClientPayloadError)"),
        ("succeeded", 10, "5"),
    ]


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"total_tokens": 12, "prompt_tokens": 1}, 12),
        ({"prompt_tokens": 3, "completion_tokens": None}, 3),
        ({"total_tokens": "many"}, 0),
        ({"total_tokens": -4}, 0),
        ({"total_tokens": 10**30}, 0),
        ({"total_tokens": True}, 0),
        (None, 0),
        ([], 0),
    ],
)
def test_what_a_reply_says_it_used(usage: Any, tokens: int) -> None:
    permits: Any = Permits(0)

    async def work() -> None:
        async with serving(in_turn((200, {"choices": [], "usage": usage}, {}))) as endpoint:
            client = Client(settings(endpoint.url), KEY, permits)
            await client.post("/x", b"{}", "u", lambda *_: None)
            await client.close()

    run(work)
    assert permits.heard == [("succeeded", tokens, None)]


def test_a_stop_of_the_run_sends_nothing() -> None:
    class Closed(Permits):
        def permit(self, tokens: int, order: tuple[int, ...]) -> Any:
            raise Stopped("the budget is spent")

    async def work() -> list[Any]:
        async with serving(in_turn(chat("x"))) as endpoint:
            client = Client(settings(endpoint.url), KEY, Closed())  # pyrefly: ignore
            with pytest.raises(Stopped, match="the budget is spent"):
                await client.post("/x", b"{}", "u", lambda *_: None)
            await client.close()
            return endpoint.requests

    assert run(work) == []


def test_a_stop_of_the_run_does_not_wait_for_calls_that_wait_to_be_tried_again() -> None:
    async def work() -> float:
        async with serving(in_turn(error(503, retry_after="30"))) as endpoint:
            governor = Governor(4)
            client = Client(settings(endpoint.url), KEY, governor)
            call = asyncio.create_task(client.post("/x", b"{}", "u", lambda *_: None))
            while not endpoint.requests:  # noqa: ASYNC110 - the endpoint has no event for it
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert not call.done()
            governor.account.told("the budget is spent", None)
            began = time.monotonic()
            with pytest.raises(Stopped, match="the budget is spent"):
                await call
            await client.close()
            assert len(endpoint.requests) == 1
            return time.monotonic() - began

    assert run(work) < 5


def test_a_key_that_breaks_requests_is_refused_before_any() -> None:
    with pytest.raises(ValueError, match="the key in OPENAI_API_KEY holds") as caught:
        Client(settings("http://127.0.0.1:9/v1"), f"{KEY}\n", Governor(1))
    assert KEY not in str(caught.value)


def test_a_proxy_that_cannot_be_used_is_no_fault_of_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    reply, endpoint, counts = post(in_turn(chat("yes")))
    assert "is a socks5 proxy; only http works" in str(reply)
    assert isinstance(reply, ValueError)
    assert endpoint.requests == []
    assert counts["retries"] == 0


def test_after_a_refusal_nothing_is_sent_any_more() -> None:
    async def work() -> int:
        async with serving(in_turn(error(401))) as endpoint:
            client = Client(settings(endpoint.url), KEY, Governor(1))
            posts = [client.post("/chat/completions", b"{}", "u", lambda *_: None) for _ in range(20)]
            results = await asyncio.gather(*posts, return_exceptions=True)
            assert all(isinstance(result, EndpointRefused) for result in results)
            await client.close()
            return len(endpoint.requests)

    assert run(work) <= 2


def test_lone_surrogates_in_the_http_body_are_read() -> None:
    reply, _, _ = post(in_turn((200, b'{"choices": [], "x": "\\ud800"}', {})))
    assert reply["x"] == "\ud800"
