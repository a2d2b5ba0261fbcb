import pytest
import tiny_model
import torch
from torch import nn

from lr_ray.training import savings, shared_prefix
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


def test_a_model_without_such_mlps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training.tiled_mlp: model type Linear has no MLP"):
        savings.tile(nn.Linear(2, 2), 10)
