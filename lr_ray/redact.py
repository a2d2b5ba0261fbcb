"""What a user put into a config that no run directory or message may show."""

import re
from typing import Any

HIDDEN = "***"

_USER = re.compile(r"(?i)^([a-z][a-z0-9+.-]*://)[^/]*@")
# Whole words, so that max_tokens, stop_token_ids and tokenizer stay; api_key_env names a variable only.
_SECRET = re.compile(
    r"(?i)(?:(?:key|secret|password|passwd|credential|cookie)s?|auth|authorization|token(?!_?ids?\b))"
    r"(?![a-z])(?!_env$)"
)
_PLAIN = re.compile(r"(?i)prompt_cache_key|(bos|eos|pad|unk|sep|cls|mask)_token|\w*_auth_mode")


def secret(name: str) -> bool:
    """Whether what a variable or parameter of this name holds may be a secret."""
    return _SECRET.search(name) is not None and not _PLAIN.fullmatch(name)


def config(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config's tree as `shown`, and without the values of extra headers."""
    tree = shown(tree)
    parameters = (tree.get("judge") or {}).get("parameters") or {}
    headers = parameters.get("extra_headers")
    if isinstance(headers, dict):
        parameters["extra_headers"] = dict.fromkeys(headers, HIDDEN)
    return tree


def shown(value: Any) -> Any:
    """A copy of `value`, of whatever JSON holds, without users and passwords in URLs, and without what stands
    under the name of a secret."""
    if isinstance(value, dict):
        return {name: (_hidden if secret(str(name)) else shown)(one) for name, one in value.items()}
    return [shown(one) for one in value] if isinstance(value, list) else urls(value)


def _hidden(value: Any, inside: bool = False) -> Any:
    """`value` with `HIDDEN` in the place of every text in it, and inside mappings of every number; others are
    counts and sizes, as num_key_value_heads."""
    if isinstance(value, dict):
        return {name: _hidden(one, True) for name, one in value.items()}
    if isinstance(value, list):
        return [_hidden(one, inside) for one in value]
    plain = value is None or isinstance(value, bool) or (not inside and isinstance(value, int | float))
    return value if plain else HIDDEN


def urls(value: Any) -> Any:
    """A copy of `value`, of whatever JSON holds, with no URL in it that has a user or password."""
    if isinstance(value, dict):
        return {key: urls(one) for key, one in value.items()}
    if isinstance(value, list):
        return [urls(one) for one in value]
    return _USER.sub(r"\1", value) if isinstance(value, str) else value
