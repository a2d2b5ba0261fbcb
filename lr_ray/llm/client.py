"""One chat endpoint: requests out, JSON replies in, retries where a retry can help.

Failures, by what they call for:
- `EndpointRefused` (a ValueError): no call can succeed (key, model or request refused); the run stops.
- `GaveUp`: transport failed again and again; the row fails, what it has paid for stays in the ledger.
- `Unanswerable`: the endpoint will not take this one request (too long, filtered); its unit is unscored.
"""

import asyncio
import email.utils
import json
import math
import random
import re
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson

from lr_ray.config import Config, Judge
from lr_ray.config import api_key as configured_key
from lr_ray.llm.governor import Governor, Order

Count = Callable[[str, int], None]

BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds; doubled a try, with full jitter
LONGEST_RETRY_AFTER = 600.0  # seconds; an endpoint that asks for more is asked again after this
BROKEN_TRIES = 8  # timeouts, broken connections, 5xx
THROTTLED_TRIES = 40  # 429s: the governor slows down, so patience pays
_OF_ONE_REQUEST = {"context_length_exceeded", "string_above_max_length", "content_filter"}
_NO_RETRY = {400, 401, 403, 404, 405, 410, 422}


class EndpointRefused(ValueError):
    """The endpoint refuses us for good. The message is one sentence and holds no key."""


class GaveUp(Exception):
    """Every retry of a request failed in transport. The message is one sentence."""


class Unanswerable(Exception):
    """The endpoint will never answer this one request. The message says why."""


class _Again(Exception):
    """One failed try that may be repeated, after `wait` seconds where the endpoint named them."""

    def __init__(self, reason: str, wait: float | None = None, throttled: bool = False) -> None:
        super().__init__(reason)
        self.wait, self.throttled = wait, throttled


class Client:
    """Calls to the endpoint at `base_url` (none: as `settings`), governed and retried; for one event loop."""

    def __init__(
        self, settings: Judge, key: str | None, governor: Governor, base_url: str | None = None
    ) -> None:
        import openai

        self.governor = governor
        self._timeout, self._key_name = settings.timeout, settings.api_key_env
        self._extra_headers = settings.parameters.get("extra_headers") or {}
        self._extra_query = settings.parameters.get("extra_query") or {}
        self._refused: EndpointRefused | None = None
        self._http = openai.DefaultAioHttpClient(timeout=settings.timeout)
        self._api = openai.AsyncOpenAI(
            # Endpoints inside a cluster often need no key, but the package wants one.
            api_key=key or "none",
            base_url=base_url or settings.base_url,
            max_retries=0,
            timeout=settings.timeout,
            http_client=self._http,
        )

    async def close(self) -> None:
        await self._api.close()

    async def post(
        self, path: str, body: bytes, unit: str, count: Count, *, tokens: int = 0, order: Order = ()
    ) -> dict[str, Any]:
        """The JSON reply to `body`, which is serialised already and sent as it is in every try.

        `count` hears of calls_started, calls_finished and retries; `tokens` and `order` are for the
        governor (`Governor.permit`).

        Raises:
            EndpointRefused, GaveUp, Unanswerable: see the module.
        """
        tries = {True: 0, False: 0}
        while True:
            try:
                return await self._governed(path, body, unit, count, tokens, order)
            except _Again as failure:
                tries[failure.throttled] += 1
                if tries[failure.throttled] >= (THROTTLED_TRIES if failure.throttled else BROKEN_TRIES):
                    raise GaveUp(f"{unit}: gave up after {sum(tries.values())} tries: {failure}") from failure
                wait = failure.wait
            count("retries", 1)
            # Full jitter, so that calls that failed together do not come back together.
            backoff = random.uniform(0, min(LONGEST_BACKOFF, BACKOFF * 2.0 ** (sum(tries.values()) - 1)))
            await asyncio.sleep(backoff if wait is None else wait + backoff)

    async def _governed(
        self, path: str, body: bytes, unit: str, count: Count, tokens: int, order: Order
    ) -> dict[str, Any]:
        async with self.governor.permit(tokens, order) as permit:
            if self._refused is not None:
                raise self._refused
            count("calls_started", 1)
            try:
                reply = await self._once(path, body, unit)
            except _Again as failure:
                if failure.throttled:
                    permit.throttled(failure.wait)
                else:
                    permit.broke(str(failure))
                raise
            except EndpointRefused as error:
                self._refused = error
                raise
            finally:
                count("calls_finished", 1)
            permit.succeeded()
            return reply

    async def _once(self, path: str, body: bytes, unit: str) -> dict[str, Any]:
        import openai

        headers = {"Content-Type": "application/json", **self._extra_headers, "X-Lr-Unit": unit}
        options: Any = {"headers": headers, "params": self._extra_query}
        try:
            # The package's timeout is for each read; this one is for the whole call.
            async with asyncio.timeout(self._timeout):
                received = await self._api.post(path, cast_to=bytes, content=body, options=options)
            reply = _loads(received)
        except openai.APIStatusError as error:
            raise self._status(error) from error
        except (openai.APITimeoutError, TimeoutError) as error:
            raise _Again(f"no answer within {self._timeout:g} s") from error
        except openai.APIConnectionError as error:
            raise _Again(f"the connection broke ({type(error.__cause__ or error).__name__})") from error
        except ValueError as error:
            raise _Again("the endpoint's reply is not JSON") from error
        if not isinstance(reply, dict) or reply.get("error"):
            raise _Again("the endpoint replied with an error in place of an answer")
        return reply

    def _status(self, error: Any) -> Exception:
        status, code = error.status_code, str(error.code or error.type or "")
        # Several servers name no code for a prompt over the model's window.
        too_long = "context length" in str(error.message).lower()
        if status == 413 or (status == 400 and (code in _OF_ONE_REQUEST or too_long)):
            return Unanswerable(f"the endpoint refused the request (HTTP {status}, {code or 'too large'})")
        if status in _NO_RETRY or code == "insufficient_quota":
            return EndpointRefused(self._why(status, code, error))
        retry_after = _seconds(error.response.headers.get("retry-after"))
        return _Again(f"HTTP {status}", retry_after, throttled=status == 429)

    def _why(self, status: int, code: str, error: Any) -> str:
        where = f"the judge endpoint {shown(str(self._api.base_url))}"
        if status in (401, 403):
            # The endpoint's own words may repeat the key.
            return f"{where} refuses the key in {self._key_name} (HTTP {status})"
        words = " ".join(str(error.message).split())[:300]
        return f"{where} refuses our requests (HTTP {status}{', ' + code if code else ''}): {words}"


