"""One chat endpoint, or replicas of one: requests out, JSON replies in, retries where a retry can help.

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
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson

from lr_ray import metrics
from lr_ray.config import Config, Judge
from lr_ray.config import api_key as configured_key
from lr_ray.journal import SILENT, Journal
from lr_ray.llm.governor import NO_HEADERS, Governor, Order, Permit
from lr_ray.llm.replies import MOST_TOKENS
from lr_ray.llm.transport import CONNECT, LARGEST_REPLY, TooLarge, Transport

Count = Callable[[str | metrics.Key, int], None]
Keep = Callable[[dict[str, Any]], Awaitable[None]]

BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds; doubled a try, with full jitter
LONGEST_RETRY_AFTER = 600.0  # seconds; an endpoint that asks for more is asked again after this
BROKEN_TRIES = 8  # timeouts, broken connections, 5xx
THROTTLED_TRIES = 40  # 429s: the governor slows down, so patience pays
_OF_ONE_REQUEST = {"context_length_exceeded", "string_above_max_length", "content_filter"}
_MALFORMED = {400, 422}  # says nothing of other requests once the endpoint has taken some like it
_NO_RETRY = {401, 402, 403, 404, 405, 410} | _MALFORMED
PROMPTS_REFUSED = 3  # one after another: it is not them


class EndpointRefused(ValueError):
    """The endpoint refuses us for good. The message is one sentence and holds no key."""


class GaveUp(Exception):
    """Every retry of a request failed in transport. The message is one sentence."""


class Unanswerable(Exception):
    """The endpoint will never answer this one request. The message says why."""


class _Again(Exception):
    """One failed try that may be repeated, after `wait` seconds where the endpoint named them."""

    def __init__(
        self,
        reason: str,
        wait: float | None = None,
        throttled: bool = False,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(reason)
        self.wait, self.throttled, self.headers = wait, throttled, headers


class Client:
    """Calls to the endpoint at `base_url` (none: as `settings`), governed and retried; for one event loop.

    Of several base URLs, the replicas of one model, the governor's permit names the one a try goes to.
    """

    def __init__(
        self,
        settings: Judge,
        key: str | None,
        governor: Governor,
        base_url: str | list[str] | None = None,
        journal: Journal = SILENT,
    ) -> None:
        self.governor, self.journal = governor, journal
        self._timeout, self._key_name = settings.timeout, settings.api_key_env
        self._refused: EndpointRefused | None = None
        self._taken: set[str] = set()  # kinds of calls that the endpoint has answered
        self._prompts_refused: set[str] = set()  # since an answer
        self._transport = Transport(
            base_urls(base_url or settings.base_url),
            key,
            settings.timeout,
            headers=settings.parameters.get("extra_headers") or {},
            query=settings.parameters.get("extra_query") or {},
            connections=settings.concurrency,
        )

    async def close(self) -> None:
        await self._transport.close()

    async def post(
        self,
        path: str,
        body: bytes,
        unit: str,
        count: Count,
        *,
        tokens: int = 0,
        order: Order = (),
        keep: Keep | None = None,
    ) -> dict[str, Any]:
        """The JSON reply to `body`, which is serialised already and sent as it is in every try.

        `count` hears of calls_started, calls_finished and retries, and of tries that failed (`metrics.call`);
        `tokens` and `order` are for the governor (`Governor.permit`). The call keeps its place until `keep`
        is done with the reply.

        Raises:
            EndpointRefused, GaveUp, Unanswerable: see the module; and what `keep` raises.
        """
        tries = {True: 0, False: 0}
        while True:
            try:
                leave = self.governor.permit(tokens, order)
                return await self._governed(path, body, unit, count, leave, keep)
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
        self, path: str, body: bytes, unit: str, count: Count, leave: Permit, keep: Keep | None
    ) -> dict[str, Any]:
        async with leave as permit:
            if self._refused is not None:
                raise self._refused
            count("calls_started", 1)
            try:
                reply = await self._once(path, body, unit, permit)
            except _Again as failure:
                self._failed(unit, "throttled" if failure.throttled else "broken", str(failure), count)
                if failure.throttled:
                    permit.throttled(failure.wait, failure.headers)
                else:
                    permit.broke(str(failure))
                raise
            except Unanswerable as error:
                self._failed(unit, "unanswerable", str(error), count)
                permit.succeeded()  # the endpoint is well: only this request is not to its liking
                raise
            except EndpointRefused as error:
                # Without the endpoint's own words, which may repeat what was sent.
                self._failed(unit, "denied", str(error).partition(": ")[0], count)
                self._refused = error
                raise
            finally:
                count("calls_finished", 1)
            if keep is not None:
                await keep(reply)
            return reply

    def _failed(self, unit: str, outcome: str, why: str, count: Count) -> None:
        count(metrics.call(metrics.kind(unit), outcome), 1)
        # Refusals for the rate are how a limit is learned: nothing to be warned of.
        say = self.journal.debug if outcome == "throttled" else self.journal.warning
        say("try", unit=unit, outcome=outcome, reason=why)

    async def _once(self, path: str, body: bytes, unit: str, permit: Permit) -> dict[str, Any]:
        import openai

        # A client of fewer replicas than its governor knows, as one for embeddings, takes them in turn.
        replica = permit.replica % len(self._transport)
        try:
            received, headers = await self._transport.post(replica, path, body, {"X-Lr-Unit": unit})
            reply = _loads(received)
        except openai.APIStatusError as error:
            raise self._status(error, replica, unit) from error
        except openai.APIConnectionError as error:  # a time-out too
            raise _Again(self._broken(error)) from error
        except TooLarge as error:
            raise Unanswerable(f"the endpoint's reply is larger than {LARGEST_REPLY >> 20} MiB") from error
        except (ValueError, RecursionError) as error:
            raise _Again("the endpoint's reply is not JSON") from error
        if not isinstance(reply, dict) or reply.get("error"):
            raise _Again("the endpoint replied with an error in place of an answer")
        permit.succeeded(_used(reply), headers)
        self._taken.add(metrics.kind(unit))
        self._prompts_refused.clear()
        return reply

    def _broken(self, error: Exception) -> str:
        import aiohttp
        import openai

        if isinstance(error.__cause__, aiohttp.ConnectionTimeoutError):
            return f"no connection within {min(CONNECT, self._timeout):g} s"
        if isinstance(error, openai.APITimeoutError):
            return f"no answer within {self._timeout:g} s"
        return f"the connection broke ({type(error.__cause__ or error).__name__})"

    def _status(self, error: Any, replica: int, unit: str) -> Exception:
        status, code = error.status_code, str(error.code or error.type or "")[:80]
        # Several servers name no code for a prompt over the model's window.
        too_long = "context length" in str(error.message).lower()
        if status == 413 or (status == 400 and (code in _OF_ONE_REQUEST or too_long)):
            return Unanswerable(f"the endpoint refused the request (HTTP {status}, {code or 'too large'})")
        if status in _MALFORMED and self._only_this(unit):
            return Unanswerable(f"the endpoint refused the request (HTTP {status}, {code or 'no code'})")
        if status in _NO_RETRY or 300 <= status < 400 or code == "insufficient_quota":
            return EndpointRefused(self._why(status, code, error, replica))
        headers = error.response.headers
        return _Again(f"HTTP {status}", _retry_after(headers), status == 429, headers)

    def _only_this(self, unit: str) -> bool:
        """Whether a refusal is of this one request, as for what a provider's filter finds in its text."""
        self._prompts_refused.add(unit.partition("/")[0])
        return metrics.kind(unit) in self._taken and len(self._prompts_refused) < PROMPTS_REFUSED

    def _why(self, status: int, code: str, error: Any, replica: int) -> str:
        where = f"the judge endpoint {shown(self._transport.base_url(replica))}"
        if status in (401, 403):
            # The endpoint's own words may repeat the key.
            return f"{where} refuses the key in {self._key_name} (HTTP {status})"
        if 300 <= status < 400:
            return f"{where} {_redirects(error)}"
        words = " ".join(str(error.message).split())[:300]
        return f"{where} refuses our requests (HTTP {status}{', ' + code if code else ''}): {words}"


