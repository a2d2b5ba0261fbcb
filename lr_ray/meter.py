"""Counters of a run and what follows from them: pace, time left, cost, and their words.

Pure: knows neither Ray nor a terminal, and takes the time as an argument.
"""

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

COUNTERS = (
    "sampled",  # prompts
    "candidates",
    "sample_tokens",
    "judged",  # prompts
    "rewarded",  # prompts, by another reward than LongReward's
    "preferred",  # prompts, by direct pairwise calls
    "synthesized",  # contexts
    "graded",  # prompts, or comparisons of two answers to one
    "failed",  # prompts, for good
    "calls",  # answers used, of which
    "calls_reused",  # came from the ledger
    "calls_started",
    "calls_finished",
    "retries",
    "prompt_tokens",
    "cached_tokens",  # part of prompt_tokens
    "completion_tokens",
    "unscored",  # dimensions of candidates
    "reference_pairs",
    "train_steps",
    "train_total",  # steps the training will have
    "train_tokens",
)
ROWS = ("judged", "failed")
STEPS = ("train_steps",)
RATE_WINDOW = 20.0  # seconds over which calls a second are counted
LEFT_WINDOW = 300.0  # seconds over which the pace that gives the time left is counted


class Prices(Protocol):
    """What `config.Prices` has: money a million tokens."""

    @property
    def prompt(self) -> float: ...
    @property
    def cached_prompt(self) -> float | None: ...
    @property
    def completion(self) -> float: ...


def cost(counts: Mapping[str, float], prices: Prices) -> float | None:
    """Money for `prompt_tokens` (of them `cached_tokens` cached) and `completion_tokens`.

    None when all prices are zero: unknown, not free.
    """
    if not (prices.prompt or prices.cached_prompt or prices.completion):
        return None
    cached = counts.get("cached_tokens", 0)
    fresh = counts.get("prompt_tokens", 0) - cached
    cached_price = prices.prompt if prices.cached_prompt is None else prices.cached_prompt
    total = fresh * prices.prompt + cached * cached_price
    return (total + counts.get("completion_tokens", 0) * prices.completion) / 1e6


@dataclass(frozen=True)
class View:
    """A stage at one moment: `done` of `total` units, `counts` since it began, `cost` of the whole run.

    Times are in seconds. None stands where there is no basis.
    """

    stage: str
    unit: str
    done: float
    total: float | None
    elapsed: float
    left: float | None
    calls_a_second: float | None
    cost: float | None
    counts: Mapping[str, float]

    @property
    def in_flight(self) -> float:
        return max(0.0, self.get("calls_started") - self.get("calls_finished"))

    def get(self, name: str) -> float:
        return self.counts.get(name, 0)


class Meter:
    """Turns snapshots into views of one stage, which began with the counts `base` at `began`."""

    def __init__(
        self,
        stage: str,
        total: float | None,
        counted: Sequence[str],
        prices: Prices,
        base: Mapping[str, float],
        began: float,
    ) -> None:
        self._stage, self._total, self._counted, self._prices = stage, total, counted, prices
        self._base, self._began = dict(base), began
        self._calls: deque[tuple[float, float]] = deque()
        self._done: deque[tuple[float, float]] = deque()

    def observe(self, counts: Mapping[str, float], now: float) -> View:
        """The view at `now` (seconds of any steady clock, never going back)."""
        since = {name: count - self._base.get(name, 0) for name, count in counts.items()}
        done = sum(since.get(name, 0) for name in self._counted)
        training = self._counted == STEPS
        total = (counts.get("train_total") or None) if training else self._total
        _slide(self._calls, now, since.get("calls_finished", 0), RATE_WINDOW)
        # The pace starts with the first finished row: before it engines start and the pipe fills.
        if self._done and self._done[0][1] == done:
            self._done.clear()
        _slide(self._done, now, done, LEFT_WINDOW)
        return View(
            stage=self._stage,
            unit="step" if training else "row",
            done=done,
            total=total,
            elapsed=now - self._began,
            left=self._left(done, total),
            calls_a_second=_pace(self._calls),
            cost=cost(counts, self._prices),
            counts=since,
        )

    def _left(self, done: float, total: float | None) -> float | None:
        """Seconds left at the recent pace; None until 3 units over 5 seconds give a basis."""
        if total is None:
            return None
        if done >= total:
            return 0.0
        (first, before), (last, _) = self._done[0], self._done[-1]
        if done - before < 3 or last - first < 5:
            return None
        return (total - done) * (last - first) / (done - before)


