"""Every labelled pair with what each way of judging says of its answers."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lr_ray.agreement import direct
from lr_ray.agreement.inputs import Item, Label
from lr_ray.agreement.outcomes import Choice, Outcome, Values, choice, outcome
from lr_ray.config import DIMENSIONS, Weights
from lr_ray.judge.repeats import RATED
from lr_ray.judge.reward import reward, weighted
from lr_ray.labelled import CONTEXTLESS
from lr_ray.rows import Scores
from lr_ray.store import Store

REWARD = "longreward"
LENGTH = "length"
SINGLE, BOTH = "direct", "direct, both orders"
WITHOUT = "without "
METHODS = (REWARD, *DIMENSIONS, *(WITHOUT + name for name in DIMENSIONS), SINGLE, BOTH, LENGTH)
"""Ways of judging in the order in which they are shown; longer answers win by `length`."""

Judged = Mapping[str, Sequence[Mapping[str, Any]]]
"""A judging: prompt id → its answers by index, each with `reward`, `scores` and `repeats`."""


@dataclass
class Case:
    """A labelled pair. `values` are of the answers by index, one a judging (`again` has the later ones);
    a way that does not look at this pair, as faithfulness without a document, is in none of them."""

    item: Item
    label: Label
    values: dict[str, Values]
    again: list[Values]
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    choices: dict[str, Choice] = field(default_factory=dict)
    turned: bool | None = None

    @property
    def key(self) -> str:
        """The same for the same pair in another run directory."""
        sides = ((self.item.hashes[i] for i in side) for side in (self.label.chosen, self.label.rejected))
        parts = [self.item.prompt_id, *(",".join(sorted(side)) for side in sides)]
        return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()


def weights_of(item: Item, weights: Weights) -> Weights:
    """The weights a prompt is judged with: without a document, of the dimensions that need none."""
    return contextless(weights) if item.short else weights


def contextless(weights: Weights) -> Weights:
    """The weights with those of the dimensions that look at the document at 0."""
    return weights.model_copy(update={name: 0.0 for name in DIMENSIONS if name not in CONTEXTLESS})


def judging(store: Store) -> dict[str, list[dict[str, Any]]]:
    """What was judged in `store`, but for the evidence."""
    return {
        row["prompt_id"]: [
            {key: one[key] for key in ("reward", "scores", "repeats")}
            for one in sorted(row["candidates"], key=lambda one: one["index"])
        ]
        for row in store.rows("judged", ["prompt_id", "candidates"])
    }


def cases(
    items: list[Item], judgings: list[Judged], said: Mapping[str, direct.Said] | None, weights: Weights
) -> Iterator[Case]:
    """All labelled pairs with their outcomes; `said` are the direct calls, where they were made."""
    for item in items:
        own = weights_of(item, weights)
        answers = [one.get(item.prompt_id, ()) for one in judgings]
        values = _values(item, answers[0], own)
        again = [_rewards(item, one) for one in answers[1:]]
        first = [_first(one, own) for one in answers[0]]
        for label in item.labels:
            case = Case(item, label, values, again)
            case.outcomes = {name: outcome(found, label) for name, found in values.items()}
            case.choices = {REWARD: choice(values[REWARD], label)}
            if said is not None:
                calls = said.get(item.prompt_id, {})
                case.outcomes |= {
                    SINGLE: direct.single(calls, label),
                    BOTH: direct.both(calls, label),
                }
                for name in (SINGLE, BOTH):
                    case.choices[name] = _chosen(case.outcomes[name], label)
            if any(answers[0][index]["repeats"] for index in label.answers if answers[0]):
                case.turned = choice(first, label) != case.choices[REWARD]
            yield case


def _values(item: Item, answers: Sequence[Mapping[str, Any]], weights: Weights) -> dict[str, Values]:
    count = len(item.lengths)
    looked_at = weighted(weights)
    values: dict[str, Values] = {REWARD: _rewards(item, answers)}
    for name in looked_at:
        values[name] = [one["scores"][name] for one in answers] or [None] * count
        rest = weights.model_copy(update={name: 0.0})
        if weighted(rest):
            values[WITHOUT + name] = [reward(one["scores"], rest) for one in answers] or [None] * count
    values[LENGTH] = [float(length) for length in item.lengths]
    return values


def _rewards(item: Item, answers: Sequence[Mapping[str, Any]]) -> Values:
    return [one["reward"] for one in answers] or [None] * len(item.lengths)


def _first(answer: Mapping[str, Any], weights: Weights) -> float | None:
    """The reward before ratings were repeated."""
    firsts = {repeat["dimension"]: repeat["scores"][0] for repeat in answer["repeats"]}
    scores: Scores = {**answer["scores"], **{name: firsts[name] for name in RATED if name in firsts}}  # pyrefly: ignore
    return reward(scores, weights)


def _chosen(found: Outcome, label: Label) -> Choice:
    """Which answer an outcome means, where there are two."""
    if found == "tie":
        return "tie"
    if found == "unscored" or len(label.answers) > 2:
        return None
    return (label.chosen if found == "right" else label.rejected)[0]
