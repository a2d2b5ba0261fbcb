"""A simulated judge: an OpenAI-compatible server that answers by plain rules (`rules`).

It sees only the request: no ground truth, no side channel, nothing of ours imported. Latency, limits,
faults and a prefix cache are to order (`limits`); what it answers and which requests fail depends
on the requests alone, not on time or chance, so that runs can be repeated. GET /v1/stats tells what came.
"""

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from lr_ray.simulated import limits, replies
from lr_ray.simulated.replies import Reply

Scope = dict[str, Any]


@dataclass(frozen=True)
class Knobs:
    """How the server behaves; `limits` has the written forms.

    `latency` is in seconds. Above `requests_per_minute`, `tokens_per_minute` or `max_concurrency`, numbers or
    schedules ("600@0,300@20"), requests are refused with a 429, with `Retry-After` where `retry_after`;
    `headers` adds OpenAI's x-ratelimit headers to every reply. `faults` is a share, or shares by kind.
    `cache_blocks` blocks of `cache_block` characters make the prefix cache. `plain` answers without rules,
    for load tests. Without `api_key` any key is taken.
    """

    latency: float = 0.0
    requests_per_minute: float | str | None = None
    tokens_per_minute: float | str | None = None
    max_concurrency: float | str | None = None
    headers: bool = False
    retry_after: bool = True
    faults: float | str = 0.0
    cache_blocks: int = 200_000
    cache_block: int = 1024
    plain: bool = False
    api_key: str | None = None
    model: str = "simulated-judge"


