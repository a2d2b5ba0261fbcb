"""Batches, log-probs, the step and the plain trainer, on a tiny random model."""

import itertools
import random
import subprocess
import sys
from typing import Any

import pytest
import tiny_model
import torch

from lr_ray.config import Training
from lr_ray.training import shared_prefix
from lr_ray.training.batch import (
    Example,
    PairIds,
    Totals,
    batch_at,
    micro_batches,
    pad_examples,
    pad_pairs,
    total_steps,
)
from lr_ray.training.logps import Policy
from lr_ray.training.sft import fit
from lr_ray.training.step import Sft, learning_rate

# Models this small gain nothing from threads, and threads wait for each other on a busy machine.
torch.set_num_threads(1)


def ids(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(256) for _ in range(length)]


def make_pairs() -> list[PairIds]:
    rng = random.Random(1)
    return [PairIds(ids(rng, 30 + 9 * i), ids(rng, 4 + i), ids(rng, 8 - 2 * i)) for i in range(3)]


def copies(count: int) -> list[Example]:
    """Sequences whose second half repeats the first; only that half is learned."""
    rng = random.Random(2)
    made: list[Example] = []
    for _ in range(count):
        half = ids(rng, rng.randint(3, 6))
        made.append({"input_ids": half + half, "labels": [-100] * len(half) + half})
    return made


def test_logps_are_those_of_the_whole_model() -> None:
    model, pairs = tiny_model.model().double(), make_pairs()
    found = Policy(model)(pad_pairs(pairs)).tolist()
    expected = []
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            sequence = torch.tensor([pair.prompt + answer])
            logps = model(sequence).logits[0].log_softmax(-1)
            start = len(pair.prompt) - 1
            expected += [logps[start + k, token].item() for k, token in enumerate(answer)]
    assert found == pytest.approx(expected, abs=1e-9)


def test_packed_sequences_give_the_loss_and_gradients_of_padded_ones() -> None:
    examples = [*copies(3), {"input_ids": [1, 2, 3, 4], "labels": [1, -100, 3, 4]}]
    found = []
    for packed in (False, True):
        model = tiny_model.model().double()
        objective = Sft(packed=packed)
        if packed:
            shared_prefix.prepare(model)
        batch = objective.layout(examples)
        totals = Totals(len(examples), sum(map(objective.target_tokens, examples)))
        loss, _ = objective.loss(Policy(model)(batch), batch, examples, totals)
        loss.backward()
        found.append((loss.item(), [one.grad for one in model.parameters()]))
    (padded, gradients), (together, others) = found
    assert together == pytest.approx(padded, abs=1e-9)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_logit_tweaks_are_refused() -> None:
    model = tiny_model.model()
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(ValueError, match="final_logit_softcapping"):
        Policy(model)


def test_a_padded_batch_marks_the_answers_only() -> None:
    batch = pad_examples(
        [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    )
    assert batch.ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch.targets.tolist() == [[False, True, True], [False, False, False]]
    assert batch.owner.tolist() == [0, 0]


def test_every_pass_sees_every_example_once_in_its_own_order() -> None:
    stream = list(itertools.chain.from_iterable(batch_at(step, 10, 4, seed=3) for step in range(5)))
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]
    assert batch_at(2, 10, 4, seed=3) == stream[8:12]
    assert batch_at(0, 3, 8, seed=0)[:3] != [0, 0, 0]
    assert len(batch_at(0, 3, 8, seed=0)) == 8


def test_micro_batches_cover_the_batch_and_group_by_length() -> None:
    lengths = [5, 100, 7, 90, 6, 95, 8, 110]
    passes = [micro_batches(range(8), lengths, 2, 2, rank) for rank in range(2)]
    assert passes == [[[7, 1], [4, 0]], [[5, 3], [6, 2]]]


def test_total_steps() -> None:
    assert total_steps(10, 4, 1.0, None) == 3
    assert total_steps(10, 4, 2.0, None) == 5
    assert total_steps(10, 4, 2.0, 7) == 7
    assert total_steps(2, 16, 0.5, None) == 1


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_learning_rate_rises_and_then_follows_the_schedule(kind: Any) -> None:
    training = Training(learning_rate=1.0, warmup_ratio=0.2, lr_scheduler_type=kind)
    rates = [learning_rate(step, 10, training) for step in range(1, 11)]
    assert rates[:2] == [0.5, 1.0]
    later = {"cosine": 0.5, "linear": 5 / 9, "constant": 1.0}[kind]
    assert rates[5] == pytest.approx(later if kind != "cosine" else 0.5868, abs=1e-4)
    assert min(rates) > 0
    assert rates[2:] == sorted(rates[2:], reverse=True)


def training(**changes: Any) -> Training:
    settings = {
        "method": "sft",
        "batch_size": 16,
        "micro_batch_size": 8,
        "learning_rate": 3e-3,
        "max_steps": 40,
    }
    return Training.model_validate({**settings, **changes})


def test_fit_learns() -> None:
    history = fit(tiny_model.model(), copies(64), training())
    assert len(history) == 40
    assert history[-1]["loss"] < history[0]["loss"] - 1.5
    assert history[0]["learning_rate"] == pytest.approx(3e-3 / 4)


@pytest.mark.parametrize("micro", [1, 4, 16])
def test_fit_does_not_depend_on_the_micro_batch(micro: int) -> None:
    runs = []
    for size in (8, micro):
        model = tiny_model.model().double()
        runs.append([h["loss"] for h in fit(model, copies(24), training(max_steps=4, micro_batch_size=size))])
    assert runs[0] == pytest.approx(runs[1], abs=1e-6)


def test_fit_takes_a_generator_and_other_optimizers() -> None:
    model = tiny_model.model()
    seen: list[int] = []
    optimizer = torch.optim.SGD(model.parameters())
    endless = itertools.cycle(copies(7))
    fit(model, endless, training(max_steps=3), lambda step, _: seen.append(step), [optimizer])
    assert seen == [1, 2, 3]
    assert optimizer.param_groups[0]["lr"] > 1e-5
    with pytest.raises(ValueError, match=r"training\.max_steps"):
        fit(model, endless, training(max_steps=None))


def test_fit_refuses_what_cannot_be_learned() -> None:
    with pytest.raises(ValueError, match="no multiple"):
        fit(tiny_model.model(), copies(4), training(micro_batch_size=5))
    with pytest.raises(ValueError, match="no token to learn"):
        fit(tiny_model.model(), [{"input_ids": [1, 2], "labels": [-100, -100]}], training())
    with pytest.raises(ValueError, match="training diverged"):
        fit(tiny_model.model(), copies(64), training(learning_rate=1e30, warmup_ratio=0))


def test_the_core_imports_without_ray_and_deepspeed() -> None:
    code = (
        "import sys\n"
        "for name in ('ray', 'deepspeed', 'vllm', 'pydantic'): sys.modules[name] = None\n"
        "import lr_ray.training.sft, lr_ray.training.shared_prefix, lr_ray.training.tokens\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
