"""Causal attention over sequences that stand in one row and may share prompts.

A span is (start, prompt, *answers): lengths of a prompt and of the answers right behind it. The prompt
attends causally to itself, each answer to ``[prompt | itself]``. A span without answers is an ordinary
sequence of a pack. Every part is one call of a fused kernel: no mask of the whole row is ever made, and
on a GPU no mask at all, except in blocks where a sliding window asks for it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch.backends import cuda
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

# Rows of a call that needs a mask: bounds the mask to this many rows of the keys in reach.
_BLOCK = 1024


class How(NamedTuple):
    """What a layer asks for: the scale of its scores (none: 1/sqrt(size)), dropout, a window in tokens."""

    scale: float | None = None
    dropout: float = 0.0
    window: int | None = None


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    spans: Sequence[Sequence[int]],
    how: How,
    answers_only: bool = False,
) -> torch.Tensor:
    """Attention over spans; `query` [1, heads, length, size], `key` and `value` [1, kv heads, length, size].

    With `answers_only` the rows of a prompt that has answers are zero, except its last one.

    Returns:
        [1, heads, length, size of a value], in the order of the row.
    """
    if torch.is_autocast_enabled(query.device.type):
        # What autocast does inside of SDPA comes after the choice of the kernel here.
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(kind), key.to(kind), value.to(kind)
    parts = []
    for start, prompt, *answers in spans:
        begin = start + prompt
        last = 1 if answers and answers_only else prompt
        parts.append(query.new_zeros(*query.shape[:2], prompt - last, value.shape[-1]))
        rows = query[:, :, begin - last : begin]
        shared_key, shared_value = key[:, :, start:begin], value[:, :, start:begin]
        parts.append(causal(rows, shared_key, shared_value, how))
        for length in answers:
            own = slice(begin, begin + length)
            keys = torch.cat([shared_key, key[:, :, own]], 2)
            values = torch.cat([shared_value, value[:, :, own]], 2)
            parts.append(causal(query[:, :, own], keys, values, how))
            begin += length
    return torch.cat(parts, 2)


def causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How) -> torch.Tensor:
    """Causal attention of `query` rows that are the last ones of the `key` rows, one kernel call or few.

    Raises:
        ValueError: the GPU has no fused kernel for this type and head size.
    """
    rows, keys = query.shape[2], key.shape[2]
    windowed = how.window is not None and keys > how.window
    if not windowed and rows in (1, keys):
        return _call(query, key, value, how, is_causal=rows > 1)
    if not windowed and query.device.type == "cuda":
        return _lower_right(query, key, value, how)
    parts = [
        _call(query[:, :, part], key[:, :, reach], value[:, :, reach], how, mask)
        for part, reach, mask in _blocks(rows, keys, how.window, query.device)
    ]
    return torch.cat(parts, 2)


def _blocks(
    rows: int, keys: int, window: int | None, device: torch.device
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Blocks of rows, the keys in their reach, and which of these each row sees."""
    offset = keys - rows
    for begin in range(0, rows, _BLOCK):
        end = min(begin + _BLOCK, rows)
        first = 0 if window is None else max(0, offset + begin - window + 1)
        own = torch.arange(offset + begin, offset + end, device=device)[:, None]
        seen = torch.arange(first, offset + end, device=device)[None]
        mask = seen <= own
        if window is not None:
            mask &= seen > own - window
        yield slice(begin, end), slice(first, offset + end), mask


def _call(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    how: How,
    mask: torch.Tensor | None = None,
    *,
    is_causal: bool = False,
) -> torch.Tensor:
    key, value, grouped = _heads(query, key, value, mask, how.dropout, is_causal=is_causal)
    return functional.scaled_dot_product_attention(
        query, key, value, mask, how.dropout, is_causal, scale=how.scale, enable_gqa=grouped
    )


def _lower_right(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, how: How) -> torch.Tensor:
    """SDPA's causal flag aligns top-left where queries are fewer than keys; this bias aligns the ends."""
    key, value, grouped = _heads(query, key, value, None, how.dropout)
    # It goes to the flash or the memory-efficient kernel, which `_heads` has made sure of.
    bias = causal_lower_right(query.shape[2], key.shape[2])
    return functional.scaled_dot_product_attention(
        query, key, value, bias, how.dropout, scale=how.scale, enable_gqa=grouped
    )


def _heads(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    *,
    is_causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """Keys and values as a fused kernel takes them, and whether it shares each over a group of heads.

    SDPA would fall back to a kernel that writes out all scores, in silence; at 64k tokens that is the end.
    """
    grouped = query.shape[1] != key.shape[1]
    if query.device.type != "cuda" or _fused(query, key, value, mask, dropout, is_causal, grouped):
        return key, value, grouped
    if grouped:
        # The memory-efficient kernel, which alone takes masks and float32, wants a key for every head.
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        if _fused(query, key, value, mask, dropout, is_causal, False):
            return key, value, False
    raise ValueError(
        f"no flash or memory-efficient attention on this GPU for {query.dtype} with heads of "
        f"{query.shape[-1]}; train in bf16"
    )


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    is_causal: bool,
    grouped: bool,
) -> bool:
    params = cuda.SDPAParams(query, key, value, mask, dropout, is_causal, grouped)
    return cuda.can_use_flash_attention(params) or cuda.can_use_efficient_attention(params)
