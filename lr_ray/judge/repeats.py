"""Where best and worst of a prompt are close, more samples of the ratings decide by their mean.

A rating is one draw from a judge that would not always say the same, and a pair of two close answers may
turn round on a repeat. Verdicts on statements are checks rather than ratings, and are not repeated.
"""

from collections.abc import Awaitable, Callable
from statistics import fmean, variance

from lr_ray.config import Judge
from lr_ray.judge.reward import reward, weighted
from lr_ray.judge.together import everything
from lr_ray.rows import JudgedCandidate, Repeat, Scores

RATED = ("helpfulness", "logicality", "completeness")
_ROUNDING = 1e-9  # rewards are means of a few floats

Again = Callable[[str, JudgedCandidate, int], Awaitable[float | None]]
"""One more rating: (dimension, candidate, number of the sample from 1) → score, None where unusable."""


async def settle(candidates: list[JudgedCandidate], again: Again, settings: Judge) -> list[JudgedCandidate]:
    """The candidates with repeated ratings, where best and worst are close; else as they are.

    A score becomes the mean of the first rating and the usable repeats. An unusable repeat is one sample
    fewer, and counted. Candidates without all their scores are neither repeated nor changed.
    """
    wanted = settings.repeats.samples
    if not wanted or not close(candidates, settings.repeats.margin):
        return candidates
    dimensions = [name for name in RATED if name in weighted(settings.weights)]
    asked = [
        again(name, candidate, sample)
        for candidate in candidates
        if candidate["reward"] is not None
        for name in dimensions
        for sample in range(1, wanted + 1)
    ]
    samples = iter(await everything(asked))
    settled: list[JudgedCandidate] = []
    for candidate in candidates:
        if candidate["reward"] is None:
            settled.append(candidate)
            continue
        found = {name: [next(samples) for _ in range(wanted)] for name in dimensions}
        settled.append(_with(candidate, found, settings))  # pyrefly: ignore
    return settled


def close(candidates: list[JudgedCandidate], margin: float) -> bool:
    """Whether at least two different answers have rewards, the best at most `margin` above the worst."""
    scored = [(candidate["reward"], candidate["text"].strip()) for candidate in candidates]
    rewards = [score for score, _ in scored if score is not None]
    texts = {text for score, text in scored if score is not None}
    return len(texts) > 1 and max(rewards) - min(rewards) <= margin + _ROUNDING


def _with(
    candidate: JudgedCandidate, found: dict[str, list[float | None]], settings: Judge
) -> JudgedCandidate:
    scores: Scores = {**candidate["scores"]}
    repeats: list[Repeat] = []
    for name, samples in found.items():
        first = candidate["scores"][name]  # pyrefly: ignore
        usable = [first, *(score for score in samples if score is not None)]
        scores[name] = fmean(usable)  # pyrefly: ignore
        repeats.append(
            {
                "dimension": name,
                "scores": usable,
                "missing": len(samples) + 1 - len(usable),
                "variance": variance(usable) if len(usable) > 1 else None,
            }
        )
    return {**candidate, "scores": scores, "reward": reward(scores, settings.weights), "repeats": repeats}
