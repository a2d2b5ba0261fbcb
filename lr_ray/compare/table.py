"""What came out of a comparison, as numbers with intervals. Pure.

The unit is the prompt: values of a prompt are means over its answers, and over seeds where a run has several;
intervals are paired bootstraps over prompts. They say how far other prompts would move the result, not how
far other seeds would: that is what the seeds' own differences beside them are for.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from lr_ray.statistics import Comparison, compare, mean_interval

Values = Mapping[str, float]
"""Prompt id → value."""
Measured = Mapping[str, Values]
"""Metric → prompt id → value."""


def pooled(seeds: Sequence[Values]) -> dict[str, float]:
    """Each prompt's mean over the seeds that measured it; seeds may have other prompts."""
    together: dict[str, list[float]] = {}
    for values in seeds:
        for prompt_id, value in values.items():
            together.setdefault(prompt_id, []).append(value)
    return {prompt_id: fmean(values) for prompt_id, values in together.items()}


def paired(one: Sequence[Values], other: Sequence[Values]) -> tuple[dict[str, float], dict[str, float]]:
    """Each prompt's means in two runs over the seeds that measured it in both: a seed that one of them lacks
    would be compared with none."""
    seeds = [(old, new, old.keys() & new.keys()) for old, new in zip(one, other, strict=False)]
    return (
        pooled([{key: old[key] for key in both} for old, _, both in seeds]),
        pooled([{key: new[key] for key in both} for _, new, both in seeds]),
    )


def table(before: Measured, runs: Mapping[str, Sequence[Measured]], against: str) -> list[dict[str, Any]]:
    """A row a run and metric: `mean` after training with its interval, against the model `before`, and
    against the run `against` (None for itself and where that has not been measured).

    `runs` has what each seed measured. `seeds` of a row are their differences from before, in that order.
    """
    rows: list[dict[str, Any]] = []
    for metric, old in before.items():
        others = [seed.get(metric, {}) for seed in runs.get(against, ())]
        for name, seeds in runs.items():
            values = [seed.get(metric, {}) for seed in seeds]
            after = pooled(values)
            apart: list[Comparison] = [compare(old, one) for one in values]
            compared = compare(*paired(others, values)) if name != against and any(others) else None
            rows.append(
                {
                    "metric": metric,
                    "run": name,
                    **mean_interval(after.values()),
                    "before": dict(compare(old, after)),
                    "against": compared and dict(compared),
                    "seeds": [one["difference"] for one in apart],
                }
            )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], before: str, against: str) -> str:
    """The rows as a Markdown table; `before` and `against` are what the two are called."""
    head = ["", "run", "mean", f"against {before}", f"against {against}", "seeds"]
    lines = [head, ["---"] * len(head)]
    last = ""
    for row in rows:
        seeds = " ".join("–" if one is None else f"{one:+.2f}" for one in row["seeds"])
        mean = "–" if row["mean"] is None else f"{row['mean']:.2f}"
        lines.append(
            [
                _plain(row["metric"]) if row["metric"] != last else "",
                *(_plain(row["run"]), mean, difference(row["before"]), difference(row["against"]), seeds),
            ]
        )
        last = row["metric"]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def difference(found: Mapping[str, Any] | None) -> str:
    """A comparison as text: the difference and its interval."""
    if found is None or found["difference"] is None:
        return "–"
    if found["low"] is None:
        return f"{found['difference']:+.2f}"
    return f"{found['difference']:+.2f} ({found['low']:+.2f} … {found['high']:+.2f})"


def _plain(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
