"""What a run needs to know of each row before the first step: how long it is, and what it is scored by."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lr_ray.config import Training
from lr_ray.training import reference
from lr_ray.training.batch import Example, PairIds
from lr_ray.training.source import Rows
from lr_ray.training.step import Objective
from lr_ray.training.tokens import Encoder

Item = Example | PairIds


class Measure(NamedTuple):
    """A row's number, its tokens (a pair's prompt twice), its longest sequence, learned tokens and key."""

    row: int
    tokens: int
    longest: int
    targets: int
    key: str


class Data:
    """Rows as items, tokenised when asked for.

    Raises:
        ValueError: a row that cannot be learned from, by name.
    """

    def __init__(self, rows: Rows, encoder: Encoder, training: Training) -> None:
        self._rows, self._encoder, self._method = rows, encoder, training.method
        self._margins = training.method == "dpo" and training.margin_scale > 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Item:
        name, content = self._rows[row]
        return (
            self._encoder.pair(content, name)
            if self._method == "dpo"
            else self._encoder.example(content, name)
        )

    def name(self, row: int) -> str:
        """What the row is called in messages to the user."""
        return self._rows[row][0]

    def measure(self, row: int, objective: Objective) -> Measure:
        item = self[row]
        if isinstance(item, PairIds):
            if self._margins and (item.margin is None or item.margin < 0):
                raise ValueError(
                    f"{self.name(row)}: training.margin_scale needs score_chosen and score_rejected, "
                    f"the first at least as high; their difference is {item.margin}"
                )
            longest = len(item.prompt) + max(len(item.chosen), len(item.rejected))
            key = reference.key(item)
        else:
            longest = len(item["input_ids"])
            key = hashlib.sha256(np.asarray(item["input_ids"], dtype="<i4").tobytes()).hexdigest()[:32]
        return Measure(row, objective.length(item), longest, objective.target_tokens(item), key)


def fitting(measures: Sequence[Measure], limit: int) -> list[Measure]:
    """The rows whose sequences have at most `limit` tokens, in row order.

    Raises:
        ValueError: none has.
    """
    kept = sorted(measure for measure in measures if measure.longest <= limit)
    if not kept:
        shortest = min(measure.longest for measure in measures)
        raise ValueError(
            f"training.max_length: no row fits into {limit} tokens; "
            f"the shortest of {len(measures)} has {shortest}"
        )
    return kept


def digest(kept: Sequence[Measure]) -> str:
    """A hash of the data in its order, to tell whether a checkpoint belongs to it."""
    return hashlib.sha256("".join(measure.key for measure in kept).encode()).hexdigest()[:16]
