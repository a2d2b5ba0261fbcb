"""A real HTTP endpoint on loopback whose answers a test writes, and helpers to ask it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from lr_ray.config import Judge

# A scripted answer: status, body (None: hang up in mid-body; a float: seconds of silence), headers.
Answer = tuple[int, Any, dict[str, str]]
Script = Callable[[dict[str, Any]], Answer]


def chat(content: str | None, finish_reason: str = "stop", refusal: str | None = None) -> Answer:
    """A chat completion."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
    return 200, {"choices": [{"finish_reason": finish_reason, "message": message}], "usage": usage}, {}


def error(status: int, code: str = "", **headers: str) -> Answer:
    """An OpenAI error; underscores in header names stand for hyphens."""
    body = {"error": {"message": f"it is {code}", "code": code, "type": code}}
    return status, body, {name.replace("_", "-"): value for name, value in headers.items()}


class Endpoint:
    """Takes requests down and answers them by `script`, which sees each request's JSON."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive()).get("more_body") or not body:
            body += message.get("body", b"") or b" "
            if not message.get("more_body"):
                break
        request = json.loads(body.strip() or b"{}") | {"path": scope["path"]}
        self.requests.append(request)
        self.headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
        status, reply, headers = self.script(request)
        if isinstance(reply, float):
            await asyncio.sleep(reply)
        data = reply if isinstance(reply, bytes) else b"" if reply is None else json.dumps(reply).encode()
        length = 1000 if reply is None else len(data)
        head = [(b"content-type", b"application/json"), (b"content-length", str(length).encode())]
        head += [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": data, "more_body": reply is None})


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Endpoint]:
    """The endpoint, served from the running event loop."""
    endpoint = Endpoint(script)
    config = uvicorn.Config(
        endpoint, port=0, log_level="critical", lifespan="off", timeout_graceful_shutdown=1
    )
    listener = config.bind_socket()
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    endpoint.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    try:
        yield endpoint
    finally:
        server.should_exit = True
        await task


def in_turn(*answers: Answer) -> Script:
    """The answers one after another; the last one again and again."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def settings(url: str | list[str], **changes: Any) -> Judge:
    """Judge settings for an endpoint of a test."""
    return Judge.model_validate({"model": "m", "base_url": url, "timeout": 5.0, **changes})


def run(work: Callable[[], Awaitable[Any]]) -> Any:
    """Run an async test."""
    return asyncio.run(asyncio.wait_for(work(), 60))  # type: ignore[arg-type]
