"""The optimizer step that every training in this package takes, whatever drives the optimizer.

`Sft` and `Dpo` say how examples become a batch and its loss; an `Engine` owns weights and optimizer
(plain torch in `sft`, DeepSpeed in `worker`); `step` ties them together.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from lr_ray.training import losses, savings, shared_prefix
from lr_ray.training.batch import IGNORED, Example, Padded, PairIds, Totals, pad_examples, pad_pairs
from lr_ray.training.shared_prefix import Stream

if TYPE_CHECKING:
    from lr_ray.config import Training

Batch = Padded | Stream
Item = TypeVar("Item")
Reduce = Callable[[torch.Tensor], torch.Tensor]


class Objective(Protocol, Generic[Item]):
    """What is learned from a batch of items: SFT sequences or pairs.

    `target_tokens` is an item's share of `Totals.tokens`; `length` counts its tokens, a pair's prompt
    twice, as the literature counts them and whether or not it is computed twice.
    """

    def layout(self, items: Sequence[Item]) -> Batch: ...

    def target_tokens(self, item: Item) -> int: ...

    def length(self, item: Item) -> int: ...

    def loss(
        self, logps: torch.Tensor, batch: Batch, items: Sequence[Item], totals: Totals
    ) -> tuple[torch.Tensor, losses.Stats]: ...


class Sft:
    """Supervised fine-tuning: every sequence weighs the same; `packed` ones share a row without padding."""

    def __init__(self, *, packed: bool = False) -> None:
        self.packed = packed

    def layout(self, items: Sequence[Example]) -> Batch:
        return shared_prefix.pack(items) if self.packed else pad_examples(items)

    def target_tokens(self, item: Example) -> int:
        return sum(label != IGNORED for label in item["labels"][1:])

    def length(self, item: Example) -> int:
        return len(item["input_ids"])

    def loss(
        self, logps: torch.Tensor, batch: Batch, items: Sequence[Example], totals: Totals
    ) -> tuple[torch.Tensor, losses.Stats]:
        return losses.sft_loss(logps, batch.owner, batch.sequences, totals)


class Dpo:
    """Preference training; `shared` computes the prompt of a pair once (the model must be prepared)."""

    def __init__(self, training: "Training", *, shared: bool) -> None:
        self.training = training
        self.shared = shared

    def layout(self, items: Sequence[PairIds]) -> Batch:
        return shared_prefix.stream(items) if self.shared else pad_pairs(items)

    def target_tokens(self, item: PairIds) -> int:
        return len(item.chosen)

    def length(self, item: PairIds) -> int:
        return 2 * len(item.prompt) + len(item.chosen) + len(item.rejected)

    def loss(
        self, logps: torch.Tensor, batch: Batch, items: Sequence[PairIds], totals: Totals
    ) -> tuple[torch.Tensor, losses.Stats]:
        reference = torch.tensor([pair.reference for pair in items], dtype=torch.float64, device=logps.device)
        margins = torch.tensor(
            [pair.margin or 0.0 for pair in items], dtype=torch.float64, device=logps.device
        )
        return losses.preference_loss(logps, batch.owner, reference, margins, totals, self.training)


class Engine(Protocol):
    """Weights and their optimizer on `device`. `policy` maps a batch to log-probs of its targets.

    With `offload` what a forward pass saves lies on the host.
    """

    policy: nn.Module
    device: str
    offload: bool

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of one forward pass's share of the loss."""

    def update(self, learning_rate: float) -> float:
        """Clip, take the optimizer step, clear gradients; the gradient's norm before clipping."""
        ...


def step(
    engine: Engine,
    objective: Objective[Item],
    passes: Sequence[Sequence[Item]],
    totals: Totals,
    learning_rate: float,
    reduce: Reduce,
) -> dict[str, float]:
    """One optimizer step over this worker's forward `passes` of a global batch; its metrics.

    `reduce` sums a tensor over the workers. The metrics are those of the global batch.

    Raises:
        ValueError: the loss or the gradient is not a number.
    """
    sums: losses.Stats = {}
    for items in passes:
        batch = objective.layout(items).to(engine.device)
        with savings.offload(engine.offload, engine.device):
            loss, stats = objective.loss(engine.policy(batch), batch, items, totals)
        engine.backward(loss)
        for name, value in stats.items():
            sums[name] = sums[name] + value.double() if name in sums else value.double()
    reduced = reduce(torch.stack([sums[name] for name in sums]))
    metrics = dict(zip(sums, reduced.tolist(), strict=True))
    # Before the update, so that no weight takes it, and of the whole batch, so that all workers stop.
    if not math.isfinite(metrics["loss"]):
        raise ValueError(_diverged(f"the loss is {metrics['loss']}"))
    grad_norm = engine.update(learning_rate)
    if not math.isfinite(grad_norm):
        raise ValueError(_diverged(f"loss {metrics['loss']}, gradient norm {grad_norm}"))
    return {**metrics, "grad_norm": grad_norm, "learning_rate": learning_rate}


def _diverged(what: str) -> str:
    return f"training diverged: {what}; lower training.learning_rate"


def learning_rate(step: int, total: int, training: "Training") -> float:
    """Rate of optimizer step `step` (from 1) of `total`: linear warm-up to the peak, then the schedule.

    No step has rate 0: the last one stands one step before the schedule's end.
    """
    peak = training.learning_rate
    warmup = max(1, math.ceil(training.warmup_ratio * total))
    if step <= warmup:
        return peak * step / warmup
    done = (step - warmup) / (total - warmup + 1)
    if training.lr_scheduler_type == "linear":
        return peak * (1 - done)
    if training.lr_scheduler_type == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * done))
    return peak


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, biases and norms do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def ready(model: nn.Module, training: "Training") -> None:
    """Put `model` into training mode, with gradient checkpointing and tiles where they are asked for."""
    model.train()
    if training.tiled_mlp:
        savings.tile(model, training.tiled_mlp)
    if training.gradient_checkpointing:
        savings.recompute(model)
