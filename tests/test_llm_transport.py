"""What goes over the wire, against real servers on loopback: the package's requests, and nothing a hostile
endpoint, a proxy or a redirect could make of them."""

import asyncio
import base64
import gzip
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest

from lr_ray.llm import transport
from lr_ray.llm.transport import TooLarge, Transport
from tests.endpoint import chat, error, in_turn, run, serving

KEY = "sk-very-secret"
PATH = "/chat/completions"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def to(*urls: str, key: str | None = KEY, timeout: float = 5.0, **more: Any) -> Transport:
    """A transport to `urls`."""
    return Transport(urls, key, timeout, **{"headers": {}, "query": {}, "connections": 10, **more})


async def once(sender: Transport, path: str = PATH) -> Any:
    """What one post gives: a reply or an exception."""
    try:
        return await sender.post(0, path, b'{"a": 1}', {"X-Lr-Unit": "u"})
    except Exception as error:
        return error
    finally:
        await sender.close()


class Raw:
    """A server that answers each request with the bytes that `answer` gives for its head."""

    def __init__(self, answer: Callable[[bytes], bytes | Awaitable[bytes]]) -> None:
        self.answer, self.heads, self.connections, self.at_once, self.most = answer, [], 0, 0, 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = next(
                    int(line[15:])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                )
                await reader.readexactly(length)
                self.heads.append(head)
                self.at_once += 1
                self.most = max(self.most, self.at_once)
                found = self.answer(head)
                writer.write(found if isinstance(found, bytes) else await found)
                self.at_once -= 1
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def raw(answer: Callable[[bytes], bytes | Awaitable[bytes]], **options: Any) -> AsyncIterator[Raw]:
    """The server, on a free port of loopback."""
    handler = Raw(answer)
    server = await asyncio.start_server(handler.serve, "127.0.0.1", 0, backlog=4096, **options)
    handler.port = server.sockets[0].getsockname()[1]
    try:
        yield handler
    finally:
        server.close()


def http(body: bytes = b"{}", status: str = "200 OK", *headers: str) -> bytes:
    """An HTTP response."""
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def test_a_request_is_the_packages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-1")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-1")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway: g")
    options: Any = {
        "headers": {"X-Mine": "m", "X-Lr-Unit": "u"},
        "params": {"version": "2 0", "l": ["a", "b"]},
    }

    def answer(head: bytes) -> bytes:
        return http()

    async def work() -> list[bytes]:
        async with raw(answer) as server:
            url = f"http://127.0.0.1:{server.port}/v1"
            sender = to(url, headers={"X-Mine": "m"}, query=options["params"])
            assert isinstance(await once(sender), transport.Reply)
            async with openai.AsyncOpenAI(base_url=url, api_key=KEY, timeout=5.0, max_retries=0) as api:
                await api.post(PATH, cast_to=bytes, content=b'{"a": 1}', options=options)
            return server.heads

    ours, theirs = (head.decode().rstrip().split("\r\n") for head in run(work))
    assert ours[0] == theirs[0] == "POST /v1/chat/completions?version=2+0&l%5B%5D=a&l%5B%5D=b HTTP/1.1"
    ours, theirs = ({line.lower() for line in head[1:]} for head in (ours, theirs))
    assert {"openai-organization: org-1", "openai-project: proj-1", "x-gateway: g", "x-mine: m"} <= ours
    assert f"authorization: bearer {KEY}" in ours
    assert {line for line in theirs - ours if not line.startswith(("accept-encoding", "connection"))} <= {
        # Which libraries the package found first is said differently by its event loop.
        "x-stainless-async: async:asyncio"
    }
    assert {line.partition(":")[0] for line in ours - theirs} <= {"accept-encoding", "x-stainless-async"}


def test_a_url_with_user_and_password_signs_in_with_them() -> None:
    async def work() -> bytes:
        async with raw(lambda _: http()) as server:
            await once(to(f"http://me:wo%20rd@127.0.0.1:{server.port}/v1"))
            return server.heads[0]

    head = run(work).decode()
    assert f"authorization: Basic {base64.b64encode(b'me:wo rd').decode()}".lower() in head.lower()
    assert KEY not in head


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (404, openai.NotFoundError),
        (409, openai.ConflictError),
        (422, openai.UnprocessableEntityError),
        (429, openai.RateLimitError),
        (502, openai.InternalServerError),
    ],
)
def test_a_refusal_is_the_packages_own_error(status: int, kind: type[openai.APIStatusError]) -> None:
    async def work() -> Any:
        async with serving(in_turn(error(status, "why", retry_after="3", x_request_id="r1"))) as endpoint:
            return await once(to(endpoint.url))

    found = run(work)
    assert type(found) is kind
    assert (found.code, found.type, found.request_id, found.status_code) == ("why", "why", "r1", status)
    assert "it is why" in found.message
    assert found.response.headers["retry-after"] == "3"


def test_a_compressed_refusal_is_read_too() -> None:
    body = gzip.compress(b'{"error": {"code": "zipped"}}')

    async def work() -> Any:
        async with raw(lambda _: http(body, "400 Bad", "content-encoding: gzip")) as server:
            return await once(to(f"http://127.0.0.1:{server.port}/v1"))

    assert run(work).code == "zipped"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_not_followed(status: str) -> None:
    async def work() -> tuple[Any, list[bytes]]:
        async with raw(lambda _: http()) as thief:
            where = f"location: http://127.0.0.1:{thief.port}/v1/chat/completions"
            async with raw(lambda _: http(b"", status, where)) as server:
                return await once(to(f"http://127.0.0.1:{server.port}/v1")), thief.heads

    found, stolen = run(work)
    assert isinstance(found, openai.APIStatusError)
    assert stolen == []


