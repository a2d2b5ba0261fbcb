"""Replies of the simulated judge, in the forms of OpenAI's chat and embeddings endpoints."""

import base64
import hashlib
import json
import re
from typing import Any

import orjson

from lr_ray.simulated import rules

EMBEDDING_WIDTH = 256
PLAIN = {  # what `plain` answers, by kind of call
    "statements": {"statements": ["It is said."]},
    "support": {"analysis": "plain", "verdict": "full"},
    "extract": {"facts": ["It is said."]},
    "": {"analysis": "plain", "score": 5},
}

Reply = tuple[int, bytes | None, dict[str, str]]
"""Status, body (none: hang up in the middle of one) and headers."""


def chat(request: dict[str, Any], body: bytes, fault: str | None, cached: int) -> dict[str, Any]:
    """The completion of `request`, whose bytes are `body`, spoilt by `fault`; `cached` tokens were cached.

    Raises:
        KeyError, TypeError, IndexError, AttributeError: it is no request that the rules know.
    """
    messages = request["messages"]
    answer = rules.answer(_kind(request, messages), messages[-1]["content"])
    if request.get("temperature", 1) > 0 and "score" in answer:
        shift = hashlib.blake2b(body, digest_size=1).digest()[0] % 4
        answer["score"] = min(10, max(0, answer["score"] + (-1, 0, 0, 1)[shift]))
    text, finish, refusal = _spoilt(answer, fault)
    used, made = max(1, len(prompt_of(request)) // 4), max(1, len(text) // 4)
    return {
        "id": "chatcmpl-simulated",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": text or None, "refusal": refusal},
            }
        ],
        "usage": {
            "prompt_tokens": used,
            "completion_tokens": made,
            "total_tokens": used + made,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def prompt_of(request: dict[str, Any]) -> str:
    """All of a chat request's texts."""
    return "\0".join(message["content"] for message in request["messages"])


def _spoilt(answer: dict[str, Any], fault: str | None) -> tuple[str, str, str | None]:
    """Text, finish_reason and refusal of the reply that holds `answer`, spoilt by `fault`."""
    if fault == "out_of_range":
        outside: dict[str, Any] = {
            "score": 11,
            "winner": "both",
            "verdict": "entirely",
            "statements": [7],
            "facts": [7],
        }
        answer = {key: outside.get(key, value) for key, value in answer.items()}
    text = json.dumps(answer, ensure_ascii=False)
    if fault == "truncated":
        return text[: len(text) // 2], "length", None
    if fault == "invalid":
        return text.replace(":", "=", 1), "stop", None
    if fault == "refusal":
        return "", "stop", "I would rather not judge this."
    if fault in ("content_filter", "empty"):
        return "", "content_filter" if fault == "content_filter" else "stop", None
    return text, "stop", None


_ASKED = re.compile(rb'"name": ?"(statements|support|extract)"')
_PLAIN = {
    kind.encode(): orjson.dumps(
        {
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": json.dumps(answer)},
                }
            ]
        }
    )[:-1]
    for kind, answer in PLAIN.items()
}


def plain(body: bytes) -> tuple[Reply, int]:
    """The same answer to every request of a kind, and the tokens it used: without rules, for load tests."""
    asked = _ASKED.search(body)
    used = len(body) // 4
    usage = b',"usage":{"prompt_tokens":%d,"completion_tokens":8,"total_tokens":%d}}' % (used, used + 8)
    return (200, _PLAIN[asked[1] if asked else b""] + usage, {}), used + 8


_REQUIRED = {"statements": "statements", "verdict": "support", "facts": "extract", "winner": "direct"}


def _kind(request: dict[str, Any], messages: list[dict[str, str]]) -> str:
    """The schema's name; without response_format, what the schema in the prompt asks for and is given."""
    if "response_format" in request:
        return request["response_format"]["json_schema"]["name"]
    system, user = messages[0]["content"], messages[-1]["content"]
    for key, kind in _REQUIRED.items():
        if f'"required":["{key}"]' in system or f'"required":["analysis","{key}"]' in system:
            return kind
    if "<extract " in user:
        return "completeness"
    return "logicality" if "logic" in system[:200] or "逻辑" in system[:100] else "helpfulness"


def embeddings(request: dict[str, Any]) -> dict[str, Any]:
    """Hashed bags of words, of unit length."""
    texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(_embed(text), request)}
        for i, text in enumerate(texts)
    ]
    tokens = sum(len(text) // 4 for text in texts)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "model": request["model"], "data": data, "usage": usage}


def _embed(text: str) -> Any:
    import numpy as np

    vector = np.zeros(EMBEDDING_WIDTH, np.float32)
    for stem, weight in rules.keys(text).weight.items():
        vector[hashlib.blake2b(stem.encode(), digest_size=4).digest()[0] % EMBEDDING_WIDTH] += weight
    if not vector.any():
        vector[0] = 1.0  # a text without a word has a direction too
    return vector / float(np.linalg.norm(vector))


def _encoded(vector: Any, request: dict[str, Any]) -> Any:
    if request.get("encoding_format") == "base64":
        return base64.b64encode(vector.tobytes()).decode()
    return vector.tolist()


def failure(fault: str | None, retry_after: bool) -> Reply:
    """The reply in place of an answer that `fault` (throttled, error, unavailable, hangup) keeps back."""
    wait = {"retry-after": "0.05"} if retry_after else {}
    if fault == "throttled":
        return error(429, "rate_limit_exceeded", "injected", wait)
    if fault == "unavailable":
        return error(503, "overloaded", "injected", wait)
    return error(500, "server_error", "injected") if fault == "error" else (200, None, {})


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    """An error as OpenAI words it."""
    body = {"error": {"message": message, "type": code, "code": code, "param": None}}
    return status, orjson.dumps(body), headers or {}