class App:
    """The ASGI application. Written against ASGI alone: a framework costs more than the rules do."""

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._limits = limits.Limits(
            knobs.requests_per_minute, knobs.tokens_per_minute, knobs.max_concurrency
        )
        self._faults = limits.Faults(knobs.faults)
        self._cache = limits.PrefixCache(knobs.cache_blocks, knobs.cache_block)
        self.stats = Stats()

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        message = await receive()
        body = message.get("body", b"")
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        if scope["method"] != "POST":
            await _send(send, *self._get(scope))
            return
        self.stats.arrived(self._limits.seconds())
        try:
            reply = await self._post(scope, body, receive)
        finally:
            self.stats.in_flight -= 1
        if reply is not None:
            await _send(send, *reply)

    def _get(self, scope: Scope) -> Reply:
        path = _path(scope)
        if path == "/stats":
            return 200, orjson.dumps(asdict(self.stats), option=orjson.OPT_NON_STR_KEYS), {}
        if not self._authorised(scope):
            return replies.error(401, "invalid_api_key", "the key is not right")
        if path != "/models":
            return replies.error(404, "not_found", f"there is no {path}")
        model = {"id": self._knobs.model, "object": "model", "created": 0, "owned_by": "simulated"}
        return 200, orjson.dumps({"object": "list", "data": [model]}), {}

    async def _post(self, scope: Scope, body: bytes, receive: Any) -> Reply | None:
        """Status, body (none: hang up) and headers; none: the client gave up waiting."""
        if not self._authorised(scope):
            return replies.error(401, "invalid_api_key", "the key is not right")
        path, estimate = _path(scope), len(body) // 4
        if path not in ("/chat/completions", "/embeddings"):
            return replies.error(404, "not_found", f"there is no {path}")
        refused = self._refused(estimate)
        if refused is not None:
            return refused
        fault = self._fault(path, body)
        if fault == "timeout":
            while (await receive())["type"] != "http.disconnect":
                pass
            return None
        if fault in limits.SENT_BACK:
            reply, used = replies.failure(fault, self._knobs.retry_after), 0
        else:
            reply, used = self._made(path, body, fault)
        if self._knobs.latency:
            await asyncio.sleep(self._knobs.latency)
        if used:
            self._limits.used(used - estimate)
        if reply[0] == 200 and fault is None:
            self.stats.answer(self._limits.seconds())
        return self._with_limits(reply)

    def _fault(self, path: str, body: bytes) -> str | None:
        fault = self._faults.draw(body)
        if fault in limits.SPOILT and path == "/embeddings":
            return None
        if fault is not None:
            self.stats.faulted[fault] = self.stats.faulted.get(fault, 0) + 1
        return fault

    def _refused(self, tokens: int) -> Reply | None:
        """The 429 that a limit gives to a request of about `tokens`; None: no limit does."""
        refusal = self._limits.refuses(tokens, self.stats.in_flight - 1)
        if refusal is None:
            return None
        what, seconds = refusal
        self.stats.refuse(what, self._limits.seconds())
        wait = {"retry-after": f"{seconds:.3f}"} if seconds and self._knobs.retry_after else {}
        return self._with_limits(replies.error(429, "rate_limit_exceeded", f"too many {what}", wait))

    def _with_limits(self, reply: Reply) -> Reply:
        return (*reply[:2], reply[2] | self._limits.headers()) if self._knobs.headers else reply

    def _authorised(self, scope: Scope) -> bool:
        if self._knobs.api_key is None:
            return True
        wanted = f"Bearer {self._knobs.api_key}".encode()
        return any(name == b"authorization" and value == wanted for name, value in scope["headers"])

    def _made(self, path: str, body: bytes, fault: str | None) -> tuple[Reply, int]:
        """The reply, and the tokens it used."""
        if self._knobs.plain and fault is None and path == "/chat/completions":
            return replies.plain(body)
        try:
            request = orjson.loads(body)
            if path == "/embeddings":
                reply = replies.embeddings(request)
            else:
                hit = self._cache.take(replies.prompt_of(request))
                reply = replies.chat(request, body, fault, hit.characters // 4)
                self.stats.use(reply["usage"], hit.possible // 4)
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError) as error:
            return replies.error(400, "invalid_request_error", f"cannot understand the request: {error!r}"), 0
        return (200, orjson.dumps(reply), {}), reply["usage"]["total_tokens"]


@dataclass
class Stats:
    """What GET /v1/stats tells. `requests` are all POSTs; each is answered, refused by a limit, faulted, or
    was no request of ours. `seconds` has for each second since the first [requests, answered, refused].

    Token counts are of what was answered, spoilt or not; `possible_tokens` are those that an unlimited
    prefix cache would have held, `hit_tokens` those that this one did.
    """

    requests: int = 0
    answered: int = 0
    in_flight: int = 0
    in_flight_peak: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    faulted: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    hit_tokens: int = 0
    possible_tokens: int = 0
    seconds: list[list[int]] = field(default_factory=list)

    def arrived(self, now: float) -> None:
        self.requests += 1
        self.in_flight += 1
        self.in_flight_peak = max(self.in_flight_peak, self.in_flight)
        self._at(now)[0] += 1

    def answer(self, now: float) -> None:
        self.answered += 1
        self._at(now)[1] += 1

    def refuse(self, limit: str, now: float) -> None:
        self.refused[limit] = self.refused.get(limit, 0) + 1
        self._at(now)[2] += 1

    def use(self, usage: dict[str, Any], possible: int) -> None:
        self.prompt_tokens += usage["prompt_tokens"]
        self.completion_tokens += usage["completion_tokens"]
        self.hit_tokens += usage["prompt_tokens_details"]["cached_tokens"]
        self.possible_tokens += possible

    def _at(self, now: float) -> list[int]:
        while len(self.seconds) <= int(now):
            self.seconds.append([0, 0, 0])
        return self.seconds[int(now)]


def _path(scope: Scope) -> str:
    return scope["path"].removesuffix("/").removeprefix("/v1")


async def _send(send: Any, status: int, body: bytes | None, headers: dict[str, str]) -> None:
    length = 1000 if body is None else len(body)
    head = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
    head += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    # Without a body: hang up in the middle of it, by returning before it is complete.
    await send({"type": "http.response.body", "body": body or b'{"id":', "more_body": body is None})


async def _lifespan(receive: Any, send: Any) -> None:
    for answer in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
        await receive()
        await send({"type": answer})


def serve(port: int = 0, host: str = "127.0.0.1", **knobs: Any) -> None:
    """Serve until interrupted; prints the base URL. Port 0 takes a free one. `knobs`: see `Knobs`.

    Raises:
        ValueError: the address cannot be listened on.
    """
    import uvicorn

    config = uvicorn.Config(
        App(Knobs(**knobs)),
        log_level="critical",
        access_log=False,
        lifespan="off",
        timeout_graceful_shutdown=1,
    )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        # It listens already: whoever reads the URL below may connect at once.
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise ValueError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"simulated judge at http://{shown}:{listener.getsockname()[1]}/v1\n")
    sys.stdout.flush()
    uvicorn.Server(config).run(sockets=[listener])


def _child(arguments: dict[str, Any]) -> None:
    """Serve as long as the parent lives, however it ends: its end closes our standard input."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    serve(**arguments)


@contextmanager
def running(port: int = 0, host: str = "127.0.0.1", **knobs: Any) -> Iterator[str]:
    """A server in its own process for the length of the block; the value is its base URL."""
    arguments = json.dumps({"port": port, "host": host, **knobs})
    code = f"import json; from lr_ray import simulated; simulated._child(json.loads({arguments!r}))"
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            match = re.search(r"http://\S+", line)
            if match is None:
                raise RuntimeError("the simulated judge did not start")
            yield match[0]
        finally:
            process.terminate()
