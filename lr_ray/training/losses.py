"""Losses over a global batch, as shares that add up over forward passes and workers.

Each function takes what one forward pass computed and the global batch's totals. Its value is that
pass's share: the sum over all passes of all workers is the loss of the batch, however it was cut.
"""

from typing import Protocol

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


class Preference(Protocol):
    """What is minimised; `lr_ray.config.Training` is one, and documents each field."""

    @property
    def loss_type(self) -> str: ...
    @property
    def beta(self) -> float: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def margin_scale(self) -> float: ...
    @property
    def ce_weight(self) -> float: ...
    @property
    def ce_normalization(self) -> str: ...


def pair_losses(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    lengths: torch.Tensor,
    margins: torch.Tensor,
    preference: Preference,
) -> torch.Tensor:
    """The loss of each pair from log-ratios log π - log π_ref summed over the answer, all [pairs].

    With z = β (chosen - rejected) - margin_scale * margin, where the offset is that of arXiv 2402.10571:

    - sigmoid: -log σ(z), arXiv 2305.18290 eq. 7; smoothed by ε: -(1 - ε) log σ(z) - ε log σ(-z)
    - sigmoid_norm: the same, with each log-ratio divided by its answer's tokens
    - robust: the smoothed loss without its bias, arXiv 2403.00409 eq. 11
    - hinge: max(0, 1 - z), arXiv 2305.10425
    - ipo: (h - 1/(2β))², h the difference of log-ratios per token, arXiv 2310.12036 eq. 17

    Args:
        chosen: log-ratios of the preferred answers.
        rejected: log-ratios of the others.
        lengths: tokens of the two answers, [pairs, 2].
        margins: how much higher the chosen answer was scored.
        preference: which loss, and its constants.
    """
    kind, smoothing = preference.loss_type, preference.label_smoothing
    if kind in ("ipo", "sigmoid_norm"):
        chosen, rejected = chosen / lengths[:, 0], rejected / lengths[:, 1]
    if kind == "ipo":
        return (chosen - rejected - 1 / (2 * preference.beta)) ** 2
    logits = preference.beta * (chosen - rejected) - preference.margin_scale * margins
    if kind == "hinge":
        return torch.relu(1 - logits)
    clean, flipped = -functional.logsigmoid(logits), -functional.logsigmoid(-logits)
    if kind == "robust":
        return ((1 - smoothing) * clean - smoothing * flipped) / (1 - 2 * smoothing)
    assert kind in ("sigmoid", "sigmoid_norm")
    return (1 - smoothing) * clean + smoothing * flipped if smoothing else clean


def preference_loss(
    logps: torch.Tensor,
    owner: torch.Tensor,
    reference: torch.Tensor,
    margins: torch.Tensor,
    totals: Totals,
    preference: Preference,
) -> tuple[torch.Tensor, Stats]:
    """LongReward's loss (arXiv 2410.21252, sec. 3.2): L_DPO + ce_weight * L_CE on the chosen answer.

    `owner` is 2i for pair i's chosen tokens and 2i + 1 for its rejected ones; `reference` [pairs, 2] holds
    the reference's summed log-probs, `margins` [pairs] the differences of the scores.
    """
    pairs = reference.shape[0]
    sums = sequence_sums(logps, owner, 2 * pairs).view(pairs, 2)
    lengths = torch.bincount(owner, minlength=2 * pairs).view(pairs, 2)
    ratios = sums - reference.to(sums)
    losses = pair_losses(ratios[:, 0], ratios[:, 1], lengths, margins.to(sums), preference)
    winners = owner % 2 == 0
    nll_token = -logps[winners].sum() / totals.tokens
    nll_sequence = -(sums[:, 0] / lengths[:, 0]).sum() / totals.examples
    nll = nll_token if preference.ce_normalization == "token" else nll_sequence
    loss = losses.sum() / totals.examples + preference.ce_weight * nll
    with torch.no_grad():
        rewards = preference.beta * ratios
        shares = {
            "rewards/chosen": rewards[:, 0],
            "rewards/rejected": rewards[:, 1],
            "rewards/margins": rewards[:, 0] - rewards[:, 1],
            "rewards/accuracies": (rewards[:, 0] > rewards[:, 1]).to(sums.dtype),
            "logps/chosen": sums[:, 0],
            "logps/rejected": sums[:, 1],
        }
        stats = {name: value.sum() / totals.examples for name, value in shares.items()}
    return loss, {"loss": loss.detach(), **stats, "nll_loss": nll.detach()}
