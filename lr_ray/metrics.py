"""What Prometheus sees of a run: every metric in one table, and how the run's counts become them.

Actors do not touch metrics. They add up in a dict (0.15 µs a count) and tell the run's tally once a second;
the tally alone exports, since a record costs 5-6 µs (`jobs/bench_metrics.py`), an actor that is killed
takes what it has not exported with it, and one series a run stays one. Ray names a counter
``ray_NAME_total`` and a gauge ``ray_NAME``.

No label holds what data says: prompt ids, units and texts stand in the log (`journal`). Pure but for
`Exporter`, which does nothing where no Ray runs.
"""

import hashlib
import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lr_ray import meter

Key = tuple[str, ...]
"""A metric's name and the values of its tags, in the table's order, without `run`."""


@dataclass(frozen=True)
class Metric:
    """A counter or a gauge; `tags` are those beside `run`."""

    kind: Literal["counter", "gauge"]
    help: str
    tags: tuple[str, ...] = ()


METRICS = {
    "lr_prompts": Metric("counter", "Prompts sampled, judged, or failed for good", ("outcome",)),
    "lr_candidates": Metric("counter", "Candidates sampled"),
    "lr_sample_tokens": Metric("counter", "Prompt tokens that sampling computed, not read from its cache"),
    "lr_calls": Metric(
        "counter",
        "Tries of calls to the judge by how they ended; reused answers come from the ledger, unpaid",
        ("dimension", "kind", "outcome"),
    ),
    "lr_call_seconds": Metric("counter", "Seconds that tries waited for leave or held a place", ("state",)),
    "lr_tokens": Metric("counter", "Judge tokens paid: prompt (not cached), cached, completion", ("part",)),
    "lr_money": Metric("counter", "What they cost, in the unit of judge.prices"),
    "lr_unscored": Metric("counter", "Scores that candidates miss", ("dimension", "reason")),
    "lr_limit": Metric("gauge", "What the judge endpoint allows, as far as is known", ("replica", "what")),
    "lr_use": Metric("gauge", "What is used of it", ("replica", "what")),
    "lr_budget_left": Metric("gauge", "What is left of judge.budget"),
    "lr_pairs": Metric("gauge", "Judged prompts with a pair, or without one by reason", ("outcome",)),
    "lr_reference_pairs": Metric("counter", "Pairs that the reference model has scored"),
    "lr_train_steps": Metric("gauge", "Optimizer steps, done and planned", ("of",)),
    "lr_train_tokens": Metric("gauge", "Tokens trained on"),
    "lr_training": Metric("gauge", "The last optimizer step, under TRL's names", ("metric",)),
}
CALLS, UNSCORED, SECONDS, PAIRS, TRAINING = (
    *("lr_calls", "lr_unscored", "lr_call_seconds"),
    *("lr_pairs", "lr_training"),
)

OF_COUNTERS = {
    "sampled": ("lr_prompts", "sampled"),
    "judged": ("lr_prompts", "judged"),
    "failed": ("lr_prompts", "failed"),
    "candidates": ("lr_candidates",),
    "sample_tokens": ("lr_sample_tokens",),
    "reference_pairs": ("lr_reference_pairs",),
    "train_steps": ("lr_train_steps", "done"),
    "train_total": ("lr_train_steps", "planned"),
    "train_tokens": ("lr_train_tokens",),
}
"""The metrics that are counters of `meter` under another name."""

KINDS = {
    "helpfulness": "helpfulness",
    "logicality": "logicality",
    "statements": "faithfulness",
    "support": "faithfulness",
    "embeddings": "faithfulness",
    "extract": "completeness",
    "completeness": "completeness",
    "direct": "comparison",
    **{f"grade_{grade}": "grading" for grade in ("chat", "answer", "summary", "turn")},
    **dict.fromkeys(("questions", "gaps", "unaided", "reading", "same"), "synthesis"),
}
"""Kinds of calls, and the dimension that each is for, or what else."""
OUTCOMES = (
    *("answered", "reused"),
    *("cut", "refused", "invalid"),  # paid, and of no use
    *("unanswerable", "throttled", "broken", "denied"),  # unpaid
)

