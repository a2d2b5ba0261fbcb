"""One stream over several ranks: sequence parallelism for what one GPU cannot hold.

Ulysses (arXiv 2309.14509): each rank holds a slice of the stream through every layer, except in the
attention, where it holds all of the stream for a slice of the heads. So the attention itself is that of
`shared_prefix`, unchanged, and the prompt stays shared. DeepSpeed's ALST exchanges the heads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lr_ray.training import shared_prefix
from lr_ray.training.logps import Policy, head_logps
from lr_ray.training.shared_prefix import Stream

NAME = "lr_ray_shared_prefix_ulysses"


@dataclass(frozen=True)
class Slice:
    """A rank's slice of a stream. `ids` and `positions` are [1, length / ranks].

    `sources` [own targets] are positions in the slice, `places` [own targets] say which of the stream's
    targets they predict; `spans` are those of the whole stream, with what fills it up as the last one.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    spans: tuple[tuple[int, ...], ...]
    sources: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor


def cut(batch: Stream, rank: int, ranks: int) -> Slice:
    """Slice number `rank` of `batch`, whose length is filled up to a multiple of `ranks`."""
    length = batch.ids.shape[1]
    fill = -length % ranks
    own = (length + fill) // ranks
    begin = rank * own
    # What fills up is a sequence of its own, so that nothing attends to it; it has no targets.
    spans: tuple[tuple[int, ...], ...] = (*batch.spans, (length, fill)) if fill else batch.spans
    places = ((batch.sources >= begin) & (batch.sources < begin + own)).nonzero()[:, 0]
    return Slice(
        functional.pad(batch.ids, (0, fill))[:, begin : begin + own],
        functional.pad(batch.positions, (0, fill))[:, begin : begin + own],
        spans,
        batch.sources[places] - begin,
        batch.labels[places],
        places,
    )


class SequencePolicy(Policy):
    """A policy whose ranks in `group` compute one stream together; all of them get all its log-probs.

    Each rank's loss is that of the whole stream, while its gradient holds what went through its slice:
    the sum over the ranks is the gradient. `shared_prefix.prepare` is not needed.

    Raises:
        ValueError: the model's heads cannot be shared out, or see `Policy`.
    """

    def __init__(self, model: nn.Module, group: distributed.ProcessGroup) -> None:
        super().__init__(model)
        self._group = group
        _register(model, group)
        causal: Any = model
        causal.set_attn_implementation(NAME)

    def forward(self, batch: Any) -> torch.Tensor:
        """Log-probs [targets] of the whole stream, on every rank."""
        assert isinstance(batch, Stream), "sequence parallelism takes streams"
        own = cut(batch, distributed.get_rank(self._group), distributed.get_world_size(self._group))
        causal: Any = self.model
        inputs = {"input_ids": own.ids, "position_ids": own.positions, "shared_prefix_spans": own.spans}
        with shared_prefix.streaming():
            hidden = causal.get_decoder()(use_cache=False, **inputs).last_hidden_state
        whole = hidden.new_zeros(len(batch.labels), dtype=torch.promote_types(hidden.dtype, torch.float32))
        if len(own.places):
            logps = head_logps(self.model, hidden[0, own.sources], own.labels)
            whole = whole.index_copy(0, own.places, logps)
        else:
            # Without targets of its own a rank still takes part in the exchanges of the backward pass, and
            # every parameter gets a gradient, as DeepSpeed's buckets want it.
            whole = whole + 0 * head_logps(self.model, hidden[0, :1], own.ids.new_zeros(1)).sum()
        return _Together.apply(whole, self._group)


class _Together(torch.autograd.Function):
    """The sum over a group; the gradient of each rank's own part is the loss's, which all ranks share."""

    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, group: distributed.ProcessGroup) -> torch.Tensor:
        whole = part.clone()
        distributed.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


def unsupported(config: Any, ranks: int) -> str | None:
    """Why the heads of a model with `config` cannot be shared out over `ranks`; None when they can."""
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    if heads % ranks or (shared % ranks and ranks % shared):
        return (
            f"training.sequence_parallel_size {ranks}: the model's {heads} attention heads "
            f"({shared} for keys) cannot be shared out evenly"
        )
    return None


def groups(ranks: int) -> distributed.ProcessGroup:
    """The group of this rank when neighbouring ranks work on one stream; all ranks call it."""
    world, mine = distributed.get_world_size(), distributed.get_rank()
    made = [distributed.new_group(range(start, start + ranks)) for start in range(0, world, ranks)]
    group = made[mine // ranks]
    assert isinstance(group, distributed.ProcessGroup)
    return group


def _register(model: nn.Module, group: distributed.ProcessGroup) -> None:
    """Put DeepSpeed's exchange of heads around our attention, under a name transformers knows."""
    from deepspeed import comm
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    from lr_ray.training import zero

    causal: Any = model
    config = causal.config
    ranks = distributed.get_world_size(group)
    refusal = unsupported(config, ranks)
    if refusal:
        raise ValueError(refusal)
    if not comm.is_initialized():
        zero.spare_compiler()
        comm.init_distributed(dist_backend=distributed.get_backend(), dist_init_required=False)
    attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS[shared_prefix.NAME]
    heads = config.num_attention_heads
    owner: Any = group
    exchange = UlyssesSPAttentionHF(
        attn=attend,
        batch_size=1,
        attn_head_count=heads,
        attn_head_size=getattr(config, "head_dim", None) or config.hidden_size // heads,
        kv_head_count=getattr(config, "num_key_value_heads", None) or heads,
        num_hidden_layers=config.num_hidden_layers,
        process_group=owner,
        seq_length_is_variable=True,
    )
    AttentionInterface.register(NAME, exchange)
    AttentionMaskInterface.register(NAME, shared_prefix.mask)
