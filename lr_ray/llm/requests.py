"""Requests as they are sent, and what they are known by in the ledger."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson
from pydantic import BaseModel

from lr_ray.config import Judge
from lr_ray.llm.governor import Order
from lr_ray.rows import Message

APART = 1000  # between the numbers of the attempts of two samples, which tell their records apart
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


def room(settings: Judge) -> int:
    """The longest answer, in tokens."""
    return int(settings.parameters.get("max_completion_tokens") or settings.max_tokens)


def hints(settings: Judge) -> bytes:
    """How a request's JSON goes on after all that can change an answer."""
    given = settings.parameters | (settings.parameters.get("extra_body") or {})
    found = {k: v for k, v in given.items() if k in HINTS and v is not None}
    return b"," + orjson.dumps(found)[1:] if found else b"}"


def chat(settings: Judge, call: Call[A], temperature: float, tokens: int) -> bytes:
    """A request for at most `tokens`, but for its hints; it is hashed and sent as these bytes."""
    messages = call.messages
    body: dict[str, Any] = {"model": settings.model, "temperature": temperature, "max_tokens": tokens}
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
        messages = with_schema(messages, call.schema)
    # A parameter set to null is left out, as `temperature` for endpoints that refuse it.
    return orjson.dumps({k: v for k, v in body.items() if v is not None} | {"messages": messages})


def embedding(model: str, texts: list[str]) -> bytes:
    """A request for the embeddings of `texts`."""
    return orjson.dumps({"model": model, "input": texts, "encoding_format": "base64"})


def key(path: str, attempt: int, body: bytes) -> str:
    """What a reply is recorded under: a hash of all that can change it."""
    digest = hashlib.sha256(b"%s\0%d\0" % (path.encode(), attempt))
    digest.update(body)
    return digest.hexdigest()


def with_schema(messages: list[Message], schema: dict[str, Any]) -> list[Message]:
    """The messages with the schema at the end of their fixed part, for endpoints that enforce none."""
    rule = "Reply with one JSON object of this JSON schema and nothing else:\n"
    first = messages[0]
    text = f"{first['content']}\n\n{rule}{orjson.dumps(schema).decode()}"
    return [{"role": first["role"], "content": text}, *messages[1:]]
