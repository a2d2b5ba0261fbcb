"""What a worker's training step holds in memory, from a model's config alone.

Counted for decoders of Llama's kind (gated MLP, grouped keys, RMS norms), as autograd saves it in this
package's own forward pass; `tests/test_training_memory.py` holds it against what is really saved.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr_ray.config import Training

CHUNK = 2**25  # logits that exist at once (`logps`)
NORMED_HEADS = "qwen3"
GRADIENTS = 1.25  # of what a layer saved, while it runs backward; measured (tests/test_training_memory.py)


@dataclass(frozen=True)
class Memory:
    """Bytes on one worker's device; `host` is what is offloaded to its host."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    host: float = 0.0

    @property
    def device(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def step(
    config: dict[str, Any],
    parameters: int,
    training: "Training",
    tokens: int,
    targets: int,
    *,
    bf16: bool,
    trained: int | None = None,
) -> Memory:
    """Memory of a step on one worker.

    Args:
        config: the model's config.json.
        parameters: of the whole model; `trained` of them learn (none: all).
        tokens: in one forward pass, a shared prompt once; `targets` of them are learned.
    """
    trained = parameters if trained is None else trained
    zero = training.deepspeed.get("zero_optimization", {})
    stage, workers = zero.get("stage", 0), training.num_workers
    size = 2 if bf16 else 4
    # Mixed precision keeps float32 weights beside Adam's two moments (ZeRO, arXiv 1910.02054, sec. 3.1).
    states = (12 if bf16 else 8) * trained / (workers if stage >= 1 else 1)
    offloaded = (zero.get("offload_optimizer") or {}).get("device") == "cpu"
    tokens_here = tokens / training.sequence_parallel_size
    kept, working = activations(
        config, tokens_here, size, training.gradient_checkpointing, training.tiled_mlp
    )
    return Memory(
        weights=size * parameters / (workers if stage >= 3 else 1),
        gradients=size * trained / (workers if stage >= 2 else 1),
        optimizer=0 if offloaded else states,
        activations=working + (0 if training.offload_activations else kept),
        logits=logits(config, targets, size),
        host=offloaded * states + training.offload_activations * kept,
    )


def activations(
    config: dict[str, Any], tokens: float, size: int, checkpointing: bool, tile: int | None = None
) -> tuple[float, float]:
    """Bytes over a stream of `tokens`, weights of `size` bytes, MLPs in tiles of `tile` rows.

    Returns:
        what the forward pass keeps, which may lie on the host; and what comes on top at the peak of the
        backward pass, which may not.
    """
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    mlp = 4 * config["intermediate_size"] * size
    rest = tokens * (layer(config, size) - mlp)
    one = rest + mlp * min(tile or tokens, tokens)
    if checkpointing:
        # Each layer's input; and one layer's insides, computed again.
        return tokens * layers * hidden * size, one + GRADIENTS * one
    return layers * (rest if tile else one), GRADIENTS * one + (one - rest if tile else 0)


def layer(config: dict[str, Any], size: int) -> float:
    """Bytes a token that one decoder layer saves.

    Gate, its activation, up and their product; the inputs of the seven matrices; queries and what the
    attention gives; keys and values of the prompt, and a copy beside each answer's own; both norms'
    inputs in float32; the log-sum-exp of each head.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    keys = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads
    wide = 4 * config["intermediate_size"] + 5 * hidden + 2 * heads * head + 6 * keys * head
    # Families that norm queries and keys too, which no key of their configs says.
    normed = (heads + keys) * head if config.get("model_type", "").startswith(NORMED_HEADS) else 0
    return size * (wide + normed) + 4 * (2 * hidden + heads + normed)


def logits(config: dict[str, Any], targets: int, size: int) -> float:
    """Bytes of one chunk's logits: in the weights' type, in float32, and their gradient."""
    return min(targets * config["vocab_size"], CHUNK) * (size + 2 * 4)