_WRAPPED = ("an extract of the document is missing: ", "a statement has no verdict: ")
_REASONS = (
    ("the reply was cut off", "cut"),
    ("the judge refused", "refused"),
    ("a content filter", "refused"),
    ("the endpoint refused the request", "unanswerable"),
    ("the endpoint's reply is larger", "unanswerable"),
    ("no factual statements", "no_statements"),
    ("the reply", "invalid"),
    ("the embedding endpoint", "invalid"),
)


def run_label(run_dir: str) -> str:
    """The label of a run: the last part of its directory, and a hash that tells it from its namesakes."""
    name = re.sub(r"[^\w.-]", "_", run_dir.partition("?")[0].rstrip("/").rpartition("/")[2], flags=re.ASCII)
    return f"{name[:40]}-{hashlib.sha256(run_dir.encode()).hexdigest()[:8]}"


@cache
def call(kind: str, outcome: str) -> Key:
    """The count of calls of `kind` that ended as `outcome`."""
    assert outcome in OUTCOMES
    return (CALLS, KINDS.get(kind, "other"), kind if kind in KINDS else "other", outcome)


def kind(unit: str) -> str:
    """The kind of the call with this unit (prompt/candidate/kind/index)."""
    return unit.rsplit("/", 2)[-2] if unit.count("/") >= 2 else ""


def reason(text: str) -> str:
    """The class of a reason for a missing score: one of few, whatever the text holds."""
    for wrapped in _WRAPPED:
        text = text.removeprefix(wrapped)
    return next((name for start, name in _REASONS if text.startswith(start)), "other")


def check(key: Key, kind: str) -> None:
    """Refuse a key that is not in the table.

    Raises:
        ValueError: no such metric, of another kind, or with other tags.
    """
    metric = METRICS.get(key[0])
    if metric is None or metric.kind != kind or len(metric.tags) != len(key) - 1:
        raise ValueError(f"no such {kind}: {' '.join(key)}")


def bought(counts: Mapping[str, float], prices: meter.Prices | None) -> dict[Key, float]:
    """Tokens and money of a tally's new counts."""
    cached = counts.get("cached_tokens", 0)
    found: dict[Key, float] = {
        ("lr_tokens", "prompt"): counts.get("prompt_tokens", 0) - cached,
        ("lr_tokens", "cached"): cached,
        ("lr_tokens", "completion"): counts.get("completion_tokens", 0),
    }
    return found | {("lr_money",): (meter.cost(counts, prices) if prices else None) or 0.0}


class Exporter:
    """The metrics of one run in this process, through Ray to Prometheus; nothing where no Ray runs."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._metrics: dict[str, Any] = {}
        self._gauges: dict[Key, float] = {}

    def add(self, counts: Mapping[Key, float]) -> None:
        """Raise counters; a count that is not above 0 is none."""
        for key, count in counts.items():
            if count > 0 and (metric := self._metric(key[0])):
                metric.inc(count, self._tags(key))

    def put(self, values: Mapping[Key, float]) -> None:
        """Set gauges; one that is infinite or no number is not shown.

        Ray forgets a gauge that is not set again within 20 s: see `refresh`.
        """
        self._gauges.update(values)
        self._set(values)

    def refresh(self) -> None:
        """Set all gauges again to what they are."""
        self._set(self._gauges)

    def _set(self, values: Mapping[Key, float]) -> None:
        for key, value in values.items():
            if math.isfinite(value) and (metric := self._metric(key[0])):
                metric.set(float(value), self._tags(key))

    def _tags(self, key: Key) -> dict[str, str]:
        return {"run": self._run, **dict(zip(METRICS[key[0]].tags, key[1:], strict=True))}

    def _metric(self, name: str) -> Any:
        found = self._metrics.get(name)
        if found is None and "ray" in sys.modules and sys.modules["ray"].is_initialized():
            from ray.util.metrics import Counter, Gauge

            metric = METRICS[name]
            made = Counter if metric.kind == "counter" else Gauge
            found = self._metrics[name] = made(name, metric.help, ("run", *metric.tags))
        return found
