"""One stream ``[prompt | chosen | rejected]`` for pairs, so that the prompt is computed once.

Chosen and rejected share a prompt many times longer than themselves. In the stream the prompt attends
causally and each answer attends to ``[prompt | itself]``; positions of the rejected answer start again
at the prompt's end; an answer's first token is predicted by the prompt's last hidden state. Several
pairs stand one after another without padding. The attention goes through transformers' registry, so
that gradient checkpointing and the model's own code stay as they are; a KV cache would be as fast but
transformers drops it silently under gradient checkpointing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface

from lr_ray.training.batch import PairIds

NAME = "lr_ray_shared_prefix"


@dataclass(frozen=True)
class Stream:
    """Pairs in one row. `ids` and `positions` are [1, length].

    `spans` holds (start, prompt, chosen, rejected) lengths of each pair; `sources` [targets] are the
    positions in the stream that predict `labels` [targets], ordered chosen 0, rejected 0, chosen 1, …
    """

    ids: torch.Tensor
    positions: torch.Tensor
    spans: tuple[tuple[int, int, int, int], ...]
    sources: torch.Tensor
    labels: torch.Tensor

    @cached_property
    def owner(self) -> torch.Tensor:
        """The answer each target belongs to, [targets]: 2i is pair i's chosen, 2i + 1 its rejected."""
        lengths = torch.tensor([n for span in self.spans for n in span[2:]])
        return torch.repeat_interleave(torch.arange(self.sequences), lengths).to(self.ids.device)

    @property
    def sequences(self) -> int:
        return 2 * len(self.spans)

    def to(self, device: torch.device | str) -> "Stream":
        moved = (t.to(device) for t in (self.ids, self.positions, self.sources, self.labels))
        ids, positions, sources, labels = moved
        return Stream(ids, positions, self.spans, sources, labels)


def stream(pairs: Sequence[PairIds]) -> Stream:
    """The stream of `pairs`, one after another."""
    ids: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    labels: list[int] = []
    spans = []
    for pair in pairs:
        start, prompt = len(ids), len(pair.prompt)
        spans.append((start, prompt, len(pair.chosen), len(pair.rejected)))
        ids += pair.prompt
        positions += range(prompt)
        for answer in (pair.chosen, pair.rejected):
            begin = len(ids)
            sources += [start + prompt - 1, *range(begin, begin + len(answer) - 1)]
            ids += answer
            positions += range(prompt, prompt + len(answer))
            labels += answer
    return Stream(
        torch.tensor([ids]),
        torch.tensor([positions]),
        tuple(spans),
        torch.tensor(sources),
        torch.tensor(labels),
    )


def unsupported(model: nn.Module, longest: int) -> str | None:
    """Why pairs of up to `longest` tokens cannot go through `model` as a stream; None when they can."""
    config: Any = model.config
    if not getattr(model, "_supports_attention_backend", False):
        return f"model type {config.model_type} does not use transformers' attention interface"
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds - {"full_attention", "sliding_attention"}:
        return f"model type {config.model_type} has layers of type {', '.join(sorted(kinds))}"
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", True) and window is not None
    if slides and window < longest:
        return f"its sliding window of {window} tokens is shorter than the longest pair ({longest})"
    return None


def hidden_states(model: nn.Module, batch: Stream) -> torch.Tensor:
    """Last hidden states [1, length, hidden] of the stream; `prepare` must have seen the model."""
    causal: Any = model
    assert causal.config._attn_implementation == NAME
    return causal.get_decoder()(
        input_ids=batch.ids, position_ids=batch.positions, use_cache=False, shared_prefix_spans=batch.spans
    ).last_hidden_state


def prepare(model: nn.Module) -> None:
    """Let `model` take streams as well as ordinary batches.

    The switch is for good: under gradient checkpointing the attention runs again in the backward pass.
    """
    causal: Any = model
    causal.set_attn_implementation(NAME)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    shared_prefix_spans: tuple[tuple[int, int, int, int], ...] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over [batch, heads, length, size]; without spans plain causal attention."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__}: attention with {name} is not supported in training")
    assert attention_mask is None
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
        )

    if shared_prefix_spans is None:
        return attend(query, key, value, None).transpose(1, 2).contiguous(), None
    parts = []
    for start, prompt, *answers in shared_prefix_spans:
        shared = slice(start, start + prompt)
        parts.append(attend(query[:, :, shared], key[:, :, shared], value[:, :, shared], None))
        begin = start + prompt
        for length in answers:
            own = slice(begin, begin + length)
            k = torch.cat([key[:, :, shared], key[:, :, own]], 2)
            v = torch.cat([value[:, :, shared], value[:, :, own]], 2)
            # SDPA's own causal flag aligns top-left; an answer's queries are the last rows.
            mask = torch.ones(length, prompt + length, dtype=torch.bool, device=query.device).tril(prompt)
            parts.append(attend(query[:, :, own], k, v, mask))
            begin += length
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attend)
