"""The calls of one row: recorded ones are replayed, each other one is paid once and recorded.

What goes wrong has a treatment of its own, and never becomes an answer:
429, 5xx, time-out, hang-up → the same request again, after a pause (`client`);
cut off (`finish_reason=length`) → once more with more room;
refused or filtered → one new sample;
not what the schema asks for, out of range or empty → new samples, at temperature 0.95 (as the paper does);
refused for good, as a prompt over the window, or still of no use → unscored, with the reason.
Only the unit itself is asked again, in this run and in a later one. What is recorded is always heard to its
end, also beyond `attempts`: a retry of unscored units (`judge.retry_unscored`) goes on from there, with as
many new attempts.
"""

import asyncio
import base64
import hashlib
import itertools
import time
from collections.abc import Awaitable, Callable, Container
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel

from lr_ray import metrics
from lr_ray.config import Judge
from lr_ray.llm.client import Client, Count, Unanswerable
from lr_ray.llm.governor import Order
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.replies import BYTES_A_TOKEN, Bad, estimated, read, slim
from lr_ray.llm.spending import UNTOLD
from lr_ray.meter import cost
from lr_ray.rows import Message, no_usage

NEW_SAMPLE_TEMPERATURE = 0.95  # of every attempt but the first (the authors' code)
MORE_ROOM = 2  # times the tokens, once, after a reply was cut off
SAMPLES_OF_A_REFUSAL = 2  # a model that refuses twice means it
APART = 1000  # between the numbers of the attempts of two samples, which tell their records apart
EMBEDDINGS_A_CALL = 64
CHAT = "/chat/completions"
TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")
ANSWER_TOKENS = 150  # about what an answer uses, for the governor
CONNECTION_PARAMETERS = {"extra_headers", "extra_query", "timeout"}  # cannot change an answer
# Nor can these: they are sent, but an answer is found again without them.
HINTS = {
    "metadata",
    "priority",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
}

A = TypeVar("A", bound=BaseModel)
Vectors = npt.NDArray[np.float32]


class Unusable(Exception):
    """No attempt of a unit gave a usable answer. The message is the reason, for `unscored`."""


