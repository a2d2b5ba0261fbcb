"""What an endpoint's reply holds: kept as little as can be, read as strictly as can be."""

import json
import re
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from lr_ray.llm import vectors

A = TypeVar("A", bound=BaseModel)

BYTES_A_TOKEN = 4  # about
MOST_TOKENS = 10**9  # of one call; a reply that claims more says nothing
FAILURES_SHOWN = 200  # characters of a validation message


class Bad(Exception):
    """A reply is unusable. `kind` is cut, refused or invalid; the message is the reason."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def loaded(body: bytes) -> Any:
    """The JSON in the body of a response.

    Raises:
        ValueError: there is none.
    """
    try:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            # Some servers write lone surrogates, which only the lenient parser takes; `scrub` removes them.
            return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError("the endpoint's reply is not JSON") from error


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in the body of a response.

    Raises:
        ValueError: there is none.
    """
    reply = loaded(body)
    if not isinstance(reply, dict):
        raise ValueError("the endpoint's reply is not a JSON object")
    return reply


def used(reply: dict[str, Any]) -> int:
    """The tokens a response says it used, prompt and completion together; 0 where it does not say."""
    usage = reply.get("usage")
    total = usage.get("total_tokens") if isinstance(usage, dict) else None
    if total is None and isinstance(usage, dict):
        parts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
        total = sum(part for part in parts if type(part) is int)
    return total if type(total) is int and 0 <= total <= MOST_TOKENS else 0


def read(reply: dict[str, Any], answer: type[A]) -> A:
    """The validated answer in a reply.

    Raises:
        Bad: there is none.
    """
    if reply.get("finish_reason") == "length":
        raise Bad("cut", "the reply was cut off at its longest")
    if reply.get("refusal") or reply.get("finish_reason") == "content_filter":
        raise Bad(
            "refused", "the judge refused" if reply.get("refusal") else "a content filter stopped the judge"
        )
    text = (reply.get("content") or "").strip()
    if not text:
        raise Bad("invalid", "the reply was empty")
    try:
        # Lenient about raw control characters inside strings, which some grammars let through.
        parsed = json.loads(_unfenced(text), strict=False, object_pairs_hook=_distinct)
        return answer.model_validate(scrub(parsed), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"the reply is not what was asked for: {where}: {first['msg']}"
        raise Bad("invalid", reason[:FAILURES_SHOWN]) from error
    except (ValueError, RecursionError) as error:
        raise Bad("invalid", "the reply is not valid JSON") from error


def read_vectors(reply: dict[str, Any], number: int) -> vectors.Vectors:
    """The unit-length embeddings of `number` texts in a reply, shape (number, width).

    Raises:
        Bad: it does not hold exactly these.
    """
    found = reply.get("vectors") or []
    try:
        if len(found) != number:
            raise ValueError(f"{len(found)} vectors")
        return vectors.unpacked(found)
    except ValueError as error:
        raise Bad("invalid", "the embedding endpoint did not give one usable vector a text") from error


def _unfenced(text: str) -> str:
    """What a Markdown fence around the whole reply holds. No pattern: white space could stall one."""
    if len(text) < 6 or not (text.startswith("```") and text.endswith("```")):
        return text
    return text[3:-3].removeprefix("json")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; one that gives a key twice has two meanings, and is refused."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Bad("invalid", "the reply gives a key twice")
    return found


def slim(reply: dict[str, Any]) -> dict[str, Any]:
    """What of an endpoint's reply is kept: the answer, how it ended, what it cost; all valid UTF-8."""
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    details = usage.get("prompt_tokens_details")
    prompt = _tokens(usage.get("prompt_tokens"))
    cached = _tokens(details.get("cached_tokens") if isinstance(details, dict) else 0)
    tokens = {
        "prompt_tokens": prompt,
        "cached_tokens": min(cached, prompt),  # are part of them, or money would become negative
        "completion_tokens": _tokens(usage.get("completion_tokens")),
    }
    if "data" in reply and "choices" not in reply:
        return tokens | {"vectors": vectors.packed(reply["data"])}
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message") if isinstance(choice.get("message"), dict) else {}
    texts = {"content": _whole(message.get("content")), "refusal": message.get("refusal")}
    texts["finish_reason"] = choice.get("finish_reason")
    return tokens | {k: scrub(v) if isinstance(v, str) else None for k, v in texts.items()}


def _whole(content: Any) -> Any:
    """A message's text, which some gateways send in parts; parts of another type are no answer."""
    if not isinstance(content, list):
        return content
    texts = (part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def estimated(reply: dict[str, Any], prompt_bytes: int) -> dict[str, Any]:
    """A kept reply of an endpoint that does not say what it used: with tokens from bytes, and marked so.

    Without, nothing would seem to cost anything, and no budget would ever be reached. A reply without an
    answer stays as it is: nobody knows that it was paid.
    """
    text = reply.get("content") or reply.get("refusal") or ""
    if reply["prompt_tokens"] or reply["completion_tokens"] or not (text or reply.get("vectors")):
        return reply
    used = {"prompt_tokens": prompt_bytes, "completion_tokens": len(text.encode())}
    return reply | {k: -(-n // BYTES_A_TOKEN) for k, n in used.items()} | {"estimated": True}


def _tokens(value: Any) -> int:
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else 0


_BAD_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def scrub(value: Any) -> Any:
    """`value`, parsed JSON, with control characters and lone surrogates in its texts replaced by U+FFFD."""
    if isinstance(value, str):
        return _BAD_CHARACTERS.sub("\ufffd", value)
    if isinstance(value, list):
        return [scrub(item) for item in value]
    if isinstance(value, dict):
        return {scrub(key): scrub(item) for key, item in value.items()}
    return value
