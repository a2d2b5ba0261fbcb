"""Contrast: a stronger model's answer wins over the policy's (the paper's baseline of that name)."""

from collections.abc import Callable

from lr_ray import data
from lr_ray.config import Contrast
from lr_ray.rows import Judged, JudgedCandidate

INDEX = -1
"""Of the stronger model's answer beside the policy's candidates."""


def answers(settings: Contrast) -> dict[str, data.Pointer]:
    """Where the stronger model's answers to each prompt lie.

    Raises:
        ValueError: there are none, or a row is not one.
    """
    if not settings.candidates:
        raise ValueError("rewards.contrast.candidates is not set: name files of a stronger model's answers")
    return data.answers(settings.candidates)


def rewarder(settings: Contrast) -> Callable[[Judged], tuple[Judged, int] | None]:
    """Adds the stronger model's first answer to a row, with reward 1; the policy's candidates have 0.

    So it wins over the first of the policy's samples, which are in no order of merit, that the rules of
    pairs allow.
    """
    where = answers(settings)

    def add(row: Judged) -> tuple[Judged, int] | None:
        pointer = where.get(row["prompt_id"])
        if pointer is None:
            return None
        own: list[JudgedCandidate] = [{**one, "reward": 0.0} for one in row["candidates"]]
        return {**row, "candidates": [*own, _stronger(data.answers_at(pointer)[0]["text"])]}, 0

    return add


def _stronger(text: str) -> JudgedCandidate:
    return {
        "index": INDEX,
        "text": text,
        "finish_reason": None,
        "reward": 1.0,
        "scores": {"helpfulness": None, "logicality": None, "faithfulness": None, "completeness": None},
        "unscored": [],
        "statements": [],
        "analyses": {"helpfulness": "", "logicality": "", "completeness": ""},
        "repeats": [],
    }