@dataclass(frozen=True)
class Call(Generic[A]):
    """One unit of judging: what is asked, and what an answer must be.

    `name` is the kind of call and of its schema; `candidate` (none: shared by all) and `index` only
    identify the unit in the header X-Lr-Unit. Of calls that wait, the smallest `order` goes first; when one
    has got its leave, `begun` is told.
    A `sample` above 0 asks once more for what was answered: each has attempts of its own.
    """

    name: str
    messages: list[Message]
    schema: dict[str, Any]
    answer: type[A]
    candidate: int | None = None
    index: int = 0
    order: Order = ()
    sample: int = 0
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
        given = settings.parameters | (settings.parameters.get("extra_body") or {})
        hints = {k: v for k, v in given.items() if k in HINTS and v is not None}
        self._hints = b"," + orjson.dumps(hints)[1:] if hints else b"}"  # how a request's JSON goes on
        self._borrowed = borrowed  # keys of `recorded` that are another run's, to be copied when used
        self._account = client.governor.account
        self._asked: dict[str, asyncio.Task[Any]] = {}

    async def ask(self, call: Call[A]) -> A:
        """The validated answer to `call`.

        Raises:
            Unusable: no attempt gave one.
            EndpointRefused, GaveUp: see `client`.
            Stopped: the run stops early, before this call was made.
        """
        # The messages are long: they are serialised and hashed once, also to find equal requests.
        body = self._body(call, NEW_SAMPLE_TEMPERATURE if call.sample else 0.0, self._room())
        key = _key(CHAT, call.sample * APART, body)
        return await self._once(key, lambda: self._attempts(call, body, key))

    async def embed(self, texts: list[str], model: str, client: Client) -> Vectors:
        """Unit-length embeddings of `texts` from `model` at `client`'s /v1/embeddings, shape (texts, width).

        Raises:
            Unusable: the endpoint's reply does not fit the request.
            EndpointRefused, GaveUp: see `client`.
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

    def _room(self) -> int:
        return int(self._settings.parameters.get("max_completion_tokens") or self._settings.max_tokens)

    async def _attempts(self, call: Call[A], body: bytes, key: str) -> A:
        """The answer; `body` and `key` are of the first attempt."""
        cut = refused = tried = 0
        unit = self._unit(call)
        for attempt in itertools.count():
            began = time.perf_counter()
            reply, paid = await self._reply(self._client, CHAT, body, key, unit, call)
            try:
                answer = read(reply, call.answer)
                self._heard(unit, call.name, "answered" if paid else "reused", reply, began)
                if paid:
                    self._account.answered()
                return answer
            except Bad as bad:
                self._heard(unit, call.name, bad.kind if paid else "reused", reply, began)
                if paid:
                    self._account.unusable(str(bad))
                # A retry counts its own attempts alone.
                counted = paid or not self._settings.retry_unscored
                tried, refused = tried + counted, refused + (counted and bad.kind == "refused")
                # A reply cut off at temperature 0 is given more room once, before new samples are drawn.
                cut = 1 if bad.kind == "cut" else cut
                temperature = NEW_SAMPLE_TEMPERATURE if call.sample or attempt + 1 > cut else 0.0
                body = self._body(call, temperature, self._room() * (MORE_ROOM if cut else 1))
                key = _key(CHAT, call.sample * APART + attempt + 1, body)
                enough = refused >= SAMPLES_OF_A_REFUSAL or tried >= self._settings.attempts
                if key not in self._recorded and (enough or attempt + 2 > APART):
                    reason = f"{bad} ({attempt + 1} attempt{'s' if attempt else ''})"
                    raise Unusable(reason) from bad
                self._count("retries", 1)
        raise AssertionError("it counts for ever")

    def _body(self, call: Call[A], temperature: float, room: int) -> bytes:
        """The request but for its hints, serialised once: it is hashed and sent as these bytes."""
        messages, settings = call.messages, self._settings
        body: dict[str, Any] = {"model": settings.model, "temperature": temperature, "max_tokens": room}
        given = {k: v for k, v in settings.parameters.items() if k not in CONNECTION_PARAMETERS}
        extra = given.pop("extra_body", None) or {}
        if given.pop("max_completion_tokens", None):
            # Newer endpoints know the limit by this name only.
            body["max_completion_tokens"] = body.pop("max_tokens")
        body |= {k: v for k, v in sorted({**given, **extra}.items()) if k not in HINTS}
        if settings.structured_output == "json_schema":
            schema = {"name": call.name, "strict": True, "schema": call.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            messages = _with_schema(messages, call.schema)
        # A parameter set to null is left out, as `temperature` for endpoints that refuse it.
        return orjson.dumps({k: v for k, v in body.items() if v is not None} | {"messages": messages})

    async def _reply(
        self, client: Client, path: str, body: bytes, key: str, unit: str, call: Call[Any] | None = None
    ) -> tuple[dict[str, Any], bool]:
        """The reply to `body`, and whether it is paid now: then it is in the ledger, under `key`.

        Raises:
            Unusable: the endpoint will never answer it.
        """
        recorded = self._recorded.get(key)
        if recorded is None:
            reply = await self._pay(client, path, body, key, unit, call)
            for name in TOKENS:
                self._count(name, reply[name])
        else:
            reply = recorded
            if key in self._borrowed:
                # What is borrowed cost this run nothing.
                await self._record(key, unit, {**reply, **dict.fromkeys(TOKENS, 0)})
        self._count("calls", 1)
        self._count("reused", int(recorded is not None))
        return reply, recorded is None

    async def _pay(
        self, client: Client, path: str, body: bytes, key: str, unit: str, call: Call[Any] | None
    ) -> dict[str, Any]:
        paid: dict[str, Any] = {}

        async def keep(reply: dict[str, Any]) -> None:
            paid.update(estimated(slim(reply), len(body)))
            guessed = "estimated" in paid
            if guessed and not self._account.estimated:
                self._client.journal.warning("usage", unit=unit, reason=f"{UNTOLD}: estimated from bytes")
            self._account.paid(cost(paid, self._settings.prices) or 0.0, estimated=guessed)
            await self._record(key, unit, paid)

        self._ledger.check()
        tokens = len(body) // BYTES_A_TOKEN + ANSWER_TOKENS
        sent = body[:-1] + self._hints if path == CHAT else body
        # A call keeps its place until its answer is durable, so that no crash repeats more calls than may
        # be in flight; but not where that takes a second or more, in which the endpoint would idle.
        held = keep if self._ledger.quick else None
        try:
            count, order = (self._count, ()) if call is None else (self._telling(call), call.order)
            reply = await client.post(path, sent, unit, count, tokens=tokens, order=order, keep=held)
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
        body = orjson.dumps({"model": model, "input": texts, "encoding_format": "base64"})
        unit = f"{_safe(self._prompt_id)}/-/embeddings/0"
        key = _key("/embeddings", 0, body)
        reply = await self._once(key, lambda: self._embedded(client, body, key, unit))
        vectors = [np.frombuffer(base64.b64decode(text), np.float16) for text in reply.get("vectors") or []]
        if len(vectors) != len(texts) or len({len(vector) for vector in vectors}) != 1:
            raise Unusable("the embedding endpoint did not give one vector a text")
        matrix = np.stack(vectors).astype(np.float32)
        norms = np.linalg.norm(matrix, axis=1, keepdims=True)
        return (matrix / np.where(norms > 0, norms, 1)).astype(np.float32)

    async def _embedded(self, client: Client, body: bytes, key: str, unit: str) -> dict[str, Any]:
        began = time.perf_counter()
        reply, paid = await self._reply(client, "/embeddings", body, key, unit)
        self._heard(unit, "embeddings", "answered" if paid else "reused", reply, began)
        return reply

    def _heard(self, unit: str, kind: str, outcome: str, reply: dict[str, Any], began: float) -> None:
        """Count and log an answer; `began` is when it was asked for, waiting and repeats included."""
        self._count_all(metrics.call(kind, outcome), 1)
        journal, unusable = self._client.journal, outcome not in ("answered", "reused")
        if unusable or journal.every_call:
            say = journal.warning if unusable else journal.debug
            fields = {name: reply[name] for name in TOKENS}
            seconds = time.perf_counter() - began
            fields |= {"prompt_id": self._prompt_id, "unit": unit, "outcome": outcome, "seconds": seconds}
            say("answer", **fields, text=reply.get("content") or reply.get("refusal"))

    def _unit(self, call: Call[A]) -> str:
        candidate = "-" if call.candidate is None else call.candidate
        return f"{_safe(self._prompt_id)}/{candidate}/{call.name}/{call.index}"

    def _telling(self, call: Call[Any]) -> Count:
        """`_count` that tells `call` when it has begun."""

        def count(name: str | metrics.Key, number: int) -> None:
            if name == "calls_started" and call.begun is not None:
                call.begun()
            self._count(name, number)

        return count

    def _count(self, name: str | metrics.Key, number: int) -> None:
        if name in self.usage:
            self.usage[name] += number  # pyrefly: ignore
        if number:
            self._count_all("calls_reused" if name == "reused" else name, number)


def _key(path: str, attempt: int, body: bytes) -> str:
    """What a reply is recorded under: a hash of all that can change it."""
    digest = hashlib.sha256(b"%s\0%d\0" % (path.encode(), attempt))
    digest.update(body)
    return digest.hexdigest()


def _with_schema(messages: list[Message], schema: dict[str, Any]) -> list[Message]:
    """The messages with the schema at the end of their fixed part, for endpoints that enforce none."""
    rule = "Reply with one JSON object of this JSON schema and nothing else:\n"
    first = messages[0]
    text = f"{first['content']}\n\n{rule}{orjson.dumps(schema).decode()}"
    return [{"role": first["role"], "content": text}, *messages[1:]]


def _safe(text: str) -> str:
    """A header-safe, bounded form of a prompt id."""
    return quote(text, safe="")[:160]
