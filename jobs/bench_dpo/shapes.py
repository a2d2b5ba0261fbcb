"""Models and pairs of the benchmark, and what a step of them computes."""

import dataclasses
import random
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lr_ray.training.batch import PairIds

# Dense bf16 TFLOPS from the maker's data sheets.
PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "H20": 148, "GH200": 989, "A100": 312, "B200": 2250}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Llama of so many layers, and so on; `heads` attention heads share `kv_heads` keys."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int


SHAPES = {
    "tiny": Shape(32, 64, 2, 4, 2, 256),
    "small": Shape(512, 1408, 4, 8, 4, 32_000),
    "medium": Shape(1024, 2816, 4, 16, 4, 128_256),
    "8b": Shape(4096, 14_336, 32, 32, 8, 128_256),  # meta-llama/Llama-3.1-8B
}


def build(shape: Shape, window: int, device: str, dtype: torch.dtype) -> Any:
    """The model with seeded random weights, created where it is to live."""
    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=window,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def pair(shape: Shape, prompt: int, answer: int) -> PairIds:
    """Random tokens; both answers have the same length, which spares every variant its padding."""
    rng = random.Random(1)
    parts = [[rng.randrange(1, shape.vocab) for _ in range(n)] for n in (prompt, answer - 1, answer - 1)]
    return PairIds(parts[0], [*parts[1], 0], [*parts[2], 0], reference=(-10.0 * answer, -10.0 * answer))


def flops(shape: Shape, prompt: int, answer: int, *, shared: bool, lora: bool) -> tuple[float, float]:
    """Floating-point operations of a step: (without, with) what checkpointing computes a second time.

    A multiplication and an addition are two. Forward: matrices of all tokens, the head of the answers',
    and the causal half of the attention. Backward: twice that, but the matrices once when they are frozen.
    The last layer is counted whole, though part of it is skipped where the prompt is shared.
    """
    size = shape.hidden // shape.heads
    attention_weights = 2 * shape.hidden * size * (shape.heads + shape.kv_heads)
    weights = shape.layers * (attention_weights + 3 * shape.hidden * shape.intermediate)
    tokens = prompt + 2 * answer if shared else 2 * (prompt + answer)
    whole = (prompt + answer) ** 2 / 2
    scores = prompt**2 / 2 + 2 * (whole - prompt**2 / 2) if shared else 2 * whole
    matrices = 2.0 * weights * tokens
    head = 2.0 * shape.hidden * shape.vocab * 2 * answer
    attention = 4.0 * shape.hidden * shape.layers * scores
    backward = (1 if lora else 2) * (matrices + head) + 2 * attention
    forward = matrices + head + attention
    return forward + backward, forward + backward + matrices + attention
