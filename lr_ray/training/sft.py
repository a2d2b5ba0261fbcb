"""Fine-tuning in plain torch: no Ray, no DeepSpeed, one process, any device.

It takes the very step (`step.step`), loss and batch order that the distributed worker takes; only the
optimizer's driver differs. Used to train small models from scratch.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lr_ray.training.batch import Example, Totals, batch_at, micro_batches, total_steps
from lr_ray.training.logps import Policy
from lr_ray.training.step import Sft, learning_rate, parameter_groups, ready, step

if TYPE_CHECKING:
    from lr_ray.config import Training

Report = Callable[[int, dict[str, float]], None]


class TorchEngine:
    """Weights and AdamW of one process; bf16 through autocast with float32 weights."""

    def __init__(
        self, model: nn.Module, training: "Training", optimizers: Sequence[torch.optim.Optimizer] = ()
    ) -> None:
        ready(model, training)
        self.device = str(next(model.parameters()).device)
        self.offload = training.offload_activations
        self.policy: nn.Module = _Autocast(Policy(model), _bf16(self.device, training.precision), self.device)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.max_grad_norm = training.max_grad_norm
        groups = parameter_groups(model, training.weight_decay)
        fused = self.device.startswith("cuda")
        self.optimizers = optimizers or [torch.optim.AdamW(groups, betas=training.adam_betas, fused=fused)]

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def update(self, learning_rate: float) -> float:
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(norm)


class _Autocast(nn.Module):
    def __init__(self, policy: Policy, bf16: bool, device: str) -> None:
        super().__init__()
        self.policy, self.bf16, self.kind = policy, bf16, torch.device(device).type

    def forward(self, batch: Any) -> torch.Tensor:
        context: AbstractContextManager[Any] = nullcontext()
        if self.bf16:
            context = torch.autocast(self.kind, dtype=torch.bfloat16)
        with context:
            return self.policy(batch)


def _bf16(device: str, precision: str) -> bool:
    if precision == "auto":
        return device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return precision == "bf16"


def fit(
    model: nn.Module,
    examples: Sequence[Example] | Iterator[Example],
    training: "Training",
    on_step: Report | None = None,
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> list[dict[str, float]]:
    """Fine-tune a transformers causal `model` in place; the metrics of each optimizer step.

    Args:
        model: on the device it is to be trained on, in float32.
        examples: pre-tokenised sequences. A sequence of them is passed over in the seeded order of the
            distributed trainer; an iterator (a generator that makes data as it goes) is consumed
            `batch_size` at a time and needs `training.max_steps`.
        training: lr_ray.config.Training or anything with its attributes. Honoured: batch_size,
            micro_batch_size (sequences a forward pass; neighbours in length share one, so 8-64 for
            small models), epochs, max_steps, learning_rate and schedule, weight_decay, adam_betas,
            max_grad_norm, gradient_checkpointing, precision, seed.
        on_step: called with the step (from 1) and its metrics: loss (every sequence weighs the same),
            nll_loss (per token), grad_norm, learning_rate, num_tokens (of the step), step_time.
        optimizers: instead of AdamW, together over all of the model's parameters; the schedule's
            learning rate is set in each of their groups.

    Raises:
        ValueError: a bad setting, an example without a learned token, or a loss that is not a number.
    """
    size, micro = training.batch_size, training.micro_batch_size
    if size % micro:
        raise ValueError(f"training.batch_size {size} is no multiple of training.micro_batch_size {micro}")
    batches, total = _batches(examples, training)
    engine, objective = TorchEngine(model, training, optimizers), Sft()
    torch.manual_seed(training.seed)
    history = []
    for number, batch in zip(range(1, total + 1), batches, strict=False):
        started = time.perf_counter()
        targets = [objective.target_tokens(one) for one in batch]
        if not all(targets):
            raise ValueError(f"step {number}: an example has no token to learn")
        order = micro_batches(range(size), [len(one["input_ids"]) for one in batch], micro, 1, 0)
        passes = [[batch[index] for index in indices] for indices in order]
        rate = learning_rate(number, total, training)
        metrics = step(engine, objective, passes, Totals(size, sum(targets)), rate, lambda local: local)
        metrics["num_tokens"] = sum(objective.length(one) for one in batch)
        metrics["step_time"] = time.perf_counter() - started
        history.append(metrics)
        if on_step:
            on_step(number, metrics)
    return history


def _batches(
    examples: Sequence[Example] | Iterator[Example], training: "Training"
) -> tuple[Iterator[list[Example]], int]:
    size = training.batch_size
    if not isinstance(examples, Sequence):
        if training.max_steps is None:
            raise ValueError("training.max_steps is needed for examples that come from an iterator")
        chunks = (list(itertools.islice(examples, size)) for _ in itertools.count())
        return itertools.takewhile(lambda chunk: len(chunk) == size, chunks), training.max_steps
    if not examples:
        raise ValueError("there is no example to learn from")
    total = total_steps(len(examples), size, training.epochs, training.max_steps)
    picked = (batch_at(number, len(examples), size, training.seed) for number in range(total))
    return ([examples[index] for index in batch] for batch in picked), total
