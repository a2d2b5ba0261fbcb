"""Whether a value given to answers agrees with a label, and what many such outcomes come to."""

from collections.abc import Iterable, Sequence
from math import comb
from typing import Literal, TypedDict

from lr_ray.agreement.inputs import Label
from lr_ray.statistics import clustered_wilson

ROUNDING = 1e-9  # rewards are means of a few floats

Outcome = Literal["right", "wrong", "tie", "unscored"]
Values = Sequence[float | None]
"""What is said of a row's answers, by index; None: nothing."""
Choice = int | Literal["tie"] | None
"""The index of the answer that stands above all others; None where one has no value."""


def outcome(values: Values, label: Label) -> Outcome:
    """Right: every chosen answer stands above every rejected one; a tie: the closest two are even.

    Unscored where any of them has no value, even if the others would decide: nothing is guessed.
    """
    chosen, rejected = _known(values, label.chosen), _known(values, label.rejected)
    if chosen is None or rejected is None:
        return "unscored"
    gap = min(chosen) - max(rejected)
    if abs(gap) <= ROUNDING:
        return "tie"
    return "right" if gap > 0 else "wrong"


def choice(values: Values, label: Label) -> Choice:
    """Which of the label's answers has the highest value."""
    known = _known(values, label.answers)
    if known is None:
        return None
    top = max(known) - ROUNDING
    best = [index for index, value in zip(label.answers, known, strict=True) if value >= top]
    return best[0] if len(best) == 1 else "tie"


def _known(values: Values, indexes: list[int]) -> list[float] | None:
    found = [values[index] for index in indexes]
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def chance(label: Label) -> float:
    """How likely values at random are right."""
    return 1 / comb(len(label.answers), len(label.chosen))


class Accuracy(TypedDict):
    """Outcomes counted. `n` of them are scored: right, wrong or ties; a tie is not right.

    `low` and `high` bound `accuracy`, right / n (95%, Wilson; a prompt's outcomes are not independent);
    `untied` is right / (right + wrong).
    """

    n: int
    accuracy: float | None
    low: float | None
    high: float | None
    right: int
    wrong: int
    ties: int
    unscored: int
    untied: float | None


def accuracy(outcomes: Iterable[tuple[str, Outcome]]) -> Accuracy:
    """What the outcomes, each with its prompt's id, come to."""
    every = list(outcomes)
    found = [kind for _, kind in every]
    right, wrong, ties = (found.count(kind) for kind in ("right", "wrong", "tie"))
    n = right + wrong + ties
    scored = [(prompt, kind == "right") for prompt, kind in every if kind != "unscored"]
    interval = clustered_wilson([hit for _, hit in scored], [prompt for prompt, _ in scored])
    return {
        "n": n,
        "accuracy": right / n if n else None,
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
        "right": right,
        "wrong": wrong,
        "ties": ties,
        "unscored": len(found) - n,
        "untied": right / (right + wrong) if right + wrong else None,
    }
