import asyncio
import socket
import time
from collections import Counter
from typing import Any

import pytest

from lr_ray.config import Config
from lr_ray.llm import client as clients
from lr_ray.llm.client import Client, EndpointRefused, GaveUp, Unanswerable, check, shown
from lr_ray.llm.governor import Governor
from tests.endpoint import Answer, Endpoint, Script, chat, error, in_turn, run, serving, settings

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.001)


def post(script: Script, **changes: Any) -> tuple[Any, Endpoint, Counter[str]]:
    """What one post gives (a reply or an exception), the endpoint, the counts."""
    counts: Counter[str] = Counter()

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
    ],
    ids=["429", "500", "503", "408", "hang-up", "not json", "error in 200"],
)
def test_what_a_retry_can_help_is_tried_again(failure: Answer) -> None:
    reply, endpoint, counts = post(in_turn(failure, failure, chat("yes")))
    assert reply["choices"]
    assert len(endpoint.requests) == 3
    assert counts == {"calls_started": 3, "calls_finished": 3, "retries": 2}


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


def test_an_endpoint_that_stays_broken_is_given_up() -> None:
    reply, endpoint, _ = post(in_turn(error(500)))
    assert isinstance(reply, GaveUp)
    assert str(reply) == "p/0/x/0: gave up after 8 tries: HTTP 500"
    assert len(endpoint.requests) == clients.BROKEN_TRIES


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_no_retry_can_help_stops_at_once(status: int) -> None:
    reply, endpoint, _ = post(in_turn(error(status, f"bad {KEY}" if status in (401, 403) else "bad")))
    assert isinstance(reply, EndpointRefused)
    assert len(endpoint.requests) == 1
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


def test_a_url_is_shown_without_its_password() -> None:
    assert shown("https://me:word@host:1/v1/") == "https://host:1/v1/"


class TestCheck:
    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def asked(self, script: Script) -> None:
        async def work() -> None:
            async with serving(script) as endpoint:
                config = Config.model_validate(
                    {"run_dir": "x", "judge": {"model": "m", "base_url": endpoint.url}}
                )
                await asyncio.to_thread(check, config)

        run(work)

    @pytest.mark.parametrize("answer", [(200, {"data": []}, {}), error(404), error(429)])
    def test_an_endpoint_that_is_there_passes(self, answer: Answer) -> None:
        self.asked(in_turn(answer))

    @pytest.mark.parametrize("status", [401, 403])
    def test_a_refused_key_names_its_variable(self, status: int) -> None:
        with pytest.raises(ValueError, match=f"refuses the key in OPENAI_API_KEY .HTTP {status}") as caught:
            self.asked(in_turn(error(status, KEY)))
        assert KEY not in str(caught.value)

    def test_a_missing_key_is_called_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(ValueError, match="wants a key, and there is none in OPENAI_API_KEY"):
            self.asked(in_turn(error(401)))

    def test_nobody_there_is_one_sentence(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        url = f"http://127.0.0.1:{port}/v1"
        config = Config.model_validate({"run_dir": "x", "judge": {"model": "m", "base_url": url}})
        with pytest.raises(ValueError, match=rf"endpoint {url}/ cannot be reached: .*refused") as caught:
            check(config)
        assert "\n" not in str(caught.value)

    def test_a_url_that_is_none(self) -> None:
        config = Config.model_validate({"run_dir": "x", "judge": {"model": "m", "base_url": "localhost:1"}})
        with pytest.raises(ValueError, match="cannot be reached"):
            check(config)

    def test_a_key_that_breaks_the_request_is_not_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
        with pytest.raises(ValueError, match="the key in OPENAI_API_KEY holds") as caught:
            self.asked(in_turn(chat("x")))
        assert KEY not in str(caught.value)

    def test_a_missing_model_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"judge\.model"):
            check(Config.model_validate({"run_dir": "x"}))