def _seconds(retry_after: str | None) -> float | None:
    """The wait a Retry-After header asks for, in seconds or as a date; None when it says nothing."""
    if retry_after is None:
        return None
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except ValueError:
            return None
    return min(max(wait, 0.0), LONGEST_RETRY_AFTER) if math.isfinite(wait) else None


def _loads(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        # Some servers write lone surrogates, which only the lenient parser takes; `scrub` removes them.
        return json.loads(body)


def shown(url: str) -> str:
    """A URL without the user and password it may hold, for messages."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def check(config: Config) -> None:
    """Ask the judge endpoint for its models, which is free, before anything is spent.

    Raises:
        ValueError: no model is configured, or the endpoint is unreachable or refuses the key.
    """
    import openai

    if not config.judge.model:
        raise ValueError("judge.model: the name of the judge model is missing")
    key, name = configured_key(config), config.judge.api_key_env
    if key and not re.fullmatch("[!-~]+", key):
        # Sent, it would break the request with an error that quotes it.
        raise ValueError(f"the key in {name} holds a space, a line break or another character no key has")
    api = openai.OpenAI(api_key=key or "none", base_url=config.judge.base_url, max_retries=2, timeout=20.0)
    where = f"judge.base_url: the endpoint {shown(str(api.base_url))}"
    try:
        with api:
            api.models.list()
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        what = "refuses the key in" if key else "wants a key, and there is none in"
        raise ValueError(f"{where} {what} {name} (HTTP {error.status_code})") from error
    except openai.APIConnectionError as error:
        raise ValueError(f"{where} cannot be reached: {_root(error)}") from error
    except openai.InternalServerError as error:
        raise ValueError(f"{where} is not working (HTTP {error.status_code})") from error
    except openai.APIStatusError:
        return  # it is there; many gateways have no /models


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
