"""Losses over a global batch, as shares that add up over forward passes and workers.

Each function takes what one forward pass computed and the global batch's totals. Its value is that
pass's share: the sum over all passes of all workers is the loss of the batch, however it was cut.
"""

import torch
from torch.nn import functional

from lr_ray.training.batch import Totals

Stats = dict[str, torch.Tensor]


def sequence_sums(values: torch.Tensor, owner: torch.Tensor, sequences: int) -> torch.Tensor:
    """Sum of `values` [targets] for each sequence, [sequences]."""
    return values.new_zeros(sequences).index_add(0, owner, values)


def sequence_means(values: torch.Tensor, owner: torch.Tensor, sequences: int) -> torch.Tensor:
    """Mean of `values` [targets] for each sequence, [sequences]."""
    counts = torch.bincount(owner, minlength=sequences)
    return sequence_sums(values, owner, sequences) / counts


def sft_loss(
    logps: torch.Tensor, owner: torch.Tensor, sequences: int, totals: Totals
) -> tuple[torch.Tensor, Stats]:
    """Cross-entropy in which every sequence weighs the same: a token weighs 1 / its sequence's targets."""
    loss = -sequence_means(logps, owner, sequences).sum() / totals.examples
    tokens = -logps.detach().sum() / totals.tokens
    return loss, {"loss": loss.detach(), "nll_loss": tokens}


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """DPO's loss of each pair (arXiv 2305.18290, eq. 7) from summed log-probs, all [pairs].

    -log σ(β ((log π(y_w) - log π_ref(y_w)) - (log π(y_l) - log π_ref(y_l))))
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -functional.logsigmoid(beta * margin)


def preference_loss(
    logps: torch.Tensor,
    owner: torch.Tensor,
    reference: torch.Tensor,
    totals: Totals,
    beta: float,
    ce_weight: float,
    ce_normalization: str,
) -> tuple[torch.Tensor, Stats]:
    """LongReward's loss (arXiv 2410.21252, sec. 3.2): L_DPO + ce_weight * L_CE on the chosen answer.

    `owner` is 2i for pair i's chosen tokens and 2i + 1 for its rejected ones; `reference` [pairs, 2].
    """
    pairs = reference.shape[0]
    chosen, rejected = sequence_sums(logps, owner, 2 * pairs).view(pairs, 2).unbind(1)
    reference = reference.to(chosen)
    losses = dpo_loss(chosen, rejected, reference[:, 0], reference[:, 1], beta)
    winners = owner % 2 == 0
    nll_token = -logps[winners].sum() / totals.tokens
    nll_sequence = -sequence_means(logps, owner, 2 * pairs)[::2].sum() / totals.examples
    nll = nll_token if ce_normalization == "token" else nll_sequence
    loss = losses.sum() / totals.examples + ce_weight * nll
    with torch.no_grad():
        rewards_chosen = beta * (chosen - reference[:, 0])
        rewards_rejected = beta * (rejected - reference[:, 1])
        shares = {
            "rewards/chosen": rewards_chosen,
            "rewards/rejected": rewards_rejected,
            "rewards/margins": rewards_chosen - rewards_rejected,
            "rewards/accuracies": (rewards_chosen > rewards_rejected).to(chosen.dtype),
            "logps/chosen": chosen,
            "logps/rejected": rejected,
        }
        stats = {name: value.sum() / totals.examples for name, value in shares.items()}
    return loss, {"loss": loss.detach(), **stats, "nll_loss": nll.detach()}
