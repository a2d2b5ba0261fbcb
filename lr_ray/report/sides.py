"""Pages of two models' answers side by side: which models there are, which prompts are shown.

Rewards of all prompts are read one file at a time; only of the prompts that are shown are whole rows.
"""

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

from lr_ray.benchmark_runs import HELD_OUT
from lr_ray.benchmarks.wins import FLIPPED, WIN
from lr_ray.store import Store

FOLDER = "report"
PICKED = 12
"""Prompts picked at random."""
EXTREMES = 3
"""Prompts of the greatest gain, and of the greatest loss."""
BEFORE_AFTER = ("before", "after")
RANDOM, GAIN, LOSS = "picked at random", "greatest gain", "greatest loss"
PAGES = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}-seed-?\d{1,20}")
_COLUMNS = ["prompt_id", "candidates.list.element.reward"]


class Pair(NamedTuple):
    """Two models that answered the same prompts: what the page is called, the run directories that hold the
    evaluations of the one and of the other (always its model after), and what the two are called."""

    key: str
    source: Store
    store: Store
    names: tuple[str, str] = BEFORE_AFTER

    @property
    def title(self) -> str:
        """Of the page."""
        if self.names != BEFORE_AFTER:
            return f"{self.names[1]} against {self.names[0]}"
        return "Before and after" if self.key == "before-after" else f"{self.key} against the model before"

    @property
    def side(self) -> str:
        """Of its evaluation that the first model is."""
        return "before" if self.names == BEFORE_AFTER else "after"

    @property
    def before(self) -> Store:
        """The first model's answers to the held-out prompts."""
        return self.source.sub("evaluation", self.side)

    @property
    def after(self) -> Store:
        """The other's."""
        return self.store.sub("evaluation", "after")

    @property
    def wins(self) -> Store | None:
        """Comparisons of the two; only a model and the one it started from have some."""
        return self.store.sub("evaluation", "wins") if self.names == BEFORE_AFTER else None

    @property
    def tried(self) -> tuple[Store, Store]:
        """The answers of both to the benchmarks."""
        first = self.source.sub("evaluation", f"benchmarks_{self.side}")
        return first, self.store.sub("evaluation", "benchmarks_after")

    @property
    def file(self) -> str:
        """Of the page, in the folder of pages."""
        return f"{self.key}.html"


@dataclass
class Sides:
    """What a page shows. `counts` are of whole differences from -10 to 10."""

    prompts: int = 0
    unpaired: int = 0
    better: int = 0
    worse: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * 21)
    rows: list[dict[str, Any]] = field(default_factory=list)
    wins: tuple[int, int, int] = (0, 0, 0)


def between(folder: str, other: str) -> str:
    """What the page of two trainings is called; no folder that names one has this sign."""
    return f"{folder}~{other}"


def pairs(store: Store, against: str = "") -> Iterator[Pair]:
    """The evaluation's two models, each training of a comparison against the model before, and each of
    another run against that of the run `against` with the same seed.

    Folders of the comparison name pages; those that lr-ray would not have made are passed over.
    """
    folders = [name for name in store.folders("compare") if _NAME.fullmatch(name)][:PAGES]
    stores = {name: store.sub("compare", name) for name in folders}
    found = [Pair("before-after", store, store)]
    found += [Pair(name, store, there) for name, there in stores.items()]
    for name, there in stores.items():
        run, _, seed = name.rpartition("-seed")
        first = f"{against}-seed{seed}"
        if run != against and first in stores:
            found.append(Pair(between(name, first), stores[first], there, (first, name)))
    for pair in found:
        both = ((pair.before, pair.after, "judged"), (*pair.tried, "sampled"))
        if any(one.files(kind) and other.files(kind) for one, other, kind in both):
            yield pair


def gather(pair: Pair, seed: int = 0) -> Sides:
    """Prompts picked at random, the same for the same run and seed, and those that moved most."""
    old, new = _rewards(pair.before), _rewards(pair.after)
    both = sorted(old.keys() & new.keys())
    found = Sides(prompts=len(both), unpaired=len(old.keys() ^ new.keys()))
    moved: dict[str, float] = {}
    for one in both:
        before, after = old[one], new[one]
        if before is not None and after is not None:
            moved[one] = after - before
            found.counts[10 + min(max(nearest(after - before), -10), 10)] += 1
    found.better = sum(value > 0 for value in moved.values())
    found.worse = sum(value < 0 for value in moved.values())
    ranked = sorted(moved, key=lambda one: moved[one])
    gains = [one for one in reversed(ranked[-EXTREMES:]) if moved[one] > 0]
    losses = [one for one in ranked[:EXTREMES] if moved[one] < 0]
    picked = set(random.Random(seed).sample(both, min(PICKED, len(both))))
    why: dict[str, list[str]] = {one: [RANDOM] for one in both if one in picked}
    for label, ids in ((GAIN, gains), (LOSS, losses)):
        for one in ids:
            why.setdefault(one, []).append(label)
    verdicts, found.wins = _verdicts(pair.wins, set(why))
    before, after = rows(pair.before, set(why)), rows(pair.after, set(why))
    found.rows = [
        {
            **after[one],
            "why": reasons,
            "moved": moved.get(one),
            "before": before[one],
            "after": after[one],
            "wins": verdicts.get(one, {}),
        }
        for one, reasons in why.items()
    ]
    return found


def nearest(value: float) -> int:
    """The nearest whole number, away from zero, so that a small move is not called none."""
    return int(math.copysign(max(1, math.floor(abs(value) + 0.5)), value)) if value else 0


def _rewards(store: Store) -> dict[str, float | None]:
    """Prompt id → mean reward of its scored answers, None where none is."""
    found: dict[str, float | None] = {}
    for row in store.rows("judged", _COLUMNS):
        scored = [one["reward"] for one in row["candidates"] if one["reward"] is not None]
        found[row["prompt_id"]] = fmean(scored) if scored else None
    return found


def rows(store: Store, ids: set[str], folder: str = "judged") -> dict[str, dict[str, Any]]:
    """The rows of `ids`, each file that holds some opened once."""
    places: dict[str, list[int]] = {}
    for one, (name, place) in store.index(folder).items():
        if one in ids:
            places.setdefault(name, []).append(place)
    found: dict[str, dict[str, Any]] = {}
    for name, those in places.items():
        for row in store.table(folder, name).take(those).to_pylist():
            found[row["prompt_id"]] = row
    return found


def _verdicts(
    store: Store | None, ids: set[str]
) -> tuple[dict[str, dict[int, dict[str, Any]]], tuple[int, int, int]]:
    """Prompt id → answer's index → who won and why; and of all how often after won, none did, before did."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    won = even = lost = 0
    for row in store.rows("graded", ["prompt_id", "benchmark", "grades"]) if store else ():
        if row["benchmark"] != HELD_OUT:
            continue
        flipped = {grade["index"] for grade in row["grades"] if grade["metric"] == FLIPPED and grade["value"]}
        for grade in row["grades"]:
            if grade["metric"] != WIN:
                continue
            value = grade["value"]
            if value is not None:
                won, even, lost = won + (value > 50), even + (value == 50), lost + (value < 50)
            if row["prompt_id"] in ids:
                of = {**grade, "said": _said(value, grade["index"] in flipped)}
                found.setdefault(row["prompt_id"], {})[grade["index"]] = of
    return found, (won, even, lost)


def _said(value: float | None, flipped: bool) -> str:
    if value is None:
        return "no verdict"
    if flipped:
        return "undecided: each order of the two answers gave another winner"
    if value == 50:
        return "a tie"
    return "after wins" if value > 50 else "before wins"
