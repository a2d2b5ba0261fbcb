"""Losses against hand computations, and that shares of a batch add up to it."""

import math

import pytest
import torch

from lr_ray.training.batch import Totals
from lr_ray.training.losses import dpo_loss, preference_loss, sft_loss


def test_dpo_loss_by_hand() -> None:
    # Margin (-3 - -4) - (-7 - -5) = 3; beta 0.15; -log sigmoid(0.45).
    loss = dpo_loss(*(torch.tensor([value]) for value in (-3.0, -7.0, -4.0, -5.0)), beta=0.15)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.45)), rel=1e-6)


LOGPS = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], dtype=torch.float64)
OWNER = torch.tensor([0, 0, 1, 2, 3, 3])  # chosen 0, rejected 0, chosen 1, rejected 1
REFERENCE = torch.tensor([[-4.0, -4.0], [-4.0, -10.0]], dtype=torch.float64)


@pytest.mark.parametrize(("normalization", "nll"), [("token", 7 / 3), ("sequence", (1.5 + 4) / 2)])
def test_preference_loss_by_hand(normalization: str, nll: float) -> None:
    loss, stats = preference_loss(LOGPS, OWNER, REFERENCE, Totals(2, 3), 0.5, 0.1, normalization)
    # Margins: (-3 + 4) - (-3 + 4) = 0 and (-4 + 4) - (-11 + 10) = 1.
    expected = (math.log(2) + math.log(1 + math.exp(-0.5))) / 2
    assert loss.item() == pytest.approx(expected + 0.1 * nll)
    found = {name: value.item() for name, value in stats.items()}
    assert found == pytest.approx(
        {
            "loss": expected + 0.1 * nll,
            "rewards/chosen": 0.25,
            "rewards/rejected": 0.0,
            "rewards/margins": 0.25,
            "rewards/accuracies": 0.5,
            "logps/chosen": -3.5,
            "logps/rejected": -7.0,
            "nll_loss": nll,
        }
    )


@pytest.mark.parametrize("normalization", ["token", "sequence"])
def test_shares_add_up(normalization: str) -> None:
    totals = Totals(2, 3)
    whole, stats = preference_loss(LOGPS, OWNER, REFERENCE, totals, 0.5, 0.1, normalization)
    first, one = preference_loss(LOGPS[:3], OWNER[:3], REFERENCE[:1], totals, 0.5, 0.1, normalization)
    second, two = preference_loss(LOGPS[3:], OWNER[3:] - 2, REFERENCE[1:], totals, 0.5, 0.1, normalization)
    assert (first + second).item() == pytest.approx(whole.item())
    assert {name: (one[name] + two[name]).item() for name in stats} == pytest.approx(
        {name: value.item() for name, value in stats.items()}
    )


def test_sft_weighs_sequences_the_same() -> None:
    logps, owner = torch.tensor([-1.0, -3.0, -10.0]), torch.tensor([0, 0, 1])
    loss, stats = sft_loss(logps, owner, 2, Totals(2, 3))
    assert loss.item() == pytest.approx((2 + 10) / 2)
    assert stats["nll_loss"].item() == pytest.approx(14 / 3)
