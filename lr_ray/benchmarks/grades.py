"""Grades of answers, whoever gives them, and the rows they are kept in."""

import time
from typing import Any, TypedDict

from lr_ray import rows
from lr_ray.benchmarks.case import Case
from lr_ray.judge.together import Missing


class Given(TypedDict):
    """One grade of one answer: None because of `unscored`. `weight` is how many things it is about.

    `length` is by how many characters the answer is longer than the one it is compared with.
    """

    index: int
    metric: str
    value: float | None
    unscored: str | None
    weight: float
    length: float | None
    analysis: str


class Graded(TypedDict):
    """The grades of all answers to one prompt."""

    prompt_id: str
    benchmark: str
    unit: str
    groups: list[str]
    grades: list[Given]
    usage: rows.Usage
    graded_at: float


def given(index: int, metric: str, value: float | Missing, **more: Any) -> Given:
    """The grade, or the lack of one."""
    missing = isinstance(value, Missing)
    return {
        "index": index,
        "metric": metric,
        "value": None if missing else float(value),
        "unscored": value.reason if missing else None,
        "weight": more.get("weight", 1.0),
        "length": more.get("length"),
        "analysis": more.get("analysis", ""),
    }


def graded(case: Case, grades: list[Given], usage: rows.Usage | None = None) -> Graded:
    """The row of a case's grades."""
    return {
        "prompt_id": case.prompt_id,
        "benchmark": case.benchmark,
        "unit": case.unit,
        "groups": case.groups,
        "grades": grades,
        "usage": usage or rows.no_usage(),
        "graded_at": time.time(),
    }
