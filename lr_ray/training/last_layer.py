"""Spares the last layer and the final norm the rows of a stream that nothing reads.

Of the prompt's last-layer outputs only the last row predicts anything; its keys and values are all that
the answers need. In a small model that is a good part of the work, in a deep one it mostly saves the
float32 copies that the final norm makes of a long stream.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def selected(decoder: nn.Module, rows: torch.Tensor | None) -> Iterator[None]:
    """Within, the final norm of `decoder` sees only `rows` of its input [1, length, hidden]."""
    norm = getattr(decoder, "norm", None)
    if rows is None or not isinstance(norm, nn.Module):
        yield
        return

    def narrow(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].index_select(1, rows), *args[1:])

    handle = norm.register_forward_pre_hook(narrow)
    try:
        yield
    finally:
        handle.remove()


def prepare(decoder: nn.Module) -> None:
    """Let the last layer skip rows when it is called with `shared_prefix_rows`; once a model.

    The hooks stay: under gradient checkpointing the layer runs again in the backward pass.
    """
    layers: Any = getattr(decoder, "layers", None)
    if not layers or any(isinstance(hook, _Enter) for hook in layers[-1]._forward_pre_hooks.values()):
        return
    mlp = getattr(layers[-1], "mlp", None)
    state = _Rows()
    layers[-1].register_forward_pre_hook(_Enter(state), with_kwargs=True)
    if isinstance(mlp, nn.Module):
        mlp.register_forward_pre_hook(state.narrow)
        mlp.register_forward_hook(state.widen)


class _Rows:
    """The rows of the call under way; each call sets them anew."""

    rows: torch.Tensor | None = None
    length = 0

    def narrow(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self.rows is None:
            return None
        self.length = args[0].shape[1]
        return (args[0].index_select(1, self.rows), *args[1:])

    def widen(self, _: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if self.rows is None:
            return output
        narrow = output[0] if isinstance(output, tuple) else output
        whole = narrow.new_zeros(narrow.shape[0], self.length, narrow.shape[2])
        whole = whole.index_copy(1, self.rows, narrow)
        return (whole, *output[1:]) if isinstance(output, tuple) else whole


class _Enter:
    def __init__(self, state: _Rows) -> None:
        self.state = state

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.state.rows = kwargs.get("shared_prefix_rows")
        if self.state.rows is None:
            return None
        return args, {**kwargs, "shared_prefix_answers_only": True}
