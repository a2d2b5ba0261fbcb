"""Where requests go: base URLs, what messages may show of them, and the environment's proxies."""

import base64
import os
from urllib.parse import unquote, urlsplit, urlunsplit

DEFAULT = "https://api.openai.com/v1"  # the openai package's


def base_urls(base_url: str | list[str] | None) -> list[str | None]:
    """The base URL of each replica, in the order of `Permit.replica`; None is the package's default."""
    return list(base_url) if isinstance(base_url, list) else [base_url]


def address(base_url: str | None, name: str = "base_url") -> str:
    """`base_url`, or where the openai package goes without one.

    Raises:
        ValueError: nothing can be sent there; `name` is what the user calls it.
    """
    url = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT
    if not _is_http(url):
        raise ValueError(f"{name}: {shown(url)!r} is no address of the form https://HOST/v1")
    if "?" in url or "#" in url:
        # The path of a call is put behind it. What it says may be secret.
        raise ValueError(
            f"{name}: {shown(url)!r} goes on with a query; give that as judge.parameters.extra_query"
        )
    return url


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and url.split() == [url]
        )
    except ValueError:  # also of a port that is none
        return False


def shown(url: str) -> str:
    """A URL without the user, password and query it may hold, for messages."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "it"
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def without_user(url: str) -> tuple[str, str | None]:
    """A URL without its user and password, and the Authorization header they make."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    secret = base64.b64encode(unquote(user).encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), f"Basic {secret}"


def proxy_for(url: str) -> str | None:
    """The proxy that the environment (HTTPS_PROXY, ALL_PROXY, NO_PROXY, …) wants for `url`.

    By the rules of the package's own HTTP client, so that both go the same way.

    Raises:
        ValueError: it is no HTTP proxy.
    """
    from httpx2 import URL
    from httpx2._utils import URLPattern, get_environment_proxies

    asked, proxies = URL(url), get_environment_proxies()
    closest = sorted(map(URLPattern, proxies))
    proxy = next((proxies[one.pattern] for one in closest if one.matches(asked)), None)
    scheme = urlsplit(proxy).scheme if proxy else "http"
    if scheme not in ("http", "https"):
        raise ValueError(f"the environment's proxy for {asked.host} is a {scheme} proxy; only http works")
    return proxy