class TestAbsurdlyLarge:
    @pytest.fixture(autouse=True)
    def _limits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "LARGEST_REPLY", 1 << 20)
        monkeypatch.setattr(transport, "LARGEST_ERROR", 1 << 16)

    def answered(self, response: bytes) -> Any:
        async def work() -> Any:
            async with raw(lambda _: response) as server:
                return await once(to(f"http://127.0.0.1:{server.port}/v1"))

        return run(work)

    def test_a_reply(self) -> None:
        assert isinstance(self.answered(http(b"x" * (4 << 20))), TooLarge)

    def test_a_reply_within_the_bound_is_read_whole(self) -> None:
        body = b"0123456789abcdef" * (1 << 15)
        assert self.answered(http(body)).body == body

    def test_a_reply_that_is_small_on_the_wire(self) -> None:
        bomb = gzip.compress(b"x" * (64 << 20))
        assert len(bomb) < 1 << 17
        assert isinstance(self.answered(http(bomb, "200 OK", "content-encoding: gzip")), TooLarge)

    def test_a_reply_without_an_end(self) -> None:
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        assert isinstance(self.answered(head + chunk * 100), TooLarge)

    def test_a_refusal_keeps_its_status(self) -> None:
        found = self.answered(http(b"x" * (1 << 20), "429 Slow"))
        assert isinstance(found, openai.RateLimitError)

    def test_headers(self) -> None:
        head = "x: " + "y" * (1 << 20)
        assert isinstance(self.answered(http(b"{}", "200 OK", head)), openai.APIConnectionError)


@pytest.mark.parametrize(
    "response",
    [b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf", b"HTTP/1.1 abc\r\n\r\n"],
)
def test_a_broken_response_is_a_broken_connection(response: bytes) -> None:
    async def work() -> Any:
        async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10000)
            writer.write(response)
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        async with server:
            return await once(to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"))

    found = run(work)
    assert type(found) is openai.APIConnectionError
    assert found.__cause__ is not None


def test_the_timeout_is_for_the_whole_call_however_busy_it_looks() -> None:
    async def work() -> tuple[Any, float]:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10000)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
            for _ in range(100):
                writer.write(b" ")
                await asyncio.sleep(0.05)
            writer.close()

        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        async with server:
            began = loop.time()
            found = await once(to(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", timeout=0.5))
            return found, loop.time() - began

    found, seconds = run(work)
    assert isinstance(found, openai.APITimeoutError)
    assert 0.4 < seconds < 2


def test_a_connection_is_used_again_also_after_a_refusal() -> None:
    async def work() -> int:
        answers = [http(), http(b"{}", "500 Oops"), http()]
        async with raw(lambda _: answers.pop(0)) as server:
            sender = to(f"http://127.0.0.1:{server.port}/v1")
            for _ in range(3):
                await asyncio.gather(sender.post(0, PATH, b"{}", {}), return_exceptions=True)
            await sender.close()
            return server.connections

    assert run(work) == 1


def test_more_than_a_thousand_are_in_flight() -> None:
    async def work() -> int:
        everybody = asyncio.Event()

        async def answer(_: bytes) -> bytes:
            if server.at_once >= 1500:
                everybody.set()
            await everybody.wait()
            return http()

        async with raw(answer) as server:
            sender = to(f"http://127.0.0.1:{server.port}/v1", connections=1500, timeout=30)
            await asyncio.gather(*(sender.post(0, PATH, b"{}", {}) for _ in range(1500)))
            await sender.close()
            return server.most

    assert run(work) == 1500


def test_the_environments_proxy_is_used_and_signed_in_to(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> bytes:
        async with raw(lambda _: http()) as proxy:
            monkeypatch.setenv("HTTP_PROXY", f"http://me:word@127.0.0.1:{proxy.port}")
            assert isinstance(await once(to("http://judge.invalid/v1")), transport.Reply)
            return proxy.heads[0]

    head = run(work).decode().lower()
    assert head.startswith("post http://judge.invalid/v1/chat/completions http/1.1")
    assert f"proxy-authorization: basic {base64.b64encode(b'me:word').decode()}".lower() in head
    assert f"authorization: bearer {KEY}" in head


class TestTls:
    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        """A certificate for 127.0.0.1 that nobody signed but itself, with its key."""
        file = tmp_path / "both.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=x"]
        command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(file), "-out", f"{file}.crt"]
        subprocess.run(command, check=True, capture_output=True)
        file.write_bytes(file.read_bytes() + Path(f"{file}.crt").read_bytes())
        return file

    def asked(self, certificate: Path) -> Any:
        import ssl

        async def work() -> Any:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            async with raw(lambda _: http(b'{"safe": 1}'), ssl=context) as server:
                return await once(to(f"https://127.0.0.1:{server.port}/v1"))

        return run(work)

    def test_a_trusted_one(self, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        assert self.asked(certificate).body == b'{"safe": 1}'

    def test_an_unknown_one(self, certificate: Path) -> None:
        found = self.asked(certificate)
        assert isinstance(found, openai.APIConnectionError)
        assert "Certificate" in type(found.__cause__).__name__


def test_every_replica_is_asked_at_its_own_address() -> None:
    async def work() -> list[str]:
        async with serving(in_turn(chat("a"))) as a, serving(in_turn(chat("b"))) as b:
            sender = to(a.url, b.url)
            replies = [orjson.loads((await sender.post(i, PATH, b"{}", {})).body) for i in (0, 1, 1)]
            await sender.close()
            assert sender.base_url(1) == f"{b.url}/"
            assert len(sender) == 2
            return [reply["choices"][0]["message"]["content"] for reply in replies]

    assert run(work) == ["a", "b", "b"]
