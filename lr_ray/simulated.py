"""A simulated judge: an OpenAI-compatible server that answers by plain rules (`simulated_rules`).

It sees only the request: no ground truth, no side channel, nothing of ours imported. Latency, a rate
limit and faults are to order; what it answers and which requests fail depends on the requests alone, not
on time or chance, so that runs can be repeated.
"""

import asyncio
import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson

from lr_ray import simulated_rules

FAULTS = ("throttled", "error", "truncated", "invalid", "refusal", "content_filter", "hangup")
BLOCK = 1024  # characters of a block of the prefix cache
CACHED_BLOCKS = 200_000
WIDTH = 256  # numbers of an embedding

Scope = dict[str, Any]
Reply = tuple[int, bytes | None, dict[str, str]]


@dataclass(frozen=True)
class Knobs:
    """How the server behaves. `latency` is in seconds, `faults` a share of the requests.

    `requests_per_minute` is refused above with a 429; without `api_key` any key is taken.
    """

    latency: float = 0.0
    requests_per_minute: float | None = None
    faults: float = 0.0
    api_key: str | None = None
    model: str = "simulated-judge"


class App:
    """The ASGI application. Written against ASGI alone: a framework costs more than the rules do."""

    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs
        self._times_seen: dict[bytes, int] = {}
        self._prefixes: OrderedDict[int, None] = OrderedDict()
        self._allowance, self._allowed_at = 1.0, time.monotonic()
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.requests += scope["method"] == "POST"
        status, reply, headers = await self._answer(scope, body)
        await _send(send, status, reply, headers)

    async def _answer(self, scope: Scope, body: bytes) -> Reply:
        """Status, body (none: hang up) and headers."""
        if self._knobs.api_key is not None and not self._authorised(scope):
            return _error(401, "invalid_api_key", "the key is not right")
        path = scope["path"].removesuffix("/").removeprefix("/v1")
        if scope["method"] == "GET" and path in ("/models", "/stats"):
            return 200, orjson.dumps(self._about(path)), {}
        if scope["method"] != "POST" or path not in ("/chat/completions", "/embeddings"):
            return _error(404, "not_found", f"there is no {path}")
        wait = self._over_the_limit()
        if wait:
            return _error(429, "rate_limit_exceeded", "too many requests", {"retry-after": f"{wait:.3f}"})
        fault = self._fault(body)
        if self._knobs.latency:
            await asyncio.sleep(self._knobs.latency)
        return _failure(fault) if fault in ("throttled", "error", "hangup") else self._made(path, body, fault)

    def _about(self, path: str) -> dict[str, Any]:
        if path == "/stats":
            return {"requests": self.requests}
        model = {"id": self._knobs.model, "object": "model", "created": 0, "owned_by": "simulated"}
        return {"object": "list", "data": [model]}

    def _made(self, path: str, body: bytes, fault: str | None) -> Reply:
        try:
            request = orjson.loads(body)
            reply = _embeddings(request) if path == "/embeddings" else self._chat(request, body, fault)
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError) as error:
            return _error(400, "invalid_request_error", f"cannot understand the request: {error!r}")
        return 200, orjson.dumps(reply), {}

    def _authorised(self, scope: Scope) -> bool:
        wanted = f"Bearer {self._knobs.api_key}".encode()
        return any(name == b"authorization" and value == wanted for name, value in scope["headers"])

    def _over_the_limit(self) -> float:
        """Seconds until a request is allowed again; 0 when this one is. A bucket of one second's worth."""
        if self._knobs.requests_per_minute is None:
            return 0.0
        rate, now = self._knobs.requests_per_minute / 60, time.monotonic()
        most = max(1.0, rate)
        self._allowance = min(most, self._allowance + (now - self._allowed_at) * rate)
        self._allowed_at = now
        if self._allowance < 1:
            return (1 - self._allowance) / rate
        self._allowance -= 1
        return 0.0

    def _fault(self, body: bytes) -> str | None:
        if not self._knobs.faults:
            return None
        digest = hashlib.blake2b(body, digest_size=8).digest()
        count = self._times_seen[digest] = self._times_seen.get(digest, 0) + 1
        draw = hashlib.blake2b(digest + count.to_bytes(4), digest_size=8).digest()
        if int.from_bytes(draw[:4]) / 2**32 >= self._knobs.faults:
            return None
        return FAULTS[int.from_bytes(draw[4:]) % len(FAULTS)]

    def _chat(self, request: dict[str, Any], body: bytes, fault: str | None) -> dict[str, Any]:
        messages = request["messages"]
        answer = simulated_rules.answer(_kind(request, messages), messages[-1]["content"])
        if request.get("temperature", 1) > 0 and "score" in answer:
            shift = hashlib.blake2b(body, digest_size=1).digest()[0] % 4
            answer["score"] = min(10, max(0, answer["score"] + (-1, 0, 0, 1)[shift]))
        text, finish, refusal = json.dumps(answer, ensure_ascii=False), "stop", None
        if fault == "truncated":
            text, finish = text[: len(text) // 2], "length"
        elif fault == "invalid":
            text = text.replace(":", "=", 1)
        elif fault == "refusal":
            text, refusal = "", "I would rather not judge this."
        elif fault == "content_filter":
            text, finish = "", "content_filter"
        prompt = "\0".join(message["content"] for message in messages)
        used, made = max(1, len(prompt) // 4), max(1, len(text) // 4)
        return {
            "id": "chatcmpl-simulated",
            "object": "chat.completion",
            "created": 0,
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish,
                    "message": {"role": "assistant", "content": text or None, "refusal": refusal},
                }
            ],
            "usage": {
                "prompt_tokens": used,
                "completion_tokens": made,
                "total_tokens": used + made,
                "prompt_tokens_details": {"cached_tokens": self._cached(prompt) // 4},
            },
        }

    def _cached(self, prompt: str) -> int:
        """Characters of the prompt whose blocks, each known by all before it, were seen lately."""
        chain, known, unbroken = 0, 0, True
        for end in range(BLOCK, len(prompt) + 1, BLOCK):
            chain = hash((chain, prompt[end - BLOCK : end]))
            unbroken = unbroken and chain in self._prefixes
            known += BLOCK if unbroken else 0
            self._prefixes[chain] = None
            self._prefixes.move_to_end(chain)
        while len(self._prefixes) > CACHED_BLOCKS:
            self._prefixes.popitem(last=False)
        return known


def _kind(request: dict[str, Any], messages: list[dict[str, str]]) -> str:
    """The schema's name; without response_format, what the schema in the prompt asks for and is given."""
    if "response_format" in request:
        return request["response_format"]["json_schema"]["name"]
    system, user = messages[0]["content"], messages[-1]["content"]
    for key, kind in (("statements", "statements"), ("verdict", "support"), ("facts", "extract")):
        if f'"required":["{key}"]' in system or f'"required":["analysis","{key}"]' in system:
            return kind
    if "<extract " in user:
        return "completeness"
    return "logicality" if "logic" in system[:200] or "逻辑" in system[:100] else "helpfulness"


def _embeddings(request: dict[str, Any]) -> dict[str, Any]:
    """Hashed bags of words, of unit length."""
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(_embed(text), request)}
        for i, text in enumerate(texts)
    ]
    tokens = sum(len(text) // 4 for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": request["model"], "data": data, "usage": usage}


def _embed(text: str) -> Any:
    import numpy as np

    vector = np.zeros(WIDTH, np.float32)
    for stem, weight in simulated_rules.keys(text).weight.items():
        vector[hashlib.blake2b(stem.encode(), digest_size=4).digest()[0] % WIDTH] += weight
    return vector / (float(np.linalg.norm(vector)) or 1.0)


def _encoded(vector: Any, request: dict[str, Any]) -> Any:
    if request.get("encoding_format") == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    return vector.tolist()


def _failure(fault: str) -> Reply:
    if fault == "throttled":
        return _error(429, "rate_limit_exceeded", "injected", {"retry-after": "0.05"})
    return _error(500, "server_error", "injected") if fault == "error" else (200, None, {})


def _error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    body = {"error": {"message": message, "type": code, "code": code, "param": None}}
    return status, orjson.dumps(body), headers or {}


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

    config = uvicorn.Config(App(Knobs(**knobs)), log_level="critical", access_log=False, lifespan="off")
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
