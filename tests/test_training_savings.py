import pytest
import tiny_model
import torch
from torch import nn

from lr_ray.training import logps, savings, shared_prefix
from lr_ray.training.batch import PairIds
from lr_ray.training.logps import Policy

PAIR = PairIds([number % 200 for number in range(400)], [1, 2, 3], [4, 5])


def learned(checkpointing: bool, tile: int = 0, offload: bool = False) -> tuple[list[torch.Tensor], int]:
    """Gradients of a stream's log-probs, and the most rows any MLP saw at once."""
    model = tiny_model.model().double().train()
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    shared_prefix.prepare(model)
    rows = []
    for layer in model.model.layers:
        layer.mlp.gate_proj.register_forward_hook(lambda *call: rows.append(call[2].shape[1]))
    if tile:
        savings.tile(model, tile)
    with savings.offload(offload, "cpu"):
        logps = Policy(model)(shared_prefix.stream([PAIR]))
    logps.sum().backward()
    return [one.grad for one in model.parameters() if one.grad is not None], max(rows)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_tiles_and_the_host_change_no_gradient(checkpointing: bool) -> None:
    plain, widest = learned(checkpointing)
    assert widest == 405
    for tile, offload in ((100, False), (0, True), (100, True)):
        found, rows = learned(checkpointing, tile, offload)
        assert rows == (tile or widest)
        for one, other in zip(found, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_tiles_save_a_tile_in_place_of_the_stream() -> None:
    model = tiny_model.model(intermediate_size=512).train()
    mlp = model.model.layers[0].mlp
    hidden = torch.randn(1, 1000, 32, requires_grad=True)

    def saved() -> int:
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (sizes.append(tensor.nbytes), tensor)[1], lambda tensor: tensor
        ):
            mlp(hidden)
        return sum(sizes)

    before = saved()
    savings.tile(model, 100)
    assert saved() < 0.1 * before


def test_longer_rows_are_no_further_calls_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under ZeRO-3 every call of a module gathers its weights with all ranks, whose rows differ in length."""
    monkeypatch.setattr(logps, "_CHUNK_LOGITS", 2 * 261)
    model = tiny_model.model().train()
    savings.recompute(model)
    shared_prefix.prepare(model)
    savings.tile(model, 16)
    policy, calls = Policy(model), []
    for name, one in model.named_modules():
        one.register_forward_hook(lambda *_, name=name: calls.append(name))
    for pair in (PAIR, PairIds([1, 2], [3], [4])):
        calls.clear()
        policy(shared_prefix.stream([pair])).sum().backward()
        assert calls.count("lm_head") == 1
    gathered = {name for name, one in model.named_modules() if getattr(one, "_z3_leaf", False)}
    assert gathered == {"lm_head", "model.layers.0.mlp", "model.layers.1.mlp"}


def test_checkpointing_goes_by_its_older_name_where_there_is_no_other() -> None:
    class Older(nn.Module):
        given: object = None

        def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: object = None) -> None:
            self.given = gradient_checkpointing_kwargs

    older = Older()
    savings.recompute(older)
    assert older.given == {"use_reentrant": False}


def test_weights_stay_where_they_are_when_activations_go() -> None:
    context = savings.offload(True, "cpu")
    assert isinstance(context, torch.autograd.graph.saved_tensors_hooks)
    for trained in (True, False):
        weight = nn.Linear(3, 4).requires_grad_(trained).weight
        for one in (weight, weight.t()):
            assert context.pack_hook(one) is one
    assert context.pack_hook(torch.ones(3)) is not None
    where, copy = context.pack_hook(torch.ones(3))
    assert context.unpack_hook((where, copy)).equal(torch.ones(3))


def test_a_model_without_such_mlps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training.tiled_mlp: model type Linear has no MLP"):
        savings.tile(nn.Linear(2, 2), 10)
