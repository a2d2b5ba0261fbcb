"""What a user put into a config that no run directory or message may show."""

import re
from typing import Any

HIDDEN = "***"

_USER = re.compile(r"(?i)^([a-z][a-z0-9+.-]*://)[^/]*@")


def config(tree: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config's tree without users and passwords in URLs, and values of extra headers."""
    tree = urls(tree)
    parameters = (tree.get("judge") or {}).get("parameters") or {}
    headers = parameters.get("extra_headers")
    if isinstance(headers, dict):
        parameters["extra_headers"] = dict.fromkeys(headers, HIDDEN)
    return tree


def urls(value: Any) -> Any:
    """A copy of `value`, of whatever JSON holds, with no URL in it that has a user or password."""
    if isinstance(value, dict):
        return {key: urls(one) for key, one in value.items()}
    if isinstance(value, list):
        return [urls(one) for one in value]
    return _USER.sub(r"\1", value) if isinstance(value, str) else value
