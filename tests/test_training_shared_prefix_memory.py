"""What a step keeps in memory: logits of answers only, a chunk at a time; no mask of the row; no copies."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import tiny_model
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lr_ray.training import logps, shared_prefix
from lr_ray.training.batch import PairIds, pad_pairs
from lr_ray.training.logps import Policy, head_logps

VOCAB = 20_000
torch.set_num_threads(1)


class Live(TorchDispatchMode):
    """Bytes of all storages that operators made and that still live; `peak` is their highest sum."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {
            t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage(), before)
        return result

    def _see(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        name = storage._cdata
        if name in self.known or name in before:
            return
        self.known.add(name)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, name, size)

    def _drop(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size


def peak(run: Callable[[], torch.Tensor]) -> int:
    with Live() as live:
        run().sum().backward()
    return live.peak


def stream(prompt: int, answer: int) -> shared_prefix.Stream:
    return shared_prefix.stream([PairIds([1] * prompt, [2] * answer, [3] * answer)])


def test_the_meter_sees_what_lives_and_what_is_freed() -> None:
    weight = torch.ones(1000, requires_grad=True)
    kept = peak(lambda: (weight * 2).exp().exp())  # two results are kept for the backward pass
    freed = peak(lambda: weight * 2 * 2 * 2)
    assert kept >= 3 * 4000
    assert freed < kept


def test_the_prompts_length_does_not_reach_the_logits() -> None:
    model = tiny_model.model(vocab_size=VOCAB, hidden_size=16, num_attention_heads=2, num_key_value_heads=1)
    shared_prefix.prepare(model)
    policy = Policy(model)
    short, long = (peak(lambda n=n: policy(stream(n, 4))) for n in (32, 288))
    logits_of_the_rest = 256 * VOCAB * 4
    assert long - short < logits_of_the_rest / 10
    # The same test sees them where they are.
    plain = pad_pairs([PairIds([1] * 288, [2] * 4, [3] * 4)])
    assert peak(lambda: model(plain.ids).logits.float().log_softmax(-1)) > 2 * logits_of_the_rest


def test_the_answers_length_reaches_the_logits_up_to_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model.model(vocab_size=VOCAB, hidden_size=16)
    monkeypatch.setattr(logps, "_CHUNK_LOGITS", 32 * VOCAB)

    def head(rows: int) -> Callable[[], torch.Tensor]:
        hidden = torch.randn(rows, 16, requires_grad=True)
        return lambda: head_logps(model, hidden, torch.zeros(rows, dtype=torch.long))

    chunk = 32 * VOCAB * 4
    some, many = peak(head(64)), peak(head(640))
    assert many - some < chunk / 2
    assert many < 5 * chunk  # logits, their log-softmax and two gradients of one chunk
    monkeypatch.setattr(logps, "_CHUNK_LOGITS", 640 * VOCAB)
    assert peak(head(640)) > 640 * VOCAB * 4 * 2


def test_chunks_change_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model.model().double()
    shared_prefix.prepare(model)
    batch, found = stream(20, 30), []
    for rows in (1000, 7):
        monkeypatch.setattr(logps, "_CHUNK_LOGITS", rows * model.config.vocab_size)
        values = Policy(model)(batch)
        values.square().sum().backward()
        found.append((values.detach(), [p.grad.clone() for p in model.parameters()]))
        model.zero_grad()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-9)


def test_no_mask_and_no_copied_keys_for_the_prompt() -> None:
    """One layer's attention over a prompt of 2,048 keeps less than a mask of the row would take."""
    from lr_ray.training.attention import How, attend

    length, size = 2048 + 2 * 16, 8
    query = torch.randn(1, 4, length, size, requires_grad=True)
    key, value = (torch.randn(1, 1, length, size, requires_grad=True) for _ in range(2))
    grown = peak(lambda: attend(query, key, value, ((0, 2048, 16, 16),), How()))
    assert grown < length * length / 2
    row = length * size * 4
    # Outputs and gradients have 4 heads; the two answers copy keys and values of one head, not of four.
    assert grown < 4 * row * 6 + 2 * 2 * row * 4
