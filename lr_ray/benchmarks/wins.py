"""Two answers to one question compared by a judge in both orders, and win rates that discount length.

Each order gives the answer that is asked about 1, a half for a stated tie, or 0; their mean is its win. Where
the two orders name different winners that is a half too, and counted. If one order is missing, so is the win.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr_ray.benchmarks.grades import Given, given
from lr_ray.judge.core import Asks
from lr_ray.judge.direct import prefer
from lr_ray.judge.together import Missing, both, usable

WIN, FLIPPED = "win", "the order decided"
WORTH = {"first": 1.0, "tie": 0.5, "second": 0.0}
RIDGE = 0.01  # keeps the fit finite where one side wins everything; nothing beside a dozen comparisons
STEPS = 30  # of Newton's method, which converges quadratically
CHUNK = 4_000_000  # numbers in memory at once

Numbers = NDArray[np.float64]


async def grades(
    asks: Asks,
    question: str,
    answer: str,
    other: str,
    *,
    lang: str,
    index: int,
    context: str | None = None,
) -> list[Given]:
    """Whether `answer` wins against `other`, in percent, and whether only the order decided."""
    more: dict[str, Any] = {"lang": lang, "context": context, "candidate": index}
    one, two = await both(
        usable(prefer(asks, question, answer, other, **more, index=0)),
        usable(prefer(asks, question, other, answer, **more, index=1)),
    )
    length = float(len(answer) - len(other))
    if isinstance(one, Missing) or isinstance(two, Missing):
        missing = one if isinstance(one, Missing) else two
        assert isinstance(missing, Missing)
        return [given(index, name, missing, length=length) for name in (WIN, FLIPPED)]
    ahead, behind = WORTH[one.winner], 1 - WORTH[two.winner]
    analysis = f"{one.analysis}\n\n{two.analysis}"
    return [
        given(index, WIN, 50 * (ahead + behind), length=length, analysis=analysis),
        given(index, FLIPPED, 100.0 * (abs(ahead - behind) == 1), length=length),
    ]


def controlled(wins: Sequence[float], lengths: Sequence[float], counts: Numbers | None = None) -> Numbers:
    """Win rates in percent as they would be between answers of equal length, one a row of `counts`.

    After AlpacaEval 2 (arXiv 2404.04475): a logistic regression of the win on tanh(difference of lengths /
    its standard deviation), read off at a difference of zero. Its third term, how hard an instruction is for
    each model, needs the results of many models and is left out.

    Args:
        wins: 0 to 100 each, shape (n,).
        lengths: how much longer the answer was than the other, shape (n,).
        counts: how often each comparison counts, shape (samples, n); none: each once, in one sample.
    """
    won, longer = np.asarray(wins, np.float64) / 100, np.asarray(lengths, np.float64)
    spread = longer.std()
    longer = np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)
    weights = np.ones((1, len(won))) if counts is None else np.asarray(counts, np.float64)
    step = max(1, CHUNK // max(1, len(won)))
    parts = [_intercepts(won, longer, weights[i : i + step]) for i in range(0, len(weights), step)]
    return 100 / (1 + np.exp(-np.concatenate(parts)))


def _intercepts(won: Numbers, longer: Numbers, weights: Numbers) -> Numbers:
    """Of each sample, the log-odds of a win at equal length; shape (samples,)."""
    level, slope = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(STEPS):
        chance = 1 / (1 + np.exp(-np.clip(level[:, None] + np.outer(slope, longer), -30, 30)))
        missed, curved = weights * (won - chance), weights * chance * (1 - chance)
        down, across = missed.sum(axis=1) - RIDGE * level, missed @ longer - RIDGE * slope
        a, b, c = curved.sum(axis=1) + RIDGE, curved @ longer, curved @ longer**2 + RIDGE
        # Newton's step, the inverse of [[a, b], [b, c]]; a full one may overshoot where everything is won.
        area = a * c - b * b
        moves = (c * down - b * across) / area, (a * across - b * down) / area
        level += np.clip(moves[0], -2, 2)
        slope += np.clip(moves[1], -2, 2)
        if max(np.abs(move).max() for move in moves) < 1e-8:
            break
    return level
