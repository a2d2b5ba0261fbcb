"""What training would take: steps, and the memory of a worker at the longest row."""

import json
import math
import os
from collections.abc import Iterator

from lr_ray.config import Config, Training
from lr_ray.training import memory

CARDS = (16, 24, 40, 48, 80, 96, 141, 180, 288)  # GB of the GPUs there are
SPARE = 1.1  # for what an allocator cannot use, and buffers for exchanges


def forecast(config: Config, prompts: int) -> list[str]:
    """Steps and memory of training on at most a pair of each of `prompts` prompts, in words."""
    training = config.training
    ratio = training.mix.ratio if training.mix else 0.0
    epoch = prompts + round(prompts * ratio / (1 - ratio))
    steps = training.max_steps or math.ceil(training.epochs * epoch / training.batch_size)
    said = [f"training: at most {epoch} pairs, {steps} optimizer steps"]
    folder = training.model or config.sampling.model
    parameters = count_parameters(folder)
    if parameters is None:
        return [*said, "training memory: unknown, the model is no local folder with safetensors"]
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        shape = json.load(file)
    longest = training.max_length or shape.get("max_position_embeddings")
    if longest is None:
        return [*said, "training memory: unknown without training.max_length"]
    return [*said, _memory(config, shape, parameters, _trained(folder, training), longest)]


def _memory(config: Config, shape: dict[str, int], parameters: int, trained: int | None, longest: int) -> str:
    """The memory of a worker whose rows all have `longest` tokens, and the GPUs that have it."""
    training = config.training
    answer = config.sampling.max_tokens
    dpo = training.method == "dpo"
    tokens = training.micro_batch_size * (longest + dpo * answer)
    targets = training.micro_batch_size * (2 * answer if dpo else longest)
    bf16 = training.precision == "bf16" or (training.precision == "auto" and training.use_gpu)
    try:
        need = memory.step(shape, parameters, training, tokens, targets, bf16=bf16, trained=trained)
    except KeyError as error:
        return f"training memory: unknown, the model's config has no {error.args[0]}"
    stage = training.deepspeed.get("zero_optimization", {}).get("stage", 0)
    gigabytes = need.device / 1e9
    card = next((card for card in CARDS if card >= gigabytes * SPARE), None)
    fits = f"a GPU of {card} GB holds it" if card else "no GPU holds it"
    parts = ", ".join(
        f"{name} {getattr(need, name) / 1e9:.1f}"
        for name in ("weights", "gradients", "optimizer", "activations", "logits")
    )
    host = f", and {need.host / 1e9:.1f} GB of its host" if need.host else ""
    return (
        f"training memory: {gigabytes:.1f} GB a worker{host} at {longest:,} tokens ({parts}), "
        f"{parameters / 1e9:.2f}B parameters, ZeRO-{stage} over {training.num_workers}; {fits}"
    )


def _trained(folder: str, training: Training) -> int | None:
    """Parameters that learn; of LoRA on all linear layers the two thin matrices of each. None: all."""
    if training.lora is None:
        return None
    rank = int(training.lora.get("r", 8))
    layers = (shape for name, shape in _tensors(folder) if len(shape) == 2 and ".layers." in name)
    return sum(rank * sum(shape) for shape in layers)


def count_parameters(folder: str) -> int | None:
    """Parameters in a folder's safetensors files, read from their headers alone; None without any."""
    if not os.path.isdir(folder):
        return None
    return sum(math.prod(shape) for _, shape in _tensors(folder)) or None


def _tensors(folder: str) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of the tensors in a folder's safetensors files."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with open(os.path.join(folder, name), "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            header.pop("__metadata__", None)
            yield from ((key, tensor["shape"]) for key, tensor in header.items())
