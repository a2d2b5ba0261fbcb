"""The calls of one row: recorded ones are replayed, each other one is paid once and recorded.

What goes wrong has a treatment of its own, and never becomes an answer:
429, 5xx, time-out, hang-up → the same request again, after a pause (`client`);
cut off (`finish_reason=length`) → once more with more room;
refused or filtered → one new sample;
not what the schema asks for, out of range or empty → new samples, at temperature 0.95 (as the paper does);
embeddings without one usable vector a text → the same request again;
refused for good, as a prompt over the window, or still of no use → unscored, with the reason.
Only the unit itself is asked again, in this run and in a later one. What is recorded is always heard to its
end, also beyond `attempts`: a retry of unscored units (`judge.retry_unscored`) goes on from there, with as
many new attempts.
"""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import numpy as np
from pydantic import BaseModel

from lr_ray import metrics
from lr_ray.config import Judge
from lr_ray.llm import requests
from lr_ray.llm.client import Client, Count
from lr_ray.llm.failures import Unanswerable
from lr_ray.llm.governor import Order
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.replies import BYTES_A_TOKEN, Bad, estimated, read, read_vectors, slim
from lr_ray.llm.requests import APART, Call
from lr_ray.llm.spending import UNTOLD
from lr_ray.llm.vectors import Vectors
from lr_ray.meter import cost
from lr_ray.rows import no_usage

NEW_SAMPLE_TEMPERATURE = 0.95  # of every attempt but the first (the authors' code)
MORE_ROOM = 2  # times the tokens, once, after a reply was cut off
SAMPLES_OF_A_REFUSAL = 2  # a model that refuses twice means it
EMBEDDINGS_A_CALL = 64
CHAT, EMBEDDINGS = "/chat/completions", "/embeddings"
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
ANSWER_TOKENS = 150  # about what an answer uses, for the governor

A = TypeVar("A", bound=BaseModel)
T = TypeVar("T")


class Unusable(Exception):
    """No attempt of a unit gave a usable answer. The message is the reason, for `unscored`."""


@dataclass(frozen=True)
class _Asking(Generic[T]):
    """How one unit of `kind` is asked, and asked again.

    `read` gives what a kept reply holds or raises Bad, upon which `again` gives the body of the next attempt,
    from its number and that failure. The attempts' keys begin at `first`.
    """

    client: Client
    path: str
    unit: str
    kind: str
    read: Callable[[dict[str, Any]], T]
    again: Callable[[int, Bad], bytes]
    first: int = 0
    order: Order = ()
    begun: Callable[[], None] | None = None


