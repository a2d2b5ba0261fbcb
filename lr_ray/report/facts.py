"""What the report says about a run, read from the run directory one file at a time.

Only sums, histograms and a bounded number of examples stay in memory, whatever the size of the run.
"""

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from lr_ray import config
from lr_ray.report import shapes
from lr_ray.store import Store

EXAMPLES = 20
OWN_SCALES = ("length", "random", "srm", "contrast", "direct")
"""Rewards of pairs that are not from 0 to 10."""
MEASURES = ("reward", *config.DIMENSIONS)
GROUPS = ("all", "chosen", "rejected")
_KINDS = 200  # different reasons kept apart; more than a person reads
# Nested columns: texts and scores without statements and passages, which are most of a file's bytes.
_COLUMNS = ["prompt_id", "language", "usage"] + [
    f"candidates.list.element.{name}" for name in ("text", "reward", "scores", "unscored", "repeats")
]


@dataclass
class Spread:
    """Scores from 0 to 10: how many fell on each whole number, and their sum."""

    bins: list[int] = field(default_factory=lambda: [0] * 11)
    count: int = 0
    total: float = 0.0

    def add(self, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self.bins[min(max(math.floor(value + 0.5), 0), 10)] += 1
            self.count += 1
            self.total += value

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass
class Repeated:
    """Ratings that were asked for again: prompts, usable samples beyond the first, unusable ones, and by
    dimension the sum and number of the candidates' variances."""

    prompts: int = 0
    samples: int = 0
    missing: int = 0
    variances: dict[str, tuple[float, int]] = field(default_factory=dict)

    def add(self, candidates: list[dict[str, Any]]) -> None:
        """The candidates of one prompt; run directories of earlier versions have no repeats."""
        found = [repeat for candidate in candidates for repeat in candidate.get("repeats") or []]
        self.prompts += bool(found)
        for repeat in found:
            self.samples += len(repeat["scores"]) - 1
            self.missing += repeat["missing"]
            if repeat["variance"] is not None:
                total, count = self.variances.get(repeat["dimension"], (0.0, 0))
                self.variances[repeat["dimension"]] = (total + repeat["variance"], count + 1)


@dataclass
class Reasons:
    """Counts by (where, reason). Reasons that differ in numbers alone are one, shown by its first."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    shown: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, where: str, reason: str) -> None:
        key = (where, re.sub(r"\d+", "0", reason))
        if key not in self.shown and len(self.shown) >= _KINDS:
            key = (where, "other reasons")
            reason = "other reasons"
        self.shown.setdefault(key, reason)
        self.counts[key] += 1

    def rows(self) -> list[tuple[str, str, int]]:
        """(where, reason, count), the most frequent first."""
        return [(key[0], self.shown[key], count) for key, count in self.counts.most_common()]

    @property
    def total(self) -> int:
        return sum(self.counts.values())


@dataclass
class Gathered:
    """All the page shows. What the run directory does not hold is None or empty."""

    name: str
    settings: config.Config | None = None
    settings_text: str = ""
    prompts: int = 0
    candidates: int = 0
    spreads: dict[str, dict[str, Spread]] = field(
        default_factory=lambda: {m: {g: Spread() for g in GROUPS} for m in MEASURES}
    )
    lengths: dict[str, Spread] = field(default_factory=lambda: {g: Spread() for g in GROUPS})
    languages: Counter[str] = field(default_factory=Counter)
    usage: Counter[str] = field(default_factory=Counter)
    repeated: Repeated = field(default_factory=Repeated)
    unscored: Reasons = field(default_factory=Reasons)
    failed: Reasons = field(default_factory=Reasons)
    pairs: int = 0
    audit: dict[str, Any] | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    unreadable_metrics: int = 0
    evaluation: dict[str, Any] | None = None
    compared: shapes.Compared | None = None
    agreement: shapes.Agreement | None = None
    synthesis: shapes.Synthesis | None = None
    timing: dict[str, float] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)


def gather(store: Store, examples: int = EXAMPLES, seed: int = 0) -> Gathered:
    """Read the run directory; a pick of `examples` prompts that is the same for the same run and seed.

    Raises:
        ValueError: a file of the run is not what it should be; names the file.
    """
    found = Gathered(store.url.partition("?")[0].rsplit("/", 1)[-1])
    _settings(store, found)
    found.audit = _json(store, "pairs.json")
    if (evaluation := shapes.read(store, "evaluation.json", shapes.Evaluation)) is not None:
        found.evaluation = evaluation.model_dump(exclude_unset=True)
    found.compared = shapes.read(store, "compare.json", shapes.Compared)
    found.agreement = shapes.read(store, "agreement.json", shapes.Agreement)
    found.synthesis = shapes.read(store, "synthesis.json", shapes.Synthesis)
    found.timing = {str(k): float(v) for k, v in (_json(store, "timing.json") or {}).items()}
    found.metrics, found.unreadable_metrics = _metrics(store)
    for row in store.rows("failed"):
        found.failed.add(row["stage"], row["reason"])
    pick = _Reservoir(examples, seed)
    pairs = {row["prompt_id"]: row for row in pick.of(_pairs(store, found))}
    pick = _Reservoir(examples, seed)
    judged = [row["prompt_id"] for row in pick.of(_judged(store, found))]
    found.examples = _examples(store, list(pairs) or judged, pairs)
    return found


def _settings(store: Store, found: Gathered) -> None:
    if (data := store.read("config.yaml")) is None:
        return
    found.settings_text = data.decode("utf-8", "replace")
    try:
        found.settings = config.Config.model_validate(yaml.safe_load(found.settings_text))
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{store.url}/config.yaml: not a config of this version of lr-ray") from error


def _json(store: Store, name: str) -> dict[str, Any] | None:
    if (data := store.read(name)) is None:
        return None
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ValueError(f"{store.url}/{name}: not valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"{store.url}/{name}: expected a JSON object")
    return value


def _metrics(store: Store) -> tuple[list[dict[str, Any]], int]:
    """The metrics by step, the last line of a step winning, and the number of unreadable lines.

    A run that was killed leaves a torn line, and one that resumed writes some steps twice.
    """
    rows: dict[float, dict[str, Any]] = {}
    unreadable = 0
    for line in (store.read("metrics.jsonl") or b"").splitlines():
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            step = float(row.get("step", len(rows) + 1))
        except (ValueError, TypeError, AttributeError):
            unreadable += 1
            continue
        rows[step] = {**rows.get(step, {}), **row, "step": step}
    return [rows[step] for step in sorted(rows)], unreadable


def _pairs(store: Store, found: Gathered) -> Iterator[dict[str, Any]]:
    columns = [
        name for side in GROUPS[1:] for name in (side, f"score_{side}", f"scores_{side}", f"index_{side}")
    ]
    own_scale = found.settings is not None and found.settings.pairs.reward in OWN_SCALES
    for row in store.rows("pairs", ["prompt_id", *columns]):
        found.pairs += 1
        for side in GROUPS[1:]:
            found.spreads["reward"][side].add(None if own_scale else row[f"score_{side}"])
            for name in config.DIMENSIONS:
                found.spreads[name][side].add(row[f"scores_{side}"][name])
            _length(found.lengths[side], row[side][-1]["content"])
        yield {name: row[name] for name in ("prompt_id", "index_chosen", "index_rejected")}


def _judged(store: Store, found: Gathered) -> Iterator[dict[str, Any]]:
    for row in store.rows("judged", _COLUMNS):
        found.prompts += 1
        found.languages[row["language"] or "unknown"] += 1
        found.usage.update({name: count for name, count in (row["usage"] or {}).items() if count})
        found.repeated.add(row["candidates"])
        for candidate in row["candidates"]:
            found.candidates += 1
            found.spreads["reward"]["all"].add(candidate["reward"])
            for name in config.DIMENSIONS:
                found.spreads[name]["all"].add(candidate["scores"][name])
            _length(found.lengths["all"], candidate["text"])
            for missing in candidate["unscored"] or []:
                found.unscored.add(missing["dimension"], missing["reason"])
        yield {"prompt_id": row["prompt_id"]}


def octave(length: float) -> float:
    """Where a length in characters lies on eleven bins that double: 0 up to 32, 10 from 16,384 on."""
    return min(max(math.log2(max(length, 1.0)) - 4, 0.0), 10.0)


def _length(spread: Spread, text: str) -> None:
    spread.bins[int(octave(len(text)))] += 1
    spread.count += 1
    spread.total += len(text)


class _Reservoir:
    """A uniform pick of `size` rows of a stream of unknown length, in stream order."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random = size, random.Random(seed)

    def of(self, stream: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        kept: dict[int, tuple[int, dict[str, Any]]] = {}
        for place, row in enumerate(stream):
            slot = place if place < self._size else self._random.randrange(place + 1)
            if slot < self._size:
                kept[slot] = (place, row)
        return [row for _, row in sorted(kept.values(), key=lambda item: item[0])]


def _examples(store: Store, ids: list[str], pairs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The judged rows of `ids`, with the indexes of their pair where they have one."""
    where = store.index("judged")
    found = []
    for prompt_id in ids:
        if prompt_id not in where:
            continue
        name, place = where[prompt_id]
        row = store.table("judged", name).slice(place, 1).to_pylist()[0]
        pair = pairs.get(prompt_id, {})
        found.append({**row, "chosen": pair.get("index_chosen"), "rejected": pair.get("index_rejected")})
    return found
