"""What `lr-ray compare` found: the runs' means and differences, and a plot a metric."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from lr_ray import meter
from lr_ray.report import words
from lr_ray.report.facts import MEASURES
from lr_ray.report.forest import MOST, Mark, forest
from lr_ray.report.shapes import Compared, Row, Run
from lr_ray.report.sides import between

COLUMNS = 5  # metrics side by side
METRICS = 40  # shown; all are in compare.json
FIGURES = 10  # metrics with plots
LINES = 400  # of the table of all figures


def section(found: Compared, pages: dict[str, str]) -> dict[str, Any]:
    """What the section shows; `pages` are the links to side-by-side answers, by the run's folder."""
    by_metric: dict[str, list[Row]] = {}
    for row in found.table:
        by_metric.setdefault(row.metric, []).append(row)
    judged = [name for name in by_metric if name in MEASURES]
    others = [name for name in by_metric if name not in MEASURES][:METRICS]
    shown = [*judged, *others]
    return {
        "found": found,
        "tables": [
            _table(found, by_metric, part, title)
            for title, names in (("The judge's scores, 0 to 10", judged), ("Other measures", others))
            for part in (names[at : at + COLUMNS] for at in range(0, len(names), COLUMNS))
        ],
        "hidden": len(by_metric) - len(shown),
        "figures": list(_figures(found, by_metric, shown[:FIGURES])),
        "undrawn": max(0, len(shown) - FIGURES),
        "lines": [_line(row) for row in found.table[:LINES]],
        "more": max(0, len(found.table) - LINES),
        "seeds": max((len(run.seeds) for run in found.runs), default=1),
        "runs": [_run(run, found.against, pages) for run in found.runs[:MOST]],
        "more_runs": max(0, len(found.runs) - MOST),
    }


def _table(
    found: Compared, by_metric: dict[str, list[Row]], names: Sequence[str], title: str
) -> dict[str, Any]:
    """The runs down, these metrics across."""
    cells = {name: {row.run: _line(row) for row in by_metric[name]} for name in names}
    old = {name: by_metric[name][0].before.before for name in names}
    return {
        "title": title,
        "metrics": names,
        "before": [words.number(old[name], digits(by_metric[name])) for name in names],
        "runs": [
            {"name": run.name, "cells": [cells[name].get(run.name) for name in names]}
            for run in found.runs[:MOST]
        ],
    }


def digits(rows: Sequence[Row]) -> int:
    """Decimals of a metric's figures."""
    if rows and rows[0].metric in MEASURES:
        return 2
    return decimals(*(value for row in rows for value in (row.mean, row.before.before)))


def decimals(*values: float | None) -> int:
    """Decimals that figures of this size need: shares of 1 have three, percents one, counts none."""
    most = max((abs(value) for value in values if value is not None), default=0.0)
    return 0 if most > 100 else 1 if most > 10 else 2 if most > 1.5 else 3


def _line(row: Row) -> dict[str, Any]:
    """The figures of a run and metric as text, with the side of zero that the interval is on."""
    places = digits([row])
    low, high = row.before.low, row.before.high
    side = "open" if low is None or high is None else "up" if low > 0 else "down" if high < 0 else "open"
    return {
        "metric": row.metric,
        "run": row.run,
        "mean": words.number(row.mean, places),
        "ends": words.ends(row.low, row.high, places, sign=False),
        "difference": words.signed(row.before.difference, places),
        "interval": words.ends(low, high, places),
        "side": side,
        "against": words.signed(row.against.difference, places) if row.against else "",
        "against_interval": words.ends(row.against.low, row.against.high, places) if row.against else "",
        "seeds": [words.signed(seed, places) for seed in row.seeds[:20]],
        "prompts": row.before.prompts,
    }


def _figures(found: Compared, by_metric: dict[str, list[Row]], names: Sequence[str]) -> Iterator[Any]:
    """Each metric's plot against the model before, and against the run that the others are compared with."""
    for name in names:
        rows = by_metric[name]
        if not any(row.before.difference is not None for row in rows):
            continue
        places = digits(rows)
        marks = [
            Mark(row.run, row.before.difference, row.before.low, row.before.high, _dots(row)) for row in rows
        ]
        yield _figure(name, marks, "the model before", places)
        others = [
            Mark(row.run, row.against.difference, row.against.low, row.against.high)
            for row in rows
            if row.against is not None
        ]
        if others:
            yield _figure(name, others, found.against, places)


def _dots(row: Row) -> Sequence[float | None]:
    return row.seeds[:20] if len(row.seeds) > 1 else ()


def _figure(metric: str, marks: list[Mark], other: str, places: int) -> dict[str, Any]:
    title = f"{metric.replace('_', ' ')}, against {other}"
    axis = "difference in points, of 10" if metric in MEASURES else "difference"

    def shown(value: float) -> str:
        return words.signed(value, places)

    return {
        "title": title,
        "plot": forest(marks, title, axis, shown),
        "more": max(0, len(marks) - MOST),
    }


def _run(run: Run, against: str, pages: dict[str, str]) -> dict[str, Any]:
    folders = [(seed.seed, f"{run.name}-seed{seed.seed}") for seed in run.seeds]
    others = [(seed, between(folder, f"{against}-seed{seed}")) for seed, folder in folders]
    changes = ", ".join(
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in run.changes.items()
    )
    return {
        "name": run.name,
        "changes": changes,
        "pairs": [words.number(seed.pairs if seed.pairs is not None else seed.rows, 0) for seed in run.seeds],
        "dropped": _dropped(run),
        "steps": [words.number(seed.steps, 0) for seed in run.seeds],
        "failed": sum(seed.failed for seed in run.seeds),
        "pages": [(seed, pages[folder]) for seed, folder in folders if folder in pages],
        "others": [(seed, pages[key]) for seed, key in others if key in pages],
    }


def _dropped(run: Run) -> str:
    """Why the first seed's prompts gave no pair; all seeds have the same pairs."""
    counts = sorted(run.seeds[0].dropped.items(), key=lambda item: -item[1]) if run.seeds else []
    return "; ".join(f"{words.whole(count)} {reason}" for reason, count in counts[:8] if count)


def sentence(found: Compared) -> str:
    """The comparison in one sentence, which claims no more than the intervals do."""
    sides: dict[str, list[str]] = {"up": [], "down": [], "open": []}
    for row in found.table:
        if row.metric == "reward" and row.against is not None and row.against.difference is not None:
            low, high = row.against.low, row.against.high
            known = low is not None and high is not None
            side = "up" if known and low > 0 else "down" if known and high < 0 else "open"
            sides[side].append(row.run)
    named = {"up": "clearly higher", "down": "clearly lower", "open": "not clearly apart"}
    said = [f"{named[side]}: {words.some(names)}" for side, names in sides.items() if names]
    runs = meter.number(len(found.runs), "run")
    if not said:
        return f"{runs} compared on {meter.number(found.prompts, 'held-out prompt')}."
    return f"{runs} compared; held-out reward against {found.against}: {'; '.join(said)}."
