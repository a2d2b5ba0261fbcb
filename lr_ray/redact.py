"""What a user put into a config that no run directory or message may show."""

from typing import Any

HIDDEN = "***"


def config(tree: dict[str, Any]) -> dict[str, Any]:
    """A config's tree, changed in place: without users and passwords in URLs, and values of extra headers."""
    judge = tree.get("judge") or {}
    for section, key in ((judge, "base_url"), (judge.get("retrieval") or {}, "embedding_base_url")):
        if section.get(key):
            urls = section[key]
            section[key] = list(map(_anonymous, urls)) if isinstance(urls, list) else _anonymous(urls)
    headers = (judge.get("parameters") or {}).get("extra_headers")
    if isinstance(headers, dict):
        judge["parameters"] = judge["parameters"] | {"extra_headers": dict.fromkeys(headers, HIDDEN)}
    return tree


def _anonymous(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path
