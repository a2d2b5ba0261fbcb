"""The calls of one row: recorded ones are replayed, each other one is paid once and recorded.

A reply that cannot be used is asked for again as its kind demands; it never becomes an answer:
cut off (`finish_reason=length`) → more room; refused or filtered → one new sample; not what the schema
asks for, or empty → new samples, at temperature 0.95 (the paper's attempts).
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import orjson
from pydantic import BaseModel

from lr_ray.config import Judge
from lr_ray.llm.client import Client, Count, Unanswerable
from lr_ray.llm.governor import Order
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.replies import Bad, read, slim
from lr_ray.rows import Message, Usage

NEW_SAMPLE_TEMPERATURE = 0.95  # of every attempt but the first (the authors' code)
MORE_ROOM = 2  # times the tokens, once, after a reply was cut off
SAMPLES_OF_A_REFUSAL = 2  # a model that refuses twice means it
EMBEDDINGS_A_CALL = 64
CONNECTION_PARAMETERS = {"extra_headers", "extra_query", "timeout"}  # cannot change an answer

A = TypeVar("A", bound=BaseModel)
Vectors = npt.NDArray[np.float32]


class Unusable(Exception):
    """No attempt of a unit gave a usable answer. The message is the reason, for `unscored`."""


@dataclass(frozen=True)
class Call(Generic[A]):
    """One unit of judging: what is asked, and what an answer must be.

    `name` is the kind of call and of its schema; `candidate` (none: shared by all) and `index` only
    identify the unit in the header X-Lr-Unit. Of calls that wait, the smallest `order` goes first.
    """

    name: str
    messages: list[Message]
    schema: dict[str, Any]
    answer: type[A]
    candidate: int | None = None
    index: int = 0
    order: Order = ()


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
    ) -> None:
        self.usage: Usage = {
            "calls": 0,
            "reused": 0,
            "retries": 0,
            "prompt_tokens": 0,
            "cached_tokens": 0,
            "completion_tokens": 0,
        }
        self.first_call_at = time.time()
        self._prompt_id, self._client, self._ledger = prompt_id, client, ledger
        self._recorded, self._settings, self._count_all = recorded, settings, count
        self._asked: dict[bytes, asyncio.Task[Any]] = {}

    async def ask(self, call: Call[A]) -> A:
        """The validated answer to `call`.

        Raises:
            Unusable: no attempt gave one.
            EndpointRefused, GaveUp: see `client`.
        """
        same = hashlib.sha256(orjson.dumps([call.name, call.messages])).digest()
        return await self._once(same, lambda: self._attempts(call))

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

    async def _once(self, key: bytes, work: Callable[[], Awaitable[Any]]) -> Any:
        task = self._asked.get(key)
        if task is None:
            task = self._asked[key] = asyncio.ensure_future(work())
        return await task

    async def _attempts(self, call: Call[A]) -> A:
        room = int(self._settings.parameters.get("max_completion_tokens") or self._settings.max_tokens)
        cut = refused = 0
        unit = self._unit(call)
        for attempt in range(self._settings.attempts):
            temperature = NEW_SAMPLE_TEMPERATURE if attempt > cut else 0.0
            body = self._body(call, temperature, room * MORE_ROOM if cut else room)
            try:
                reply = await self._reply(self._client, "/chat/completions", body, attempt, unit, call.order)
                return read(reply, call.answer)
            except Unanswerable as error:
                raise Unusable(str(error)) from error
            except Bad as bad:
                reason = f"{bad} ({attempt + 1} attempt{'s' if attempt else ''})"
                refused += bad.kind == "refused"
                # A reply cut off at temperature 0 is given more room once, before new samples are drawn.
                cut = 1 if bad.kind == "cut" else cut
                if refused >= SAMPLES_OF_A_REFUSAL or attempt + 1 == self._settings.attempts:
                    raise Unusable(reason) from bad
                self._count("retries", 1)
        raise AssertionError("attempts is at least 1")

    def _body(self, call: Call[A], temperature: float, room: int) -> bytes:
        """The request, serialised once: it is sent and hashed as these bytes."""
        messages, settings = call.messages, self._settings
        body: dict[str, Any] = {"model": settings.model, "temperature": temperature, "max_tokens": room}
        given = {k: v for k, v in settings.parameters.items() if k not in CONNECTION_PARAMETERS}
        extra = given.pop("extra_body", None) or {}
        if given.pop("max_completion_tokens", None):
            # Newer endpoints know the limit by this name only.
            body["max_completion_tokens"] = body.pop("max_tokens")
        body |= dict(sorted({**given, **extra}.items()))
        if settings.structured_output == "json_schema":
            schema = {"name": call.name, "strict": True, "schema": call.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        else:
            messages = _with_schema(messages, call.schema)
        # A parameter set to null is left out, as `temperature` for endpoints that refuse it.
        return orjson.dumps({k: v for k, v in body.items() if v is not None} | {"messages": messages})

    async def _reply(
        self, client: Client, path: str, body: bytes, attempt: int, unit: str, order: Order = ()
    ) -> dict[str, Any]:
        """The reply to `body`, from the ledger or, once it is in the ledger, from the endpoint."""
        key = hashlib.sha256(b"%s\0%d\0%s" % (path.encode(), attempt, body)).hexdigest()
        reply = self._recorded.get(key)
        reused = reply is not None
        if reply is None:
            reply = slim(await client.post(path, body, unit, self._count, order=order))
            record = {"prompt_id": self._prompt_id, "key": key, "unit": unit, "reply": reply}
            await self._ledger.append(record)  # pyrefly: ignore
            for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
                self._count(name, reply[name])
        self._count("calls", 1)
        self._count("reused", int(reused))
        return reply

    async def _batch(self, texts: list[str], model: str, client: Client) -> Vectors:
        body = orjson.dumps({"model": model, "input": texts, "encoding_format": "base64"})
        unit = f"{_safe(self._prompt_id)}/-/embeddings/0"
        try:
            reply = await self._once(body, lambda: self._reply(client, "/embeddings", body, 0, unit))
        except Unanswerable as error:
            raise Unusable(str(error)) from error
        vectors = [np.frombuffer(base64.b64decode(text), np.float16) for text in reply["vectors"] or []]
        if len(vectors) != len(texts) or len({len(vector) for vector in vectors}) != 1:
            raise Unusable("the embedding endpoint did not give one vector a text")
        matrix = np.stack(vectors).astype(np.float32)
        norms = np.linalg.norm(matrix, axis=1, keepdims=True)
        return (matrix / np.where(norms > 0, norms, 1)).astype(np.float32)

    def _unit(self, call: Call[A]) -> str:
        candidate = "-" if call.candidate is None else call.candidate
        return f"{_safe(self._prompt_id)}/{candidate}/{call.name}/{call.index}"

    def _count(self, name: str, number: int) -> None:
        if name in self.usage:
            self.usage[name] += number  # pyrefly: ignore
        if number:
            self._count_all("calls_reused" if name == "reused" else name, number)


def _with_schema(messages: list[Message], schema: dict[str, Any]) -> list[Message]:
    """The messages with the schema at the end of their fixed part, for endpoints that enforce none."""
    rule = "Reply with one JSON object of this JSON schema and nothing else:\n"
    first = messages[0]
    text = f"{first['content']}\n\n{rule}{orjson.dumps(schema).decode()}"
    return [{"role": first["role"], "content": text}, *messages[1:]]


def _safe(text: str) -> str:
    """A header-safe, bounded form of a prompt id."""
    return quote(text, safe="")[:160]
