"""Which worker sees which part of a global batch, and how token ids become tensors.

Everything here is a pure function of the global batch (`order` says what is in it), so that the loss does
not depend on how the batch is cut over workers and forward passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from lr_ray.training.order import Order

IGNORED = -100


class Example(TypedDict):
    """One sequence; `labels` equals `input_ids` where a token is learned and -100 elsewhere."""

    input_ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class PairIds:
    """Token ids of a preference pair: the shared prompt and the two answers, each with its ending.

    `reference` holds the reference model's log-probs of the chosen and the rejected answer; `margin` is
    how much higher the chosen one was scored, where that is known.

    Raises:
        ValueError: a part is empty.
    """

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    reference: tuple[float, float] = (0.0, 0.0)
    margin: float | None = None

    def __post_init__(self) -> None:
        for part, what in (
            (self.prompt, "prompt"),
            (self.chosen, "chosen answer"),
            (self.rejected, "rejected answer"),
        ):
            if not part:
                raise ValueError(f"the {what} is empty")


@dataclass(frozen=True)
class Totals:
    """What a loss over the global batch is divided by: its examples and its learned tokens.

    For pairs `tokens` counts the chosen answers, which the cross-entropy term is about.
    """

    examples: int
    tokens: int


@dataclass(frozen=True)
class Padded:
    """Right-padded sequences. Causal attention never looks right, so no attention mask is needed.

    `ids` and `targets` are [sequences, width]; `targets` marks the tokens whose log-prob is wanted.
    """

    ids: torch.Tensor
    targets: torch.Tensor

    @property
    def owner(self) -> torch.Tensor:
        """The sequence each target belongs to, [targets], in the order log-probs come in."""
        return self.targets.nonzero()[:, 0]

    @property
    def sequences(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> "Padded":
        return Padded(self.ids.to(device), self.targets.to(device))


def pad(sequences: Sequence[tuple[Sequence[int], Sequence[bool]]]) -> Padded:
    """Right-pad (ids, is target) sequences. The first token has nothing before it: never a target."""
    width = max(len(ids) for ids, _ in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    targets = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, (tokens, wanted) in enumerate(sequences):
        ids[row, : len(tokens)] = torch.as_tensor(tokens, dtype=torch.long)
        targets[row, : len(wanted)] = torch.as_tensor(wanted, dtype=torch.bool)
    targets[:, 0] = False
    return Padded(ids, targets)


def pad_examples(examples: Sequence[Example]) -> Padded:
    """SFT sequences, response tokens as targets."""
    return pad([(one["input_ids"], np.asarray(one["labels"]) != IGNORED) for one in examples])


def pad_pairs(pairs: Sequence[PairIds]) -> Padded:
    """Pairs as chosen 0, rejected 0, chosen 1, …, each after its own copy of the prompt."""
    return pad(
        [
            (pair.prompt + answer, [False] * len(pair.prompt) + [True] * len(answer))
            for pair in pairs
            for answer in (pair.chosen, pair.rejected)
        ]
    )


def batch_at(step: int, examples: int, batch_size: int, seed: int) -> list[int]:
    """Examples of optimizer step `step` (from 0). Each pass has its own order; a batch may span two."""
    return Order(examples, seed).batch(step, batch_size)


def micro_batches(
    batch: Sequence[int], lengths: Sequence[int], size: int, workers: int, rank: int
) -> list[list[int]]:
    """This worker's forward passes of a global batch, longest first.

    Neighbours in length share a forward pass (little padding), and the workers' passes of one round
    have neighbouring lengths: under ZeRO-2 and 3 they wait for each other in every round. Within a round
    the longest pass goes to the worker that had the fewest tokens so far (longest processing time first),
    because under ZeRO-1 they wait at the end of the step only.
    """
    assert len(batch) % (size * workers) == 0
    ranked = sorted(batch, key=lambda index: (-lengths[index], index))
    groups = [ranked[start : start + size] for start in range(0, len(ranked), size)]
    tokens = [0] * workers
    mine = []
    for start in range(0, len(groups), workers):
        takers = sorted(range(workers), key=lambda worker: (tokens[worker], worker))
        for worker, group in zip(takers, groups[start : start + workers], strict=True):
            tokens[worker] += sum(lengths[index] for index in group)
            if worker == rank:
                mine.append(group)
    return mine


def total_steps(examples: int, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run; the last batch of the last pass is filled from the next pass."""
    return max_steps or max(1, int(np.ceil(epochs * examples / batch_size)))
