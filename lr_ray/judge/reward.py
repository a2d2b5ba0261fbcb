"""From verdicts and ratings to the reward (paper, section 3.2)."""

from collections.abc import Sequence

from lr_ray.config import DIMENSIONS, Weights
from lr_ray.rows import Scores

SUPPORT = {"full": 1.0, "partial": 0.5, "none": 0.0}


def faithfulness(verdicts: Sequence[str]) -> float:
    """Ten times the mean support of at least one statement."""
    return 10 * sum(SUPPORT[verdict] for verdict in verdicts) / len(verdicts)


def reward(scores: Scores, weights: Weights) -> float | None:
    """The weighted mean over the dimensions with weight; None while one of them is unscored."""
    total = 0.0
    for name in weighted(weights):
        score = scores[name]  # pyrefly: ignore
        if score is None:
            return None
        total += getattr(weights, name) * score
    return total / sum(getattr(weights, name) for name in weighted(weights))


def weighted(weights: Weights) -> list[str]:
    """The dimensions that count."""
    return [name for name in DIMENSIONS if getattr(weights, name)]