def _slide(window: deque[tuple[float, float]], now: float, count: float, span: float) -> None:
    window.append((now, count))
    while len(window) > 2 and window[1][0] <= now - span:
        window.popleft()


def _pace(window: deque[tuple[float, float]]) -> float | None:
    (first, before), (last, count) = window[0], window[-1]
    return (count - before) / (last - first) if last - first >= 1 else None


def short(count: float) -> str:
    """A count in few characters: 950, 9,500, 12.3k, 4.56M, 7.89B."""
    if count < 1e4:
        return f"{count:,.0f}"
    count = float(f"{count:.3g}")
    unit, size = next(item for item in (("B", 1e9), ("M", 1e6), ("k", 1e3)) if count >= item[1])
    value = count / size
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}{unit}"


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds as 1:02:03; '…' without a basis."""
    if seconds is None or not math.isfinite(seconds):
        return "…"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def money(amount: float | None) -> str:
    """An amount in the prices' own currency; '–' when there are no prices."""
    if amount is None:
        return "–"
    return f"{amount:,.2f}" if amount >= 1 or not amount else f"{amount:.4f}"


def number(count: float, unit: str) -> str:
    """As 1 row, 1,200 rows."""
    return f"{count:,.0f} {unit}{'' if count == 1 else 's'}"


def head(view: View) -> str:
    """How far the stage is, as 412 of 800 rows."""
    whole = number(view.done if view.total is None else view.total, view.unit)
    return whole if view.total is None else f"{view.done:,.0f} of {whole}"


def facts(view: View) -> list[tuple[str, str]]:
    """The figures of a view as (name, text); those that say nothing are left out."""
    get = view.get
    shown: list[tuple[str, str]] = []
    if get("sampled"):
        text = number(get("sampled"), "row")
        text += f" · {number(get('candidates'), 'answer')}" if get("candidates") else ""
        text += f" · {short(get('sample_tokens'))} tokens" if get("sample_tokens") else ""
        shown.append(("sampled", text))
    if get("calls_started") or get("calls_reused"):
        rate = "…" if view.calls_a_second is None else f"{view.calls_a_second:,.1f}"
        text = f"{view.in_flight:,.0f} in flight · {rate} a second · {get('calls_finished'):,.0f} finished"
        text += f" · {get('calls_reused'):,.0f} reused" if get("calls_reused") else ""
        text += f" · {number(get('retries'), 'repeat')}" if get("retries") else ""
        shown.append(("calls", text))
    if get("prompt_tokens"):
        cached = f" ({short(get('cached_tokens'))} cached)" if get("cached_tokens") else ""
        text = f"{short(get('prompt_tokens'))} in{cached} · {short(get('completion_tokens'))} out"
        shown.append(("tokens", f"{text} · cost {money(view.cost)}"))
    if get("train_tokens"):
        shown.append(("trained", f"{short(get('train_tokens'))} tokens"))
    if get("failed") or get("unscored"):
        missing = number(get("unscored"), "missing score")
        shown.append(("failures", f"{number(get('failed'), 'row')} · {missing}"))
    return shown


def line(view: View) -> str:
    """The view as one plain line, without control characters."""
    parts = [f"{view.stage}: {head(view)}", *(f"{name} {text}" for name, text in facts(view))]
    return plain(" | ".join([*parts, f"{clock(view.elapsed)} so far, {clock(view.left)} left"]))


def plain(text: str) -> str:
    """The text with each run of control characters as one space."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", text).strip()
