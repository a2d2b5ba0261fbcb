"""What a try that failed calls for: a later try, an end of this one request, or an end of the run.

- `Again`: nothing was answered; a later try may be.
- `Unanswerable`: the endpoint will not take this one request (too long, filtered); its unit is unscored.
- `Doubtful`: refused, and one refusal does not say whether for its text or for what all requests share.
- `EndpointRefused` (a ValueError): no call can succeed (key, model or request refused); the run stops.
- `GaveUp`: transport failed again and again; the row fails, what it has paid for stays in the ledger.
"""

import email.utils
import math
import time
from collections.abc import Mapping
from typing import Any

from lr_ray.llm.addresses import shown
from lr_ray.llm.governor import NO_HEADERS
from lr_ray.llm.transport import CONNECT

LONGEST_RETRY_AFTER = 600.0  # seconds; an endpoint that asks for more is asked again after this
_OF_ONE_REQUEST = {"context_length_exceeded", "string_above_max_length", "content_filter"}
# Of a parameter, a schema or a key, or of what a filter finds in one text: there is no telling by the status.
_DOUBTFUL = {400, 403, 422}
_NO_RETRY = {401, 402, 404, 405, 410}
# Codes that stand for a status where an error comes in a 200.
_STATUSES = {"rate_limit_exceeded": 429, "insufficient_quota": 429, **dict.fromkeys(_OF_ONE_REQUEST, 400)}


class EndpointRefused(ValueError):
    """The endpoint refuses us for good. The message is one sentence and holds no key."""


class GaveUp(Exception):
    """Every retry of a request failed in transport. The message is one sentence."""


class Unanswerable(Exception):
    """The endpoint will never answer this one request. The message says why."""


class Again(Exception):
    """One failed try that may be repeated, after `wait` seconds where the endpoint named them."""

    def __init__(
        self,
        reason: str,
        wait: float | None = None,
        throttled: bool = False,
        headers: Mapping[str, str] = NO_HEADERS,
    ) -> None:
        super().__init__(reason)
        self.wait, self.throttled, self.headers = wait, throttled, headers


class Doubtful(Exception):
    """A refusal of one request, which is `alone`, or of every one, which is `all`."""

    def __init__(self, alone: Unanswerable, all_of_them: EndpointRefused) -> None:
        super().__init__(str(alone))
        self.alone, self.all = alone, all_of_them


def of_status(error: Any, base_url: str, key_name: str) -> Exception:
    """What `error`, an openai.APIStatusError from the endpoint at `base_url`, calls for.

    `key_name` is the environment variable that holds the key.
    """
    status, code = error.status_code, str(error.code or error.type or "")[:80]
    # Several servers name no code for a prompt over the model's window.
    too_long = "context length" in str(error.message).lower()
    if status == 413 or (status == 400 and (code in _OF_ONE_REQUEST or too_long)):
        return Unanswerable(f"the endpoint refused the request (HTTP {status}, {code or 'too large'})")
    if status in _NO_RETRY or 300 <= status < 400 or code == "insufficient_quota":
        return _refused(error, code, base_url, key_name)
    if status in _DOUBTFUL:
        alone = Unanswerable(f"the endpoint refused the request (HTTP {status}, {code or 'no code'})")
        return Doubtful(alone, _refused(error, code, base_url, key_name))
    headers = error.response.headers
    return Again(f"HTTP {status}", retry_after(headers), status == 429, headers)


def _refused(error: Any, code: str, base_url: str, key_name: str) -> EndpointRefused:
    status, where = error.status_code, f"the judge endpoint {shown(base_url)}"
    if status in (401, 403):
        # The endpoint's own words may repeat the key.
        return EndpointRefused(f"{where} refuses the key in {key_name} (HTTP {status})")
    if 300 <= status < 400:
        return EndpointRefused(f"{where} {redirects(error)}")
    words = " ".join(str(error.message).split())[:300]
    what = f"HTTP {status}{', ' + code if code else ''}"
    return EndpointRefused(f"{where} refuses our requests ({what}): {words}")


def redirects(error: Any) -> str:
    """What a redirect, an openai.APIStatusError, says: where to."""
    to = shown(error.response.headers.get("location", "somewhere"))[:200]
    return f"redirects to {to!r} (HTTP {error.status_code}), which is not followed; put that in base_url"


def of_connection(error: Exception, timeout: float) -> Again:
    """What an openai.APIConnectionError calls for; `timeout` is that of a whole try, in seconds."""
    import aiohttp
    import openai

    if isinstance(error.__cause__, aiohttp.ConnectionTimeoutError):
        return Again(f"no connection within {min(CONNECT, timeout):g} s")
    if isinstance(error, openai.APITimeoutError):
        return Again(f"no answer within {timeout:g} s")
    return Again(f"the connection broke ({type(error.__cause__ or error).__name__})")


def stated(error: Any) -> int | None:
    """The HTTP status that an error in the body of a 200 names by its code; None: none."""
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, str):
        code = int(code) if len(code) == 3 and code.isdecimal() else _STATUSES.get(code)
    return code if type(code) is int and 400 <= code < 600 else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The wait that a response asks for, in seconds; None when it asks for none."""
    milliseconds = _seconds(headers.get("retry-after-ms"), 1e-3)
    return _seconds(headers.get("retry-after")) if milliseconds is None else milliseconds


def _seconds(text: str | None, unit: float = 1.0) -> float | None:
    """A header's number (of `unit` seconds) or date as seconds from now; None for anything else."""
    if text is None:
        return None
    try:
        wait = float(text) * unit
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return min(max(wait, 0.0), LONGEST_RETRY_AFTER) if math.isfinite(wait) else None
