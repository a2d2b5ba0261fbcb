"""What can be refused of an endpoint before anything is spent."""

import asyncio
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import pytest

from lr_ray.config import Config
from lr_ray.llm.client import check
from tests.endpoint import Answer, Script, chat, error, in_turn, run, serving

KEY = "sk-very-secret"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("OPENAI_BASE_URL", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def judged(**judge: Any) -> Config:
    return Config.model_validate({"run_dir": "x", "judge": {"model": "m", **judge}})


def asked(script: Script, *others: Script, **judge: Any) -> dict[str, str]:
    """The headers of the request that a check sent."""

    async def work() -> dict[str, str]:
        async with serving(script) as endpoint, serving(others[0] if others else script) as other:
            urls = [endpoint.url, other.url] if others else endpoint.url
            await asyncio.to_thread(check, judged(base_url=urls, **judge))
            assert bool(other.requests) is bool(others)
            return endpoint.headers[0]

    return run(work)


BARE = (200, b'[{"id": "m"}]', {"content-type": "application/json"})


@pytest.mark.parametrize("answer", [(200, {"data": []}, {}), BARE, error(404), error(429)])
def test_an_endpoint_that_is_there_passes(answer: Answer) -> None:
    asked(in_turn(answer))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_names_its_variable(status: int) -> None:
    with pytest.raises(ValueError, match=f"refuses the key in OPENAI_API_KEY .HTTP {status}") as caught:
        asked(in_turn(error(status, KEY)))
    assert KEY not in str(caught.value)


def test_every_replica_is_asked() -> None:
    there = in_turn((200, {"data": []}, {}))
    asked(there, there)
    with pytest.raises(ValueError, match="refuses the key in OPENAI_API_KEY"):
        asked(there, in_turn(error(401)))


def test_no_replica_at_all() -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        judged(base_url=[])


def test_a_redirect_is_told() -> None:
    with pytest.raises(ValueError, match=r"redirects to 'http://elsewhere/v1' .HTTP 308"):
        asked(in_turn((308, {}, {"location": "http://elsewhere/v1"})))


def test_a_missing_key_is_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ValueError, match="wants a key, and there is none in OPENAI_API_KEY"):
        asked(in_turn(error(401)))


def test_nobody_there_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    with pytest.raises(ValueError, match=rf"endpoint {url}/ cannot be reached: .*refused") as caught:
        check(judged(base_url=url))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("urls", "says"),
    [
        ({"base_url": "localhost:1"}, r"judge\.base_url: 'localhost:1' is no address of the form"),
        ({"base_url": ["http://127.0.0.1:9/v1?v=1"]}, r"judge\.base_url: .* judge\.parameters\.extra_query"),
        (
            {"base_url": "http://127.0.0.1:9/v1", "retrieval": {"embedding_base_url": "x"}},
            r"judge\.retrieval\.embedding_base_url: 'x' is no address",
        ),
    ],
)
def test_a_url_that_is_none_is_named(urls: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check(judged(**urls))


@pytest.mark.parametrize("body", [b"<html>hello</html>", b"not json", b'"x"', b""])
def test_an_address_of_something_else_is_told(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^judge\.base_url: the endpoint .* is no OpenAI-compatible API"):
        asked(in_turn((200, body, {"content-type": "text/html"})))


def test_headers_and_query_of_the_run_go_along() -> None:
    heard: list[tuple[str, str | None]] = []

    class Heard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append((self.path, self.headers["X-Team"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"data": []}')

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Heard) as server:
        Thread(target=server.handle_request).start()
        parameters = {"extra_headers": {"X-Team": "a"}, "extra_query": {"api-version": "2"}}
        check(judged(base_url=f"http://127.0.0.1:{server.server_port}/v1", parameters=parameters))
    assert heard == [("/v1/models?api-version=2", "a")]


def test_a_proxy_that_cannot_be_used_is_told_only_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://me:word@127.0.0.1:9")
    with pytest.raises(ValueError, match="is a socks5 proxy; only http works") as caught:
        check(judged(base_url="http://127.0.0.1:9/v1"))
    assert "word" not in str(caught.value)
    monkeypatch.setenv("no_proxy", "127.0.0.0/8")
    asked(in_turn((200, {"data": []}, {})))


def test_a_key_that_breaks_the_request_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with pytest.raises(ValueError, match="the key in OPENAI_API_KEY holds") as caught:
        asked(in_turn(chat("x")))
    assert KEY not in str(caught.value)


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ValueError, match=r"judge\.model"):
        check(Config.model_validate({"run_dir": "x"}))
