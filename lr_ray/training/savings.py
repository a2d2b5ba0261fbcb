"""Time for memory, beyond gradient checkpointing: MLPs in tiles, and saved activations on the host.

A gated MLP holds four times its width for every token while its layer runs backward; cut into tiles of
rows that are computed again, it holds that for one tile (ALST, arXiv 2506.13996, sec. 3.3, here with
torch's own checkpointing, so that it runs without DeepSpeed and under any of its stages).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

PROJECTIONS = ("gate_proj", "gate_up_proj", "up_proj")  # what tells an MLP of a decoder layer


def recompute(model: nn.Module) -> None:
    """Keep each layer's input only and compute the layer again in the backward pass."""
    causal: Any = model
    # The second name is that of transformers before 5.2x, which GPU machines may carry.
    enable = getattr(causal, "activation_checkpointing_enable", None) or causal.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def tile(model: nn.Module, rows: int) -> None:
    """Let every MLP of `model` take at most `rows` rows at a time; results and gradients stay the same.

    Raises:
        ValueError: the model has no gated MLP that works row by row.
    """
    mlps = [one for one in model.modules() if _is_mlp(one)]
    if not mlps:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        raise ValueError(f"training.tiled_mlp: model type {kind} has no MLP to cut into tiles")
    for mlp in mlps:
        mlp.forward = _Tiled(mlp.forward, rows)  # type: ignore[method-assign]
        # ZeRO-3 gathers weights with all ranks at every call of a module, and ranks with longer rows have
        # more tiles: to DeepSpeed the whole MLP is to be gathered at once.
        mlp._z3_leaf = True  # type: ignore[assignment]


def offload(wanted: bool, device: str) -> AbstractContextManager[Any]:
    """Within, what a forward pass saves goes to the host, and comes back as the backward pass asks for it."""
    if not wanted:
        return nullcontext()
    pinned = device.startswith("cuda")

    def pack(tensor: torch.Tensor) -> Any:
        # Weights are on the device anyway; torch's `save_on_cpu` would copy those of every layer.
        if isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter):
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pinned)
        return tensor.device, host.copy_(tensor)

    def unpack(packed: Any) -> torch.Tensor:
        return packed if isinstance(packed, torch.Tensor) else packed[1].to(packed[0], non_blocking=pinned)

    return saved_tensors_hooks(pack, unpack)


def _is_mlp(module: nn.Module) -> bool:
    # Experts of a mixture see rows in another order and shape; those MLPs are left as they are.
    return hasattr(module, "down_proj") and any(
        isinstance(getattr(module, name, None), nn.Module) for name in PROJECTIONS
    )


class _Tiled:
    """The forward of one MLP over [batch, length, hidden], in tiles along the length."""

    def __init__(self, forward: Any, rows: int) -> None:
        self._forward, self._rows = forward, rows

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[-2] <= self._rows:
            return self._forward(hidden)
        tiles = hidden.split(self._rows, dim=-2)
        if not torch.is_grad_enabled():
            return torch.cat([self._forward(one) for one in tiles], dim=-2)
        return torch.cat([checkpoint(self._forward, one, use_reentrant=False) for one in tiles], dim=-2)
