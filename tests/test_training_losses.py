"""Losses against hand computations and TRL, and that shares of a batch add up to it."""

import importlib.util
import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_model
import torch

from lr_ray.config import Training
from lr_ray.training.batch import PairIds, Totals
from lr_ray.training.logps import Policy
from lr_ray.training.losses import pair_losses, preference_loss, sft_loss
from lr_ray.training.measure import Data
from lr_ray.training.step import Dpo, step
from lr_ray.training.tokens import Encoder

KINDS = ("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo")


def one_loss(margin: float = 0.0, **settings: Any) -> float:
    """Log-ratios 1 over 2 tokens and -2 over 4 tokens."""
    values = torch.tensor([1.0]), torch.tensor([-2.0]), torch.tensor([[2, 4]]), torch.tensor([margin])
    return pair_losses(*values, Training.model_validate(settings)).item()


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def test_pair_losses_by_hand() -> None:
    assert one_loss(beta=0.15) == pytest.approx(-log_sigmoid(0.45))
    assert one_loss(beta=0.15, loss_type="sigmoid_norm") == pytest.approx(-log_sigmoid(0.15))
    assert one_loss(beta=0.15, loss_type="hinge") == pytest.approx(0.55)
    assert one_loss(beta=1, loss_type="hinge") == 0
    assert one_loss(beta=0.25, loss_type="ipo") == pytest.approx((1 - 2) ** 2)
    smoothed = -0.9 * log_sigmoid(0.45) - 0.1 * log_sigmoid(-0.45)
    assert one_loss(beta=0.15, label_smoothing=0.1) == pytest.approx(smoothed)
    unbiased = (-0.9 * log_sigmoid(0.45) + 0.1 * log_sigmoid(-0.45)) / 0.8
    assert one_loss(beta=0.15, label_smoothing=0.1, loss_type="robust") == pytest.approx(unbiased)


def test_the_reward_margin_is_an_offset() -> None:
    assert one_loss(8.0, beta=0.15, margin_scale=0.1) == pytest.approx(-log_sigmoid(0.45 - 0.8))
    assert one_loss(8.0, beta=0.15, margin_scale=0.1, loss_type="hinge") == pytest.approx(1 - 0.45 + 0.8)
    assert one_loss(8.0, beta=0.15) == one_loss(beta=0.15)


def test_settings_without_meaning_are_refused() -> None:
    for settings in (
        {"loss_type": "ipo", "margin_scale": 0.1},
        {"loss_type": "hinge", "label_smoothing": 0.1},
        {"label_smoothing": 0.5},
        {"loss_type": "kto"},
    ):
        with pytest.raises(ValueError, match=r"loss_type|label_smoothing"):
            Training.model_validate(settings)


LOGPS = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0, -6.0], dtype=torch.float64)
OWNER = torch.tensor([0, 0, 1, 2, 3, 3])  # chosen 0, rejected 0, chosen 1, rejected 1
REFERENCE = torch.tensor([[-4.0, -4.0], [-4.0, -10.0]], dtype=torch.float64)
MARGINS = torch.tensor([3.0, 0.5], dtype=torch.float64)


@pytest.mark.parametrize(("normalization", "nll"), [("token", 7 / 3), ("sequence", (1.5 + 4) / 2)])
def test_preference_loss_by_hand(normalization: Any, nll: float) -> None:
    training = Training(beta=0.5, ce_weight=0.1, ce_normalization=normalization)
    loss, stats = preference_loss(LOGPS, OWNER, REFERENCE, MARGINS, Totals(2, 3), training)
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
@pytest.mark.parametrize("kind", KINDS)
def test_shares_add_up(kind: Any, normalization: Any) -> None:
    settings: dict[str, Any] = {"beta": 0.5, "ce_weight": 0.1, "ce_normalization": normalization}
    if kind != "ipo":
        settings["margin_scale"] = 0.3
    training, totals = Training(loss_type=kind, **settings), Totals(2, 3)
    whole, stats = preference_loss(LOGPS, OWNER, REFERENCE, MARGINS, totals, training)
    first, one = preference_loss(LOGPS[:3], OWNER[:3], REFERENCE[:1], MARGINS[:1], totals, training)
    second, two = preference_loss(LOGPS[3:], OWNER[3:] - 2, REFERENCE[1:], MARGINS[1:], totals, training)
    assert (first + second).item() == pytest.approx(whole.item())
    assert {name: (one[name] + two[name]).item() for name in stats} == pytest.approx(
        {name: value.item() for name, value in stats.items()}
    )


