"""Run directory → report.html: one page, self-contained, without a script.

Everything a model, a document or a file of the run says is untrusted: Jinja escapes all of it, what
would reorder or hide text is made visible, lengths are bounded and say so, and the page's own policy
forbids scripts and loads of any kind.
"""

import base64
import hashlib
import math
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from lr_ray import config, meter
from lr_ray.report import plots, words
from lr_ray.report.facts import GROUPS, MEASURES, Gathered, gather
from lr_ray.store import Store

CURVES = {
    "Loss": ["loss"],
    "Reward margin": ["rewards/margins"],
    "Pairs ranked right": ["rewards/accuracies"],
    "Implicit rewards": ["rewards/chosen", "rewards/rejected"],
    "Gradient norm": ["grad_norm"],
    "Learning rate": ["learning_rate"],
}


def write(store: Store) -> None:
    """Write report.html from what the run directory holds; sections without data are left out.

    Raises:
        ValueError: a file of the run is not what it should be; names the file.
    """
    store.write(render(gather(store)).encode(), "report.html")


def render(found: Gathered) -> str:
    """The page."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    folder = files("lr_ray.report")
    sources = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in ("page.html.jinja", "example.html.jinja")
    }
    # The style sheet is ours and static; its hash in the page's policy keeps every other one out.
    style = (folder / "style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = Environment(
        loader=DictLoader(sources),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=words.finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page.filters.update(
        clip=words.clip, number=words.number, whole=words.whole, signed=words.signed, percent=words.percent
    )
    return page.get_template("page.html.jinja").render(
        style=Markup(style),  # noqa: S704 - ours, not data
        digest=digest,
        found=found,
        verdict=words.verdict(found),
        tiles=words.tiles(found),
        comparison=_comparison(found),
        distributions=_distributions(found),
        preferred=_preferred(found),
        curves=_curves(found),
        dropped=_dropped(found),
        effort=words.effort(found),
        times=_times(found),
        meter=plots.meter,
        verdicts=words.VERDICTS,
        dimensions=config.DIMENSIONS,
    )


def _comparison(found: Gathered) -> list[dict[str, Any]]:
    """The table's groups of rows: the judge's metrics on one axis, each other metric on its own."""
    rows = (found.evaluation or {}).get("table", [])
    judged = [row for row in rows if row["metric"] in MEASURES]
    tested = [row for row in rows if "benchmark" in row]
    others = [row for row in rows if row["metric"] not in MEASURES and "benchmark" not in row]
    limit = max((abs(row[edge]) for row in judged for edge in ("low", "high") if _is(row[edge])), default=1.0)
    named = {"Judge, 0 to 10": judged, "Facts and benchmarks": tested, "Checks the loop has not seen": others}
    return [
        {"title": title, "rows": [_compared(row, limit) for row in members]}
        for title, members in named.items()
        if members
    ]


def _compared(row: dict[str, Any], limit: float) -> dict[str, Any]:
    """A row of the comparison with its plot; a metric that is not the judge's has its own axis."""
    judged = row["metric"] in MEASURES
    digits = 2 if judged or abs(row["before"] or 0) > 1.5 else 3
    plot: Markup | None = None
    low, middle, high = row["low"], row["difference"], row["high"]
    if all(_is(value) for value in (low, middle, high)):
        title = f"{row['metric']}: {middle:+.3f}, {low:+.3f} to {high:+.3f}"
        plot = plots.interval(low, middle, high, limit if judged else max(abs(low), abs(high)), title)
    return {**row, "digits": digits, "plot": plot}


def _is(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _distributions(found: Gathered) -> list[dict[str, Any]]:
    shown = [
        {"name": name, "plot": plots.scores(spreads, name)}
        for name, spreads in found.spreads.items()
        if any(spread.count for spread in spreads.values())
    ]
    if any(spread.count for spread in found.lengths.values()):
        name = "length in characters"
        shown.append({"name": name, "plot": plots.lengths(found.lengths, name)})
    return shown


def _preferred(found: Gathered) -> list[dict[str, Any]]:
    """Means of all, chosen and rejected answers per measure and in length: what the pairs prefer."""
    if not found.pairs:
        return []
    rows = [{"name": name, "digits": 2, **_means(found.spreads[name])} for name in MEASURES]
    return [*rows, {"name": "length in characters", "digits": 0, **_means(found.lengths)}]


def _means(spreads: dict[str, Any]) -> dict[str, float | None]:
    means = {group: spreads[group].mean for group in GROUPS}
    both = means["chosen"] is not None and means["rejected"] is not None
    return {**means, "gap": means["chosen"] - means["rejected"] if both else None}


def _curves(found: Gathered) -> list[dict[str, Any]]:
    drawn = []
    for title, names in CURVES.items():
        series = {
            name: [(row["step"], float(row[name])) for row in found.metrics if _is(row.get(name))]
            for name in names
        }
        series = {name: points for name, points in series.items() if points}
        missing = sum(1 for row in found.metrics for name in series if name in row and not _is(row[name]))
        if series:
            drawn.append(
                {
                    "title": title,
                    "names": list(series),
                    "plot": plots.curves(series, title),
                    "missing": missing,
                }
            )
    return drawn


def _dropped(found: Gathered) -> list[dict[str, Any]]:
    """Tables of (where, reason, count) with a title and what the counts are out of."""
    tables = []
    if found.audit:
        reasons = sorted(found.audit.get("dropped", {}).items(), key=lambda item: -item[1])
        rows = [("pairs", reason, count) for reason, count in reasons if count]
        of = f"of {words.whole(found.audit.get('prompts', 0))} judged prompts"
        tables.append({"title": "Prompts without a pair", "where": "stage", "of": of, "rows": rows})
    tables.append(
        {
            "title": "Prompts that failed for good",
            "where": "stage",
            "of": "prompts",
            "rows": found.failed.rows(),
        }
    )
    of = f"of {words.whole(len(config.DIMENSIONS) * found.candidates)} scores"
    tables.append(
        {"title": "Scores that are missing", "where": "dimension", "of": of, "rows": found.unscored.rows()}
    )
    held_out = [
        (dimension, f"held-out answers, {side}", count)
        for side, counts in ((found.evaluation or {}).get("unscored") or {}).items()
        for dimension, count in counts.items()
        if count
    ]
    tables.append(
        {"title": "Missing in the evaluation", "where": "dimension", "of": "scores", "rows": held_out}
    )
    return [table for table in tables if table["rows"]]


def _times(found: Gathered) -> list[dict[str, Any]]:
    longest = max(found.timing.values(), default=0.0) or 1.0
    return [
        {"stage": stage, "time": meter.clock(seconds), "bar": plots.meter(10 * seconds / longest, stage)}
        for stage, seconds in found.timing.items()
    ]
