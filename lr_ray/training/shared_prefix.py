"""One stream ``[prompt | chosen | rejected]`` for pairs, so that the prompt is computed once.

Chosen and rejected share a prompt many times longer than themselves. In the stream the prompt attends
causally and each answer attends to ``[prompt | itself]``; positions of the rejected answer start again
at the prompt's end; an answer's first token is predicted by the prompt's last hidden state. Several
pairs stand one after another without padding. The attention goes through transformers' registry, so
that gradient checkpointing and the model's own code stay as they are; a KV cache would be as fast but
transformers drops it silently under gradient checkpointing.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from lr_ray.training import attention, families, last_layer
from lr_ray.training.batch import IGNORED, Example, PairIds

NAME = "lr_ray_shared_prefix"
_STREAMING: ContextVar[bool] = ContextVar("streaming", default=False)


@dataclass(frozen=True)
class Stream:
    """Sequences in one row, without padding. `ids` and `positions` are [1, length].

    `spans` are `attention`'s: (start, prompt, chosen, rejected) lengths of each pair, or (start, length) of
    each sequence without branches. `sources` [targets] are the positions in the stream that predict
    `labels` [targets], which belong to the sequences `owner` [targets]; of pairs 2i is pair i's chosen
    answer, 2i + 1 its rejected one, and targets come in this order.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    spans: tuple[tuple[int, ...], ...]
    sources: torch.Tensor
    labels: torch.Tensor
    owner: torch.Tensor
    sequences: int

    def to(self, device: torch.device | str) -> "Stream":
        tensors = ("ids", "positions", "sources", "labels", "owner")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in tensors})


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
    lengths = torch.tensor([length for span in spans for length in span[2:]])
    return Stream(
        torch.tensor([ids]),
        torch.tensor([positions]),
        tuple(spans),
        torch.tensor(sources),
        torch.tensor(labels),
        torch.repeat_interleave(torch.arange(len(lengths)), lengths),
        len(lengths),
    )


def pack(examples: Sequence[Example]) -> Stream:
    """The stream of SFT sequences, one after another; none sees another."""
    spans, sources, labels, owner = [], [], [], []
    start = 0
    for number, example in enumerate(examples):
        wanted = np.flatnonzero(np.asarray(example["labels"][1:]) != IGNORED)
        spans.append((start, len(example["input_ids"])))
        sources.append(torch.from_numpy(start + wanted))
        labels.append(torch.as_tensor(example["labels"])[wanted + 1])
        owner.append(torch.full((len(wanted),), number))
        start += len(example["input_ids"])
    return Stream(
        torch.cat([torch.as_tensor(one["input_ids"]) for one in examples])[None],
        torch.cat([torch.arange(length) for _, length in spans])[None],
        tuple(spans),
        torch.cat(sources),
        torch.cat(labels),
        torch.cat(owner),
        len(examples),
    )


def unsupported(model: nn.Module, longest: int) -> str | None:
    """Why pairs whose longest sequence has `longest` tokens cannot go through `model` as a stream, or None.

    A family that no test of ours holds is tried out on a short pair first: its logits must be those of
    two plain passes.
    """
    causal: Any = model
    reason = families.refusal(model, longest)
    known = causal.config.model_type in families.TESTED or causal.config._attn_implementation == NAME
    return reason if reason or known else _probe(model)


def enable(model: nn.Module, longest: int) -> str | None:
    """Prepare `model` for streams of pairs whose longest sequence has `longest` tokens, or say why not."""
    reason = unsupported(model, longest)
    if reason is None:
        prepare(model)
    return reason


def hidden_states(model: nn.Module, batch: Stream, *, narrow: bool = True) -> torch.Tensor:
    """Hidden states [targets, hidden] that predict the batch's labels; `prepare` must have seen the model.

    With `narrow` the last layer computes the prompt's keys and values but not its outputs, which nothing
    reads, and the final norm sees the targets' rows alone.
    """
    causal: Any = model
    assert causal.config._attn_implementation == NAME
    decoder = causal.get_decoder()
    inputs: dict[str, Any] = {"input_ids": batch.ids, "position_ids": batch.positions}
    if narrow:
        inputs["shared_prefix_rows"] = batch.sources.unique()
    with streaming(), last_layer.selected(decoder, batch.sources if narrow else None):
        hidden = decoder(use_cache=False, shared_prefix_spans=batch.spans, **inputs).last_hidden_state[0]
    return hidden if hidden.shape[0] == len(batch.sources) and narrow else hidden[batch.sources]


def prepare(model: nn.Module) -> None:
    """Let `model` take streams as well as whatever it took before, padded batches and generation too.

    The switch is for good: under gradient checkpointing the attention runs again in the backward pass.
    """
    causal: Any = model
    causal.set_attn_implementation(NAME)
    last_layer.prepare(causal.get_decoder())


@contextmanager
def streaming() -> Iterator[None]:
    """Around a decoder's forward over a stream, whose spans stand in for the mask."""
    token = _STREAMING.set(True)
    try:
        yield
    finally:
        _STREAMING.reset(token)


@torch.no_grad()
def _probe(model: nn.Module) -> str | None:
    """Compare the stream of a short pair with plain passes through the model as it is."""
    causal: Any = model
    training, before = model.training, causal.config._attn_implementation
    seeded = torch.Generator().manual_seed(0)
    ids = torch.randint(causal.config.vocab_size, (24,), generator=seeded).tolist()
    pair = PairIds(ids[:13], ids[13:19], ids[19:])
    batch = stream([pair]).to(causal.device)
    model.eval()
    plain = []
    for answer in (pair.chosen, pair.rejected):
        row = torch.tensor([pair.prompt + answer], device=causal.device)
        plain.append(causal(input_ids=row, use_cache=False).logits[0, len(pair.prompt) - 1 : -1])
    prepare(model)
    found = causal.get_output_embeddings()(hidden_states(model, batch))
    model.train(training)
    expected = torch.cat(plain).double()
    allowed = 0.05 if found.dtype in (torch.bfloat16, torch.float16) else 1e-3
    if (found.double() - expected).abs().max() <= allowed * expected.abs().max():
        return None
    causal.set_attn_implementation(before)
    return f"model type {causal.config.model_type} computes other logits from a stream than from plain rows"


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention over [batch, heads, length, size]: a stream's where there are spans, else the usual one."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__}: attention with {name} is not supported in training")
    spans = kwargs.get("shared_prefix_spans")
    if spans is None:
        if _STREAMING.get():
            raise ValueError(f"{type(module).__name__} does not hand the arguments of its attention through")
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)[0], None
    assert attention_mask is None
    how = attention.How(kwargs.get("scaling"), kwargs.get("dropout", 0.0), kwargs.get("sliding_window"))
    answers_only = kwargs.get("shared_prefix_answers_only", False)
    output = attention.attend(query, key, value, spans, how, answers_only=answers_only)
    return output.transpose(1, 2).contiguous(), None


def mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask for a stream, whose spans say who sees whom; transformers' own for anything else."""
    return None if _STREAMING.get() else sdpa_mask(*args, **kwargs)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, mask)
