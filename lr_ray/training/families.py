"""Which models a stream of pairs may go through: what is known to be right, and what is refused by name."""

from collections.abc import Iterator
from typing import Any

from torch import nn

# Held by tests against two plain passes, losses and gradients. Any other family must pass a probe.
TESTED = frozenset({"llama", "qwen2", "qwen3", "mistral", "glm", "glm4"})
_LAYERS = {"full_attention", "sliding_attention"}
# Rotary frequencies that change with the length of the sequence: the answers of a stream differ in it.
_BY_LENGTH = {"dynamic", "longrope"}


def refusal(model: nn.Module, longest: int) -> str | None:
    """Why sequences of up to `longest` tokens cannot go through `model` as a stream; None when they may."""
    config: Any = model.config
    return next((f"model type {config.model_type} {why}" for why in _reasons(model, longest)), None)


def _reasons(model: nn.Module, longest: int) -> Iterator[str]:
    config: Any = model.config
    if not getattr(model, "_supports_attention_backend", False):
        yield "does not use transformers' attention interface"
    if config.get_text_config() is not config or getattr(config, "is_encoder_decoder", False):
        yield "is not a plain decoder of text"
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if kinds:
        yield f"has layers of type {', '.join(sorted(kinds))}"
    if getattr(config, "attn_logit_softcapping", None) is not None:
        yield "caps its attention scores (attn_logit_softcapping)"
    if getattr(config, "use_bidirectional_attention", None):
        yield "attends in both directions (use_bidirectional_attention)"
    yield from _positions(config, longest)


def _positions(config: Any, longest: int) -> Iterator[str]:
    """The rejected answer's positions start again at the prompt's end: only rotary positions allow that."""
    if getattr(config, "alibi", False):
        yield "takes positions from the distance of tokens in the row (ALiBi)"
    rotary = getattr(config, "rope_parameters", None)
    if not rotary:
        yield "has no rotary positions (learned or none)"
        return
    for parameters in [rotary, *(value for value in rotary.values() if isinstance(value, dict))]:
        if "mrope_section" in parameters:
            yield "has positions in several dimensions (M-RoPE)"
        kind = parameters.get("rope_type", "default")
        trained = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
        if kind in _BY_LENGTH and longest > trained:
            yield f"changes its positions with the length beyond {trained} tokens (rope_type {kind})"
