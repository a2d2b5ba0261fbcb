"""One chat endpoint, or replicas of one: requests out, JSON replies in, retries where a retry can help.

What a failure calls for says `failures`. Where one refusal does not tell whether it is of one request's text
or of all that is asked, a harmless request of the same form does.
"""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import orjson

from lr_ray import metrics
from lr_ray.config import Config, Judge
from lr_ray.config import api_key as configured_key
from lr_ray.journal import SILENT, Journal
from lr_ray.llm.addresses import address, base_urls, proxy_for, shown
from lr_ray.llm.failures import (
    Again,
    Doubtful,
    EndpointRefused,
    GaveUp,
    Unanswerable,
    of_connection,
    of_status,
    redirects,
    stated,
)
from lr_ray.llm.governor import Governor, Order, Permit
from lr_ray.llm.replies import estimated, loaded, parsed, slim, used
from lr_ray.llm.transport import LARGEST_REPLY, TooLarge, Transport
from lr_ray.meter import cost

Count = Callable[[str | metrics.Key, int], None]
Keep = Callable[[dict[str, Any]], Awaitable[None]]

BACKOFF, LONGEST_BACKOFF = 0.5, 60.0  # seconds; doubled a try, with full jitter
BROKEN_TRIES = 8  # timeouts, broken connections, 5xx
THROTTLED_TRIES = 40  # 429s: the governor slows down, so patience pays
PROMPTS_REFUSED = 3  # one after another: it may not be them
HARMLESS = "Reply with JSON."  # a text that no filter minds; some endpoints want to hear of JSON


