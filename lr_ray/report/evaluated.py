"""A model before and after: the judge's metrics, checks the loop has not seen, and benchmarks."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from lr_ray.report import plots, words
from lr_ray.report.compared import decimals
from lr_ray.report.facts import MEASURES
from lr_ray.report.forest import slope

BENCHMARKS = 30  # shown; all are in evaluation.json
ROWS = 60  # of a benchmark
MISSING = 40
_SIZE = re.compile(r"(\d{1,9}) tokens")

Row = Mapping[str, Any]


def comparison(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table's groups of rows: the judge's metrics on one axis, each other metric on its own."""
    rows = [row for row in evaluation.get("table", []) if "benchmark" not in row]
    judged = [row for row in rows if row["metric"] in MEASURES]
    others = [row for row in rows if row["metric"] not in MEASURES][:ROWS]
    named = {"Judge, 0 to 10": judged, "Checks the loop has not seen": others}
    limit = _limit(judged)
    return [
        {"title": title, "rows": [_compared(row, limit if members is judged else None) for row in members]}
        for title, members in named.items()
        if members
    ]


def _limit(rows: Sequence[Row]) -> float:
    return max(
        (abs(row[edge]) for row in rows for edge in ("low", "high") if is_number(row[edge])), default=1
    )


def _compared(row: Row, limit: float | None, name: str | None = None) -> dict[str, Any]:
    """A row of the comparison with its plot, on an axis to `limit`; none: an axis of its own."""
    judged = row["metric"] in MEASURES
    digits = 2 if judged else decimals(row["before"], row["after"])
    plot: Markup | None = None
    low, middle, high = row["low"], row["difference"], row["high"]
    name = name or row["metric"].replace("_", " ")
    if all(is_number(value) for value in (low, middle, high)):
        title = f"{words.clipped(name)}: {middle:+.3f}, {low:+.3f} to {high:+.3f}"
        plot = plots.interval(low, middle, high, limit or max(abs(low), abs(high)), title)
    return {**row, "name": name, "digits": digits, "plot": plot}


def is_number(value: Any) -> bool:
    """Whether it can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def benchmarks(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the section on benchmarks shows, None without any."""
    by_label: dict[str, list[Row]] = {}
    for row in evaluation.get("table", []):
        if "benchmark" in row:
            by_label.setdefault(row["benchmark"] or "", []).append(row)
    told = evaluation.get("benchmarks", {})
    names = list(dict.fromkeys([*by_label, *told]))
    if not names:
        return None
    shown = [_benchmark(name, by_label.get(name, []), told.get(name, {})) for name in names[:BENCHMARKS]]
    return {"shown": shown, "more": max(0, len(names) - BENCHMARKS)}


def _benchmark(label: str, rows: Sequence[Row], told: Mapping[str, Any]) -> dict[str, Any]:
    by_metric: dict[str, list[Row]] = {}
    for row in rows:
        by_metric.setdefault(_plain(row), []).append(row)
    limits = {metric: _limit(of_metric) for metric, of_metric in by_metric.items()}
    compared = [_compared(row, limits[_plain(row)], _named(row, label)) for row in rows[:ROWS]]
    missing = list(_missing(told))
    return {
        "title": label.replace("_", " ") or "Held-out prompts, and means of several benchmarks",
        "cases": told.get("cases"),
        "rows": compared,
        "more": max(0, len(rows) - ROWS),
        "plots": list(_slopes(label, by_metric)),
        "missing": missing[:MISSING],
        "more_missing": max(0, len(missing) - MISSING),
    }


def _plain(row: Row) -> str:
    """What is measured, without of which benchmark and group."""
    return row["metric"].rpartition(": ")[2]


def _named(row: Row, label: str) -> str:
    """What is measured and in which group, without the benchmark, which stands above."""
    if not label:
        return row["metric"]
    return f"{row['group']}: {_plain(row)}" if row.get("group") else _plain(row)


def _slopes(label: str, by_metric: Mapping[str, Sequence[Row]]) -> Iterator[Markup]:
    """A plot over length of each metric that was measured at several lengths."""
    for metric, rows in by_metric.items():
        sizes = {
            int(size[1]): row
            for row in rows
            if (size := _SIZE.fullmatch(row.get("group") or "")) and row["before"] is not None
        }
        sizes.pop(0, None)
        if len(sizes) > 1:
            lines = {
                side: [(float(size), row[side]) for size, row in sizes.items()]
                for side in ("before", "after")
            }
            title = f"{label}: {metric} by length of prompt"
            yield slope(lines, title, "tokens in the prompt", _tokens)


def _tokens(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 and value % 256 == 0 else f"{value:g}"


def _missing(told: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, int]]]:
    """(metric, why, side → count) of what is not in the means, or was changed on the way."""
    for name, why in (
        ("truncated", "prompts cut in the middle, which lost some of the document"),
        ("failed", "prompts that failed for good"),
        ("second turns not graded", "second turns without a grade"),
    ):
        counts = _whole(told.get(name))
        if any(counts.values()):
            yield "", why, counts
    for kind in ("unscored", "unscored facts"):
        yield from _reasons(told.get(kind))
    orders = {"": told.get("comparisons"), **_mapping(told.get("the order decided"))}
    for side, order in orders.items():
        duel = _mapping(order)
        if not side:
            yield from _reasons({"after": duel.get("unscored")})
            duel = _mapping(duel.get("the order decided"))
        share, count = duel.get("share"), duel.get("comparisons")
        if isinstance(share, int | float) and isinstance(count, int):
            what = f"of {words.whole(count)} comparisons, those that the order of the answers decided"
            yield "win", what, {side or "after": round(share * count)}


def _reasons(sides: Any) -> Iterator[tuple[str, str, dict[str, int]]]:
    found: dict[tuple[str, str], dict[str, int]] = {}
    for side, metrics in _mapping(sides).items():
        for metric, reasons in _mapping(metrics).items():
            for reason, count in _whole(reasons).items():
                found.setdefault((metric, reason), {})[side] = count
    for (metric, reason), counts in found.items():
        yield metric, f"unscored: {reason}", counts


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _whole(value: Any) -> dict[str, int]:
    return {key: count for key, count in _mapping(value).items() if isinstance(count, int)}