class Calls:
    """Everything one row asks. Equal requests within the row are one request."""

    def __init__(
        self,
        prompt_id: str,
        client: Client,
        ledger: Ledger,
        recorded: dict[str, Any],
        settings: Judge,
        count: Count,
        borrowed: Container[str] = (),
    ) -> None:
        self.usage = no_usage()
        self.first_call_at = time.time()
        self._prompt_id, self._client, self._ledger = prompt_id, client, ledger
        self._recorded, self._settings, self._count_all = recorded, settings, count
        self._room, self._hints = requests.room(settings), requests.hints(settings)
        self._borrowed = borrowed  # keys of `recorded` that are another run's, to be copied when used
        self._account = client.governor.account
        self._asked: dict[str, asyncio.Task[Any]] = {}

    async def ask(self, call: Call[A]) -> A:
        """The validated answer to `call`.

        Raises:
            Unusable: no attempt gave one.
            EndpointRefused, GaveUp: see `failures`.
            Stopped: the run stops early, before this call was made.
        """
        # The messages are long: they are serialised and hashed once, also to find equal requests.
        body = requests.chat(self._settings, call, NEW_SAMPLE_TEMPERATURE if call.sample else 0.0, self._room)
        key = requests.key(CHAT, call.sample * APART, body)
        return await self._once(key, lambda: self._attempts(self._chat(call), body, key))

    async def embed(self, texts: list[str], model: str, client: Client) -> Vectors:
        """Unit-length embeddings of `texts` from `model` at `client`'s /v1/embeddings, shape (texts, width).

        Raises:
            Unusable: no attempt gave vectors that can be compared.
            EndpointRefused, GaveUp, Stopped: as `ask`.
        """
        batches = [texts[i : i + EMBEDDINGS_A_CALL] for i in range(0, len(texts), EMBEDDINGS_A_CALL)]
        vectors = await asyncio.gather(*(self._batch(batch, model, client) for batch in batches))
        if len({part.shape[1] for part in vectors}) != 1:
            raise Unusable("the embedding endpoint mixes vectors of several widths")
        return np.concatenate(vectors)

    async def _once(self, key: str, work: Callable[[], Awaitable[Any]]) -> Any:
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.ensure_future(work())
        return await task

    def _chat(self, call: Call[A]) -> _Asking[A]:
        cut = False

        def again(attempt: int, bad: Bad) -> bytes:
            nonlocal cut
            # A reply cut off at temperature 0 is given more room once, before new samples are drawn.
            cut = cut or bad.kind == "cut"
            temperature = NEW_SAMPLE_TEMPERATURE if call.sample or attempt > cut else 0.0
            return requests.chat(self._settings, call, temperature, self._room * (MORE_ROOM if cut else 1))

        return _Asking(
            *(self._client, CHAT, self._unit(call), call.name),
            read=lambda reply: read(reply, call.answer),
            again=again,
            first=call.sample * APART,
            order=call.order,
            begun=call.begun,
        )

    async def _attempts(self, asking: _Asking[T], body: bytes, key: str) -> T:
        """What is asked for; `body` and `key` are of the first attempt."""
        refused = tried = 0
        for attempt in itertools.count():
            began = time.perf_counter()
            reply, paid = await self._reply(asking, body, key)
            try:
                found = asking.read(reply)
                self._heard(asking, "answered" if paid else "reused", reply, began)
                if paid:
                    self._account.answered()
                return found
            except Bad as bad:
                self._heard(asking, bad.kind if paid else "reused", reply, began)
                if paid:
                    self._account.unusable(str(bad))
                # A retry counts its own attempts alone.
                counted = paid or not self._settings.retry_unscored
                tried, refused = tried + counted, refused + (counted and bad.kind == "refused")
                body = asking.again(attempt + 1, bad)
                key = requests.key(asking.path, asking.first + attempt + 1, body)
                enough = refused >= SAMPLES_OF_A_REFUSAL or tried >= self._settings.attempts
                if key not in self._recorded and (enough or attempt + 2 > APART):
                    reason = f"{bad} ({attempt + 1} attempt{'s' if attempt else ''})"
                    raise Unusable(reason) from bad
                self._count("retries", 1)
        raise AssertionError("it counts for ever")

    async def _reply(self, asking: _Asking[Any], body: bytes, key: str) -> tuple[dict[str, Any], bool]:
        """The reply to `body`, and whether it is paid now: then it is in the ledger, under `key`.

        Raises:
            Unusable: the endpoint will never answer it.
        """
        recorded = self._recorded.get(key)
        if recorded is None:
            reply = await self._pay(asking, body, key)
            for name in TOKENS:
                self._count(name, reply[name])
        else:
            reply = recorded
            if key in self._borrowed:
                # What is borrowed cost this run nothing.
                await self._record(key, asking.unit, {**reply, **dict.fromkeys(TOKENS, 0)})
        self._count("calls", 1)
        self._count("reused", int(recorded is not None))
        return reply, recorded is None

    async def _pay(self, asking: _Asking[Any], body: bytes, key: str) -> dict[str, Any]:
        paid: dict[str, Any] = {}
        client, unit = asking.client, asking.unit

        async def keep(reply: dict[str, Any]) -> None:
            paid.update(estimated(slim(reply), len(body)))
            guessed = "estimated" in paid
            if guessed and not self._account.estimated:
                self._client.journal.warning("usage", unit=unit, reason=f"{UNTOLD}: estimated from bytes")
            self._account.paid(cost(paid, self._settings.prices) or 0.0, estimated=guessed)
            await self._record(key, unit, paid)

        self._ledger.check()
        tokens = len(body) // BYTES_A_TOKEN + ANSWER_TOKENS
        sent = body[:-1] + self._hints if asking.path == CHAT else body
        # A call keeps its place until its answer is durable, so that no crash repeats more calls than may
        # be in flight; but not where that takes a second or more, in which the endpoint would idle.
        held = keep if self._ledger.quick else None
        count = self._count if asking.begun is None else self._telling(asking.begun)
        try:
            reply = await client.post(
                asking.path, sent, unit, count, tokens=tokens, order=asking.order, keep=held
            )
        except Unanswerable as error:
            self._account.unusable(str(error))
            raise Unusable(str(error)) from error
        if held is None:
            await keep(reply)
        return paid

    async def _record(self, key: str, unit: str, reply: dict[str, Any]) -> None:
        record = {"prompt_id": self._prompt_id, "key": key, "unit": unit, "reply": reply}
        await self._ledger.append(record)

    async def _batch(self, texts: list[str], model: str, client: Client) -> Vectors:
        body = requests.embedding(model, texts)
        asking = _Asking(
            *(client, EMBEDDINGS, f"{_safe(self._prompt_id)}/-/embeddings/0", "embeddings"),
            read=lambda reply: read_vectors(reply, len(texts)),
            again=lambda *_: body,
        )
        key = requests.key(EMBEDDINGS, 0, body)
        return await self._once(key, lambda: self._attempts(asking, body, key))

    def _heard(self, asking: _Asking[Any], outcome: str, reply: dict[str, Any], began: float) -> None:
        """Count and log an answer; `began` is when it was asked for, waiting and repeats included."""
        self._count_all(metrics.call(asking.kind, outcome), 1)
        journal, unusable = self._client.journal, outcome not in ("answered", "reused")
        if unusable or journal.every_call:
            say = journal.warning if unusable else journal.debug
            fields = {name: reply[name] for name in TOKENS}
            seconds = time.perf_counter() - began
            fields |= {"prompt_id": self._prompt_id, "unit": asking.unit}
            say(
                "answer",
                **fields,
                outcome=outcome,
                seconds=seconds,
                text=reply.get("content") or reply.get("refusal"),
            )

    def _unit(self, call: Call[A]) -> str:
        candidate = "-" if call.candidate is None else call.candidate
        return f"{_safe(self._prompt_id)}/{candidate}/{call.name}/{call.index}"

    def _telling(self, begun: Callable[[], None]) -> Count:
        """`_count` that tells `begun` when a try has begun."""

        def count(name: str | metrics.Key, number: int) -> None:
            if name == "calls_started":
                begun()
            self._count(name, number)

        return count

    def _count(self, name: str | metrics.Key, number: int) -> None:
        if name in self.usage:
            self.usage[name] += number  # pyrefly: ignore
        if number:
            self._count_all("calls_reused" if name == "reused" else name, number)


def _safe(text: str) -> str:
    """A header-safe, bounded form of a prompt id."""
    return quote(text, safe="")[:160]