def trl_loss(logps: torch.Tensor, lengths: list[int], reference: torch.Tensor, **args: Any) -> torch.Tensor:
    """What TRL's DPOTrainer makes of per-token `logps` [2 * pairs, width], chosen ones first.

    Its own loss code runs; only the model in front of it is replaced by the log-probs.
    """
    from accelerate import Accelerator
    from trl import DPOTrainer
    from trl.trainer.utils import FusedCausalLMOutput

    width = logps.shape[1] + 1
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths])
    pairs = len(lengths) // 2
    inputs = {
        "input_ids": torch.ones_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[:, 0],
        "ref_rejected_logps": reference[:, 1],
    }
    assert len(reference) == pairs

    def model(**_: Any) -> Any:
        rest = {name: torch.zeros_like(logps) for name in ("entropy", "mean_logits")}
        rest["is_top1"] = torch.zeros_like(logps, dtype=torch.bool)
        return FusedCausalLMOutput(log_probs=logps, **rest)

    model.training = True
    trainer = DPOTrainer.__new__(DPOTrainer)
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator = Accelerator(cpu=True)
    trainer._metrics = defaultdict(lambda: defaultdict(list))
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    trainer.aux_loss_enabled = trainer.use_weighting = False
    trainer.ld_alpha, trainer.f_divergence_type, trainer.precompute_ref_logps = None, "reverse_kl", True
    settings = {"loss_weights": [1.0], "label_smoothing": 0.0, "beta": 0.15, **args}
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer._compute_loss(model, inputs, False)


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL, the benchmark's extra, is missing")
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        *(({"loss_type": kind, "beta": 0.4}, {"loss_types": [kind], "beta": 0.4}) for kind in KINDS),
        (
            {"loss_type": "robust", "label_smoothing": 0.2},
            {"loss_types": ["robust"], "label_smoothing": 0.2},
        ),
        # Of a single pair TRL's aot is the smoothed sigmoid loss.
        ({"label_smoothing": 0.2}, {"loss_types": ["aot"], "label_smoothing": 0.2}),
        ({"ce_weight": 0.3}, {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}),
    ],
)
def test_losses_and_gradients_are_trls(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = 1 if theirs["loss_types"] == ["aot"] else 3
    lengths = [3, 5, 2, 4, 1, 6][: 2 * pairs]  # of chosen 0, chosen 1, …, then the rejected ones
    values = -5 * torch.rand(2 * pairs, 6, generator=generator, dtype=torch.float64)
    kept = torch.tensor([[0] * (6 - n) + [1] * n for n in lengths], dtype=torch.float64)
    reference = -10 * torch.rand(pairs, 2, generator=generator, dtype=torch.float64)
    padded = (values * kept).requires_grad_()
    expected = trl_loss(padded, lengths, reference, **theirs)
    expected.backward()
    order = [row for pair in range(pairs) for row in (pair, pairs + pair)]
    logps = torch.cat([values[row, 6 - lengths[row] :] for row in order]).requires_grad_()
    owner = torch.cat([torch.full((lengths[row],), place) for place, row in enumerate(order)])
    totals = Totals(pairs, sum(lengths[:pairs]))
    training = Training(**{"ce_weight": 0.0, **ours})
    loss, _ = preference_loss(logps, owner, reference, torch.zeros(pairs), totals, training)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
    assert padded.grad is not None
    gradient = torch.cat([padded.grad[row, 6 - lengths[row] :] for row in order])
    torch.testing.assert_close(logps.grad, gradient)


class Engine:
    """Gradients of a tiny model, and whether an update was asked for."""

    device = "cpu"
    offload = False
    updated = False

    def __init__(self) -> None:
        self.policy = Policy(tiny_model.model().double())

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def update(self, learning_rate: float) -> float:
        self.updated = True
        return 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_does_not_depend_on_the_passes(kind: Any) -> None:
    pairs = [
        PairIds([1, 2, 3, n], [4 + n] * (n + 1), [9] * (5 - n), (-20.0, -20.0 - n), float(n))
        for n in range(4)
    ]
    training = Training(loss_type=kind, beta=0.3, margin_scale=0.0 if kind == "ipo" else 0.2)
    objective, found = Dpo(training, shared=False), []
    for passes in ([pairs], [pairs[:1], pairs[1:3], pairs[3:]]):
        engine = Engine()
        totals = Totals(4, sum(len(pair.chosen) for pair in pairs))
        metrics = step(engine, objective, passes, totals, 1e-3, lambda local: local)
        found.append((metrics, [parameter.grad for parameter in engine.policy.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-6, atol=1e-9)


def test_a_loss_that_is_no_number_stops_before_the_update() -> None:
    engine, pair = Engine(), PairIds([1, 2], [3], [4], (math.nan, 0.0))
    with pytest.raises(ValueError, match="training diverged: the loss is nan"):
        step(engine, Dpo(Training(), shared=False), [[pair]], Totals(1, 1), 1e-3, lambda local: local)
    assert not engine.updated


def test_scores_of_a_row_become_its_margin(tmp_path: Any) -> None:
    encoder = Encoder(tiny_model.save(tmp_path))
    turn = {"prompt": [{"role": "user", "content": "a"}]}
    turn |= {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}

    def measured(scores: dict[str, Any], **settings: Any) -> Any:
        rows: Any = [("pairs.jsonl: line 1", {**turn, **scores})]
        training = Training(**settings)
        data = Data(rows, encoder, training)
        data.measure(0, Dpo(training, shared=True))
        return data[0]

    both = {"score_chosen": 9, "score_rejected": 2.5}
    assert measured(both, margin_scale=0.1).margin == 6.5
    assert measured({}).margin is None
    with pytest.raises(ValueError, match=r"line 1: training\.margin_scale needs .* difference is None"):
        measured({}, margin_scale=0.1)
    with pytest.raises(ValueError, match=r"line 1: training\.margin_scale needs .* difference is -6\.5"):
        measured({"score_chosen": 2.5, "score_rejected": 9}, margin_scale=0.1)
    for wrong in (None, "9", math.nan, True):
        with pytest.raises(ValueError, match=r"line 1: score_chosen .* is not a number"):
            measured({**both, "score_chosen": wrong})


def test_sft_weighs_sequences_the_same() -> None:
    logps, owner = torch.tensor([-1.0, -3.0, -10.0]), torch.tensor([0, 0, 1])
    loss, stats = sft_loss(logps, owner, 2, Totals(2, 3))
    assert loss.item() == pytest.approx((2 + 10) / 2)
    assert stats["nll_loss"].item() == pytest.approx(14 / 3)
