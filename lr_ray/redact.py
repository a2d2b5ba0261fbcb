"""What a user put into a config that no run directory or message may show."""

from typing import Any

HIDDEN = "***"


def config(tree: dict[str, Any]) -> dict[str, Any]:
    """A config's tree, changed in place: without users and passwords in URLs, and values of extra headers."""
    judge = tree.get("judge") or {}
    direct = (tree.get("rewards") or {}).get("direct") or {}
    for section in (judge, judge.get("retrieval") or {}, direct):
        urls(section)
    for changes in ((tree.get("compare") or {}).get("runs") or {}).values():
        urls(changes)
    headers = (judge.get("parameters") or {}).get("extra_headers")
    if isinstance(headers, dict):
        judge["parameters"] = judge["parameters"] | {"extra_headers": dict.fromkeys(headers, HIDDEN)}
    return tree


def urls(section: dict[str, Any]) -> dict[str, Any]:
    """The section, changed in place: its URLs without users and passwords."""
    for key, value in section.items():
        if key.endswith("base_url") and isinstance(value, str):
            section[key] = _anonymous(value)
        elif key.endswith("base_url") and isinstance(value, list):
            section[key] = [_anonymous(url) if isinstance(url, str) else url for url in value]
    return section


def _anonymous(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return scheme + separator + host.rpartition("@")[2] + slash + path
