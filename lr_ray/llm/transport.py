"""The openai package's requests, sent by aiohttp: its addresses, headers and errors without its cost a call.

An `AsyncOpenAI` a base URL holds the configuration. What it would send (URL with query, key, organization,
OPENAI_CUSTOM_HEADERS, …) is asked of it once a path; what an endpoint refuses is put in its words again.
In between, bytes go out and come in through one aiohttp session.
"""

import resource
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lr_ray.llm.addresses import address, proxy_for, without_user

LARGEST_REPLY = 64 << 20  # bytes, decompressed; an honest reply is far below
LARGEST_ERROR = 1 << 20  # bytes of an error's body that are read
CONNECT = 10.0  # seconds for a connection; a machine that is gone says nothing
IDLE = 4.0  # seconds a connection is kept; uvicorn, and so vLLM, closes after 5
SPARE_FILES = 1000  # descriptors for all that is no connection
_SET_BY_AIOHTTP = {"host", "content-length", "connection", "accept-encoding", "transfer-encoding"}
_DECODED = {"content-encoding", "content-length", "transfer-encoding"}


class TooLarge(Exception):
    """A reply of more than LARGEST_REPLY bytes; the rest of it was not read."""


class Reply(NamedTuple):
    """The body of a 2xx response, decompressed, and its headers (case does not matter)."""

    body: bytes
    headers: Mapping[str, str]


class _Route(NamedTuple):
    """Where and how one path of one base URL is asked. `request` is the package's own request."""

    url: Any
    headers: Mapping[str, str]
    proxy: Any
    request: Any


class Transport:
    """POSTs to the replicas at `base_urls` (None: the package's own default); for one event loop.

    `headers` and `query` go with every request. `timeout` (seconds) is for a whole try, from the
    connection to the last byte. At most `connections` are expected at once.

    Raises:
        ValueError: a base URL cannot be used.
    """

    def __init__(
        self,
        base_urls: Sequence[str | None],
        key: str | None,
        timeout: float,
        headers: Mapping[str, str],
        query: Mapping[str, object],
        connections: int,
    ) -> None:
        import openai

        assert base_urls
        # It sends nothing, so that a proxy which it could not use is no matter.
        self._http = openai.DefaultAsyncHttpxClient(trust_env=False)
        self._apis = [
            # Endpoints inside a cluster often need no key, but the package wants one.
            openai.AsyncOpenAI(
                api_key=key or "none",
                base_url=address(url),
                max_retries=0,
                timeout=timeout,
                http_client=self._http,
            )
            for url in base_urls
        ]
        self._timeout, self._headers, self._query = timeout, headers, query
        self._routes: dict[tuple[int, str], _Route] = {}
        self._session: Any = None
        _allow_files(connections + SPARE_FILES)

    def __len__(self) -> int:
        return len(self._apis)

    def base_url(self, replica: int) -> str:
        return str(self._apis[replica].base_url)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self._http.aclose()

    async def post(self, replica: int, path: str, body: bytes, headers: Mapping[str, str]) -> Reply:
        """The reply of a replica to `body`, sent with `headers` over the package's.

        A redirect is not followed (the key would go along) but raised as an APIStatusError of its 3xx.

        Raises:
            openai.APIStatusError: any status but 2xx, as the package would raise it.
            openai.APITimeoutError, openai.APIConnectionError: as the package; the cause is aiohttp's.
            TooLarge: the reply is absurdly large.
            ValueError: a proxy of the environment cannot be used.
        """
        import aiohttp

        route = self._routes.get((replica, path)) or self._route(replica, path)
        session = self._session or self._open()
        try:
            response = await session.post(
                route.url,
                data=body,
                headers={**route.headers, **headers},
                proxy=route.proxy,
                allow_redirects=False,
            )
            try:
                if 200 <= response.status < 300:
                    return Reply(await _read(response, LARGEST_REPLY), response.headers)
                raise await self._status_error(replica, path, response)
            except BaseException:
                # Where a reply was read to its end, its connection is back in the pool and stays there.
                response.close()
                raise
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise _connection_error(route, error) from error

    async def _status_error(self, replica: int, path: str, response: Any) -> Exception:
        try:
            body = await _read(response, LARGEST_ERROR)
        except TooLarge:
            body = b""
        return self.refusal(replica, path, response.status, response.headers, body)

    def refusal(
        self, replica: int, path: str, status: int, headers: Mapping[str, str], body: bytes
    ) -> Exception:
        """The APIStatusError that the package makes of a response of such a status, headers and body."""
        import httpx2

        kept = [(k, v) for k, v in headers.items() if k.lower() not in _DECODED]
        request = self._routes[replica, path].request
        response = httpx2.Response(status, headers=kept, content=body, request=request)
        return self._apis[replica]._make_status_error_from_response(response)

    def _route(self, replica: int, path: str) -> _Route:
        from openai._models import FinalRequestOptions
        from yarl import URL

        options: Any = {"method": "post", "url": path, "params": self._query, "content": b""}
        options["headers"] = {"Content-Type": "application/json", **self._headers}
        request = self._apis[replica]._build_request(FinalRequestOptions(**options))
        headers = {k: v for k, v in request.headers.items() if k not in _SET_BY_AIOHTTP}
        url, user = without_user(str(request.url))
        if user:
            # As the package does: who stands in the URL goes before the key.
            headers["authorization"] = user
        route = _Route(URL(url, encoded=True), headers, proxy_for(url), request)
        self._routes[replica, path] = route
        return route

    def _open(self) -> Any:
        import aiohttp
        import httpx2

        connector = aiohttp.TCPConnector(
            limit=0,  # the governor counts
            keepalive_timeout=IDLE,
            ssl=httpx2.create_ssl_context(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            # A cookie would tie every connection to one server behind a load balancer.
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=min(CONNECT, self._timeout)),
        )
        return self._session


async def _read(response: Any, most: int) -> bytes:
    """The body of a response.

    Raises:
        TooLarge: it has more than `most` bytes.
    """
    content = response.content
    body = await content.readany()
    if content.at_eof():
        return body
    parts, size = [body], len(body)
    while not content.at_eof():
        if size > most:
            raise TooLarge
        parts.append(await content.readany())
        size += len(parts[-1])
    return b"".join(parts)


def _connection_error(route: _Route, error: Exception) -> Exception:
    import openai

    if isinstance(error, TimeoutError):
        return openai.APITimeoutError(request=route.request)
    return openai.APIConnectionError(request=route.request)


def _allow_files(wanted: int) -> None:
    """Raise this process's limit of open files to `wanted`, or as far as it may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
