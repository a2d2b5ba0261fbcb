"""Facts told and supported, as FactScore counts them, from the statements and verdicts of judged rows.

A fact is a statement that the judge found in an answer. It is supported where its passages of the document
support it fully; partly is not enough.
"""

from collections.abc import Iterable
from statistics import fmean
from typing import Any

from lr_ray.judge.core import NO_STATEMENTS, NO_WEIGHT

COUNT, SUPPORTED = "facts per answer", "facts supported (%)"


def of_answer(candidate: dict[str, Any]) -> dict[str, float | str | None]:
    """Of a judged candidate: how many facts it tells and which share is supported, in percent.

    A text in place of a number is why there is none; nothing is said where faithfulness was not judged.
    """
    statements = candidate["statements"]
    reason = next((u["reason"] for u in candidate["unscored"] if u["dimension"] == "faithfulness"), "")
    if not statements:
        if reason == NO_WEIGHT:
            return {}
        if not reason or reason == NO_STATEMENTS:
            return {COUNT: 0.0, SUPPORTED: None}  # an answer without facts has no share of them
        return {COUNT: reason, SUPPORTED: reason}
    missing = next((s["unscored"] or "no verdict" for s in statements if s["verdict"] is None), None)
    if missing is not None:
        return {COUNT: float(len(statements)), SUPPORTED: missing}
    full = sum(s["verdict"] == "full" for s in statements)
    return {COUNT: float(len(statements)), SUPPORTED: 100.0 * full / len(statements)}


def means(rows: Iterable[dict[str, Any]]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """Metric → prompt id → mean over the prompt's answers; and metric → reason → how many lack it."""
    found: dict[str, dict[str, float]] = {COUNT: {}, SUPPORTED: {}}
    unscored: dict[str, dict[str, int]] = {}
    for row in rows:
        told = [of_answer(candidate) for candidate in row["candidates"]]
        for metric, of_prompt in found.items():
            values = [one[metric] for one in told if metric in one]
            numbers = [value for value in values if isinstance(value, float)]
            if numbers:
                of_prompt[row["prompt_id"]] = fmean(numbers)
            for reason in (value for value in values if isinstance(value, str)):
                counted = unscored.setdefault(metric, {})
                counted[reason] = counted.get(reason, 0) + 1
    return found, unscored
