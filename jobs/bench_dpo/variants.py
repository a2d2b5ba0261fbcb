"""Ways to take the gradient of DPO's loss on one pair. A step is forward, loss and backward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from lr_ray.training import shared_prefix
from lr_ray.training.batch import PairIds, Totals, pad_pairs
from lr_ray.training.logps import Policy, head_logps
from lr_ray.training.losses import preference_loss

Step = Callable[[], torch.Tensor]
NAMES = {
    "trl": "TRL",
    "full": "two sequences, all logits",
    "response": "two sequences, answers' logits",
    "whole": "shared prefix, last layer whole",
    "shared": "shared prefix",
}


@dataclass(frozen=True)
class Loss:
    """Plain DPO, as TRL computes it by default."""

    loss_type: str = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    margin_scale: float = 0.0
    ce_weight: float = 0.0
    ce_normalization: str = "token"


def make(variant: str, model: Any, pair: PairIds, *, bf16: bool = False) -> Step:
    """The step of `variant`; it leaves gradients behind and returns the loss. `bf16` is autocast."""
    if variant == "trl":
        from jobs.bench_dpo.trl import make_trl

        return make_trl(model, pair, bf16=bf16)
    policy = _logps(variant, model, pair)
    owner = torch.tensor([0] * len(pair.chosen) + [1] * len(pair.rejected), device=model.device)
    reference = torch.tensor([pair.reference], dtype=torch.float64, device=model.device)
    totals = Totals(1, len(pair.chosen))

    def step() -> torch.Tensor:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            logps = policy()
        loss, _ = preference_loss(logps, owner, reference, torch.zeros(1), totals, Loss())
        loss.backward()
        return loss.detach()

    return step


def _logps(variant: str, model: Any, pair: PairIds) -> Callable[[], torch.Tensor]:
    device = model.device
    if variant == "full":
        batch = pad_pairs([pair]).to(device)
        return lambda: _all_logits(model, batch.ids)[batch.targets[:, 1:]]
    policy = Policy(model)
    if variant == "response":
        batch = pad_pairs([pair]).to(device)
        return lambda: policy(batch)
    shared_prefix.prepare(model)
    stream = shared_prefix.stream([pair]).to(device)
    if variant == "shared":
        return lambda: policy(stream)
    assert variant == "whole"
    return lambda: head_logps(model, shared_prefix.hidden_states(model, stream, narrow=False), stream.labels)


def _all_logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return -losses.view(ids.shape[0], -1)
