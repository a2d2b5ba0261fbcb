"""`judge.parameters`: what may stand there."""

import re
from collections.abc import Mapping
from typing import Any

# Set by judging itself, or of an effect on the reply that it does not read; with what to do instead.
_OURS = {
    "messages": "judging writes the messages",
    "model": "set judge.model",
    "response_format": "set judge.structured_output",
    "max_tokens": "set judge.max_tokens",
    "stream": "replies are read whole",
    "stream_options": "replies are read whole",
    "n": "one answer is read a call; judge.repeats asks for more",
}
_HARMLESS = {"n": 1, "stream": False}
_MAPPINGS = ("extra_headers", "extra_query", "extra_body")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110
_HEADER_VALUE = re.compile(r"[\t -~]*")


def checked(parameters: dict[str, Any]) -> dict[str, Any]:
    """`parameters` as they are.

    Raises:
        ValueError: one would break judging. No value is shown: a header may hold a secret.
    """
    for name in _MAPPINGS:
        if not isinstance(parameters.get(name) or {}, Mapping):
            raise ValueError(f"{name} must be a mapping of names to values")
    body = parameters.get("extra_body") or {}
    for name, instead in _OURS.items():
        given = [one for one in (parameters.get(name), body.get(name)) if one is not None]
        if any(one is not _HARMLESS.get(name) for one in given):
            raise ValueError(f"{name} cannot be a parameter: {instead}")
    if "max_completion_tokens" in body:
        raise ValueError("max_completion_tokens belongs beside extra_body, not into it")
    most = parameters.get("max_completion_tokens")
    if most is not None and (type(most) is not int or most < 1):
        raise ValueError("max_completion_tokens must be a whole number of at least 1")
    for name, value in (parameters.get("extra_headers") or {}).items():
        _check_header(name, value)
    return parameters


def _check_header(name: Any, value: Any) -> None:
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise ValueError(f"extra_headers: {name!r} is no name of a header")
    if not isinstance(value, str) or not _HEADER_VALUE.fullmatch(value):
        raise ValueError(f"extra_headers: {name} must be one line of ASCII text; a number needs quotes")
