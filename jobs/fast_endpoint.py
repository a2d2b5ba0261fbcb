"""The least chat endpoint there can be, for benchmarks of clients: it must not be what is measured.

Every POST is answered, after a latency, with the same chat completion of about 600 bytes; nothing of the
request but its length is read. One process, asyncio (uvloop where it is installed), keep-alive.
"""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import orjson

ANSWER = {
    "analysis": "The answer names the year, the place and both treaties; all are in the document.",
    "score": 8,
}
REPLY = {
    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
    "object": "chat.completion",
    "created": 1760000000,
    "model": "bench",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": orjson.dumps(ANSWER).decode(),
                "refusal": None,
                "tool_calls": None,
            },
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 750,
        "completion_tokens": 31,
        "total_tokens": 781,
        "prompt_tokens_details": {"cached_tokens": 512},
    },
    "system_fingerprint": None,
}


class _Connection(asyncio.Protocol):
    def __init__(self, latency: float, response: bytes) -> None:
        self._latency, self._response = latency, response
        self._transport: Any = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._received[:head].lower().index(b"\ncontent-length:") + len(b"\ncontent-length:")
        length = int(self._received[at : at + 20].split(b"\r")[0])
        # A client sends its next request after our answer only, so nothing follows.
        if len(self._received) >= head + 4 + length:
            self._received.clear()
            asyncio.get_running_loop().call_later(self._latency, self._answer)

    def _answer(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._response)


async def _serve(latency: float, ready: Connection) -> None:
    body = orjson.dumps(REPLY)
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(latency, head.encode() + body), "127.0.0.1", 0, backlog=4096
    )
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _run(latency: float, ready: Connection) -> None:
    try:
        from uvloop import run  # pyrefly: ignore
    except ImportError:
        from asyncio import run
    run(_serve(latency, ready))


@contextmanager
def running(latency: float) -> Iterator[str]:
    """The endpoint in a process of its own; yields its base URL. `latency` in seconds."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(latency, theirs), daemon=True)
    process.start()
    try:
        assert ours.poll(30), "the endpoint did not start"
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.terminate()
        process.join()