def base_urls(base_url: str | list[str] | None) -> list[str | None]:
    """The base URL of each replica, in the order of `Permit.replica`; None is the package's default."""
    return list(base_url) if isinstance(base_url, list) else [base_url]


def _redirects(error: Any) -> str:
    to = shown(error.response.headers.get("location", "somewhere"))[:200]
    return f"redirects to {to!r} (HTTP {error.status_code}), which is not followed; put that in base_url"


def _used(reply: dict[str, Any]) -> int:
    """The tokens a reply says it used, prompt and completion together; 0 where it does not say."""
    usage = reply.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    if total is None and isinstance(usage, dict):
        parts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        total = sum(part for part in parts if type(part) is int)
    return total if type(total) is int and 0 <= total <= MOST_TOKENS else 0


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that a response asks for, in seconds; None when it asks for none."""
    milliseconds = _seconds(headers.get("retry-after-ms"), 1e-3)
    return _seconds(headers.get("retry-after")) if milliseconds is None else milliseconds


def _seconds(text: str | None, unit: float = 1.0) -> float | None:
    """A header's number (of `unit` seconds) or date as seconds from now; None for anything else."""
    if text is None:
        return None
    try:
        wait = float(text) * unit
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
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
    """Ask each replica of the judge endpoint for its models, which is free, before anything is spent.

    Raises:
        ValueError: no model is configured, or a replica is unreachable or refuses the key.
    """
    if not config.judge.model:
        raise ValueError("judge.model: the name of the judge model is missing")
    key, name = configured_key(config), config.judge.api_key_env
    if key and not re.fullmatch("[!-~]+", key):
        # Sent, it would break the request with an error that quotes it.
        raise ValueError(f"the key in {name} holds a space, a line break or another character no key has")
    urls = base_urls(config.judge.base_url)
    with ThreadPoolExecutor(len(urls)) as asked:
        for _ in asked.map(lambda url: _check_one(url, key, name), urls):
            pass


def _check_one(url: str | None, key: str | None, name: str) -> None:
    import openai

    api = openai.OpenAI(
        api_key=key or "none",
        base_url=url,
        max_retries=2,
        timeout=20.0,
        http_client=openai.DefaultHttpxClient(follow_redirects=False),
    )
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
    except openai.APIStatusError as error:
        if error.status_code < 400:
            raise ValueError(f"{where} {_redirects(error)}") from error
        # It is there; many gateways have no /models.


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
