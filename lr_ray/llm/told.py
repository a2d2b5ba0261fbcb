"""Rate limits that an endpoint names in its headers.

OpenAI and most gateways send ``x-ratelimit-{limit,remaining,reset}-{requests,tokens}``, Anthropic
``anthropic-ratelimit-{requests,tokens}-{limit,remaining,reset}``. None says for how long the limit counts: a
minute at OpenAI, a day for requests at Groq. It shows in how `reset`, the time until all of it is there
again, grows as `remaining` falls.

A limit for a minute is the rate to keep. One for a day is not: what is left of it may be used at once, and
only near its end is the use of it slowed down, to what comes back.
"""

import math
import re
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

PERIODS = (1.0, 60.0, 3600.0, 86400.0)  # seconds that a limit may count for
LONG = 3600.0  # a limit for so many seconds is one of an amount
SPREAD = 60.0  # seconds in which, at the soonest, what is left of that is used
READINGS = 16  # of which the period is told
FEWEST = 6
CHANGED = 0.02  # a limit that differs less is the same
LONGEST = 64  # characters of a wait
UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
WHATS = ("requests", "tokens")

_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|d|h|m|s)")


def seconds(text: str | None) -> float | None:
    """A wait written as "1m30s", "20ms", "7.66s", plain seconds or an RFC 3339 time; None: none of these."""
    text = (text or "").strip()
    if len(text) > LONGEST:
        return None
    try:
        wait = float(text)
    except ValueError:
        if _PART.sub("", text) == "" and text:
            wait = sum(float(number) * UNITS[unit] for number, unit in _PART.findall(text))
        else:
            try:
                when = datetime.fromisoformat(text)
            except ValueError:
                return None
            when = when if when.tzinfo else when.replace(tzinfo=UTC)
            wait = (when - datetime.now(UTC)).total_seconds()
    return max(0.0, wait) if math.isfinite(wait) else None


def mentions(headers: Mapping[str, str]) -> dict[str, str] | None:
    """The headers about rate limits, of all those of a reply; None: there are none. Names in lower case."""
    found = {name: headers[name] for name in NAMES if name in headers}
    return found or None


def _names(what: str) -> tuple[tuple[str, str, str], ...]:
    parts = ("limit", "remaining", "reset")
    openai = tuple(f"x-ratelimit-{part}-{what}" for part in parts)
    anthropic = tuple(f"anthropic-ratelimit-{what}-{part}" for part in parts)
    return openai, anthropic  # type: ignore[return-value]


NAMES = tuple(name for what in WHATS for form in _names(what) for name in form)


class Said(NamedTuple):
    """What the endpoint allows, `rate` a second: the limit itself, or, `for_now`, no more than a ceiling."""

    rate: float
    for_now: bool = False


class Told:
    """What the endpoint says it allows, of requests and of tokens, as far as it can be understood."""

    def __init__(self) -> None:
        self._readings = {what: _Readings() for what in WHATS}

    def read(self, headers: Mapping[str, str]) -> tuple[Said | None, Said | None]:
        """New limits of requests and tokens; None: nothing new."""
        requests, tokens = (self._read(headers, what) for what in WHATS)
        return requests, tokens

    def _read(self, headers: Mapping[str, str], what: str) -> Said | None:
        for limit, remaining, reset in _names(what):
            try:
                of, left = float(headers[limit]), float(headers[remaining])
            except (KeyError, ValueError):
                continue
            wait = seconds(headers.get(reset))
            if wait is not None and of > 0 and math.isfinite(of) and math.isfinite(left):
                return self._readings[what].add(of, left, wait)
        return None


class _Readings:
    """Of one limit: its readings, the period that they show, and the rate that was told last."""

    def __init__(self) -> None:
        self._last: deque[tuple[float, float]] = deque(maxlen=READINGS)
        self._limit = 0.0
        self._period: float | None = None
        self._rate = 0.0

    def add(self, limit: float, left: float, wait: float) -> Said | None:
        if self._period is None:
            if limit != self._limit:
                self._limit = limit
                self._last.clear()
            self._last.append((left, wait))
            self._period = self._shown(limit)
        if self._period is None:
            return None
        rate, before, for_now = limit / self._period, self._rate, self._period >= LONG
        if for_now:
            rate += max(0.0, left) / SPREAD
        if abs(rate - before) <= CHANGED * before:
            return None
        self._rate = rate
        return Said(rate, for_now)

    def _shown(self, limit: float) -> float | None:
        """The period that fits how `reset` fell with `remaining`; None: it did not, or too few are there."""
        if len(self._last) < FEWEST:
            return None
        lefts, waits = zip(*self._last, strict=True)
        a, b = sum(lefts) / len(lefts), sum(waits) / len(waits)
        covariance = sum((x - a) * (y - b) for x, y in self._last)
        spread = sum((x - a) ** 2 for x in lefts)
        if spread < len(lefts) or covariance >= 0:
            return None  # a window that ends at a fixed time, or nothing to see yet
        rate = -spread / covariance
        period = min(PERIODS, key=lambda p: abs(math.log(limit / p / rate)))
        return period if abs(math.log(limit / period / rate)) < math.log(2) else None