class Client:
    """Calls to the endpoint at `base_url` (none: as `settings`), governed and retried; for one event loop.

    Of several base URLs, the replicas of one model, the governor's permit names the one a try goes to.

    Raises:
        ValueError: a base URL or the key cannot be used.
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
        self._prices = settings.prices
        self._refused: EndpointRefused | None = None
        self._answered: set[str] = set()  # kinds of calls, of whose form the endpoint has answered one
        self._prompts_refused: set[str] = set()  # since an answer
        self._in_doubt = asyncio.Lock()
        self._transport = Transport(
            base_urls(base_url or settings.base_url),
            _sound(key, settings.api_key_env),
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
            EndpointRefused, GaveUp, Unanswerable: see `failures`; and what `keep` raises.
            Stopped: the run stops early.
        """
        tries = {True: 0, False: 0}
        while True:
            try:
                leave = self.governor.permit(tokens, order)
                return await self._governed(path, body, unit, count, leave, keep)
            except Again as failure:
                tries[failure.throttled] += 1
                if tries[failure.throttled] >= (THROTTLED_TRIES if failure.throttled else BROKEN_TRIES):
                    raise GaveUp(f"{unit}: gave up after {sum(tries.values())} tries: {failure}") from failure
                wait = failure.wait
            count("retries", 1)
            # Full jitter, so that calls that failed together do not come back together.
            backoff = random.uniform(0, min(LONGEST_BACKOFF, BACKOFF * 2.0 ** (sum(tries.values()) - 1)))
            await self._pause(backoff if wait is None else wait + backoff)

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the run stops, which the next permit says."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.governor.account.ended.wait()

    async def _governed(
        self, path: str, body: bytes, unit: str, count: Count, leave: Permit, keep: Keep | None
    ) -> dict[str, Any]:
        async with leave as permit:
            if self._refused is not None:
                raise self._refused
            count("calls_started", 1)
            try:
                reply = await self._once(path, body, unit, permit)
            except Again as failure:
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
        try:
            reply, headers = await self._sent(path, body, unit, permit.replica)
        except Doubtful as refusal:
            await self._settle(refusal, path, body, unit, permit.replica)
            raise refusal.alone from refusal
        permit.succeeded(used(reply), headers)
        self._answered.add(metrics.kind(unit))
        self._prompts_refused.clear()
        return reply

    async def _sent(
        self, path: str, body: bytes, unit: str, replica: int
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        """The reply to one request, and its headers.

        Raises:
            Again, Doubtful, EndpointRefused, Unanswerable: there is none.
        """
        import openai

        try:
            received, headers = await self._transport.post(replica, path, body, {"X-Lr-Unit": unit})
        except openai.APIStatusError as error:
            raise self._failure(error, replica) from error
        except openai.APIConnectionError as error:  # a time-out too
            raise of_connection(error, self._timeout) from error
        except TooLarge as error:
            raise Unanswerable(f"the endpoint's reply is larger than {LARGEST_REPLY >> 20} MiB") from error
        try:
            reply = parsed(received)
        except ValueError as error:
            raise Again(str(error)) from error
        if reply.get("error"):
            status = stated(reply["error"])
            if status is None:
                raise Again("the endpoint replied with an error in place of an answer")
            raise self._failure(self._transport.refusal(replica, path, status, headers, received), replica)
        return reply, headers

    def _failure(self, error: Any, replica: int) -> Exception:
        return of_status(error, self._transport.base_url(replica), self._key_name)

    async def _settle(self, refusal: Doubtful, path: str, body: bytes, unit: str, replica: int) -> None:
        """Return where `refusal` is of this one request, as for what a provider's filter finds in its text.

        It is where the endpoint has answered others of its form, but not when prompt after prompt meets it.
        Then, and before any answer, a harmless request of that form tells. What it costs counts against the
        budget, but is of no call, and so in no ledger.

        Raises:
            EndpointRefused: that is refused too.
            Again: it was not answered.
        """
        kind = metrics.kind(unit)
        self._prompts_refused.add(unit.partition("/")[0])
        async with self._in_doubt:  # of calls refused together one is enough to ask for
            if self._refused is not None:
                raise self._refused
            if kind in self._answered and len(self._prompts_refused) < PROMPTS_REFUSED:
                return
            asked = harmless(body)
            try:
                reply, _ = await self._sent(path, asked, unit, replica)
            except (Doubtful, Unanswerable) as error:
                self._refused = error.all if isinstance(error, Doubtful) else refusal.all
                raise self._refused from error
            paid = estimated(slim(reply), len(asked))
            self.governor.account.paid(cost(paid, self._prices) or 0.0, estimated="estimated" in paid)
            self._answered.add(kind)
            self._prompts_refused.clear()


def harmless(body: bytes) -> bytes:
    """The chat or embedding request `body`, with all its parameters and none of its text."""
    request = orjson.loads(body)
    if "messages" in request:
        request["messages"] = [one | {"content": HARMLESS} for one in request["messages"]]
    if "input" in request:
        request["input"] = [HARMLESS]
    return orjson.dumps(request)


def _sound(key: str | None, name: str) -> str | None:
    """`key`, which the environment variable `name` holds.

    Raises:
        ValueError: sent, it would break the request with an error that quotes it.
    """
    if key and not re.fullmatch("[!-~]+", key):
        raise ValueError(f"the key in {name} holds a space, a line break or another character no key has")
    return key


def check(config: Config) -> None:
    """Ask each replica of the judge endpoint for its models, which is free, before anything is spent.

    Raises:
        ValueError: no model is configured, or a replica is unreachable, is no API or refuses the key.
    """
    judge = config.judge
    if not judge.model:
        raise ValueError("judge.model: the name of the judge model is missing")
    key = _sound(configured_key(config), judge.api_key_env)
    if judge.retrieval.embedding_base_url:
        address(judge.retrieval.embedding_base_url, "judge.retrieval.embedding_base_url")
    urls = [address(url, "judge.base_url") for url in base_urls(judge.base_url)]
    with ThreadPoolExecutor(len(urls)) as asked:
        for _ in asked.map(lambda url: _check_one(url, key, judge), urls):
            pass


def _check_one(url: str, key: str | None, judge: Judge) -> None:
    import httpx2
    import openai

    api = openai.OpenAI(
        api_key=key or "none",
        base_url=url,
        max_retries=2,
        timeout=20.0,
        default_headers=judge.parameters.get("extra_headers"),
        default_query=judge.parameters.get("extra_query"),
        http_client=openai.DefaultHttpxClient(
            follow_redirects=False,
            # As calls go; by itself it would also refuse proxies that it does not need.
            trust_env=False,
            proxy=proxy_for(url),
            verify=httpx2.create_ssl_context(),
        ),
    )
    where = f"judge.base_url: the endpoint {shown(str(api.base_url))}"
    try:
        with api:
            if not isinstance(loaded(api.models.with_raw_response.list().content), dict | list):
                raise ValueError("the endpoint's reply is no list of models")
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        what = "refuses the key in" if key else "wants a key, and there is none in"
        raise ValueError(f"{where} {what} {judge.api_key_env} (HTTP {error.status_code})") from error
    except openai.APIConnectionError as error:
        raise ValueError(f"{where} cannot be reached: {_root(error)}") from error
    except openai.InternalServerError as error:
        raise ValueError(f"{where} is not working (HTTP {error.status_code})") from error
    except openai.APIStatusError as error:
        if error.status_code < 400:
            raise ValueError(f"{where} {redirects(error)}") from error
        # It is there; many gateways have no /models.
    except ValueError as error:
        raise ValueError(
            f"{where} is no OpenAI-compatible API: {error}; is its path complete, as /v1?"
        ) from error


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
