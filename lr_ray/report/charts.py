"""What the run's own sections show: rewards, training, what was left out, time."""

from typing import Any

from lr_ray import config, meter
from lr_ray.report import plots, words
from lr_ray.report.evaluated import is_number
from lr_ray.report.facts import GROUPS, MEASURES, Gathered

CURVES = {
    "Loss": ["loss"],
    "Reward margin": ["rewards/margins"],
    "Pairs ranked right": ["rewards/accuracies"],
    "Implicit rewards": ["rewards/chosen", "rewards/rejected"],
    "Gradient norm": ["grad_norm"],
    "Learning rate": ["learning_rate"],
}


def distributions(found: Gathered) -> list[dict[str, Any]]:
    """Plots of the scores and lengths of candidates."""
    shown = [
        {"name": name, "plot": plots.scores(spreads, name)}
        for name, spreads in found.spreads.items()
        if any(spread.count for spread in spreads.values())
    ]
    if any(spread.count for spread in found.lengths.values()):
        name = "length in characters"
        shown.append({"name": name, "plot": plots.lengths(found.lengths, name)})
    return shown


def preferred(found: Gathered) -> list[dict[str, Any]]:
    """Means of all, chosen and rejected answers per measure and in length: what the pairs prefer."""
    if not found.pairs:
        return []
    rows = [{"name": name, "digits": 2, **_means(found.spreads[name])} for name in MEASURES]
    return [*rows, {"name": "length in characters", "digits": 0, **_means(found.lengths)}]


def _means(spreads: dict[str, Any]) -> dict[str, float | None]:
    means = {group: spreads[group].mean for group in GROUPS}
    both = means["chosen"] is not None and means["rejected"] is not None
    return {**means, "gap": means["chosen"] - means["rejected"] if both else None}


def curves(found: Gathered) -> list[dict[str, Any]]:
    """Plots over the steps of the training."""
    drawn = []
    for title, names in CURVES.items():
        series = {
            name: [(row["step"], float(row[name])) for row in found.metrics if is_number(row.get(name))]
            for name in names
        }
        series = {name: points for name, points in series.items() if points}
        missing = sum(
            1 for row in found.metrics for name in series if name in row and not is_number(row[name])
        )
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


def dropped(found: Gathered) -> list[dict[str, Any]]:
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


def times(found: Gathered) -> list[dict[str, Any]]:
    """Each stage with a bar as long as its share of the longest."""
    longest = max(found.timing.values(), default=0.0) or 1.0
    return [
        {"stage": stage, "time": meter.clock(seconds), "bar": plots.meter(10 * seconds / longest, stage)}
        for stage, seconds in found.timing.items()
    ]
