"""What training would take: steps, and the memory of a worker at the longest row."""

import functools
import json
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from lr_ray import data
from lr_ray.config import Config, Training
from lr_ray.plan import inputs
from lr_ray.training import memory

CARDS = (16, 24, 40, 48, 80, 96, 141, 180, 288)  # GB of the GPUs there are
SPARE = 1.1  # for what an allocator cannot use, and buffers for exchanges


class Model(NamedTuple):
    """A model's config.json and the shapes of its tensors; `known` says where from, if not from its files."""

    config: dict[str, Any]
    tensors: list[tuple[str, list[int]]]
    known: str = ""


def forecast(config: Config, prompts: int) -> list[str]:
    """Steps and memory of training, in words; without data of its own on a pair of each of `prompts` prompts.

    Raises:
        ValueError: training.data is missing, and `suppose.examples` does not say what to expect.
    """
    training = config.training
    rows, supposed = _rows(config, prompts)
    ratio = training.mix.ratio if training.mix else 0.0
    epoch = rows + round(rows * ratio / (1 - ratio))
    steps = training.max_steps or math.ceil(training.epochs * epoch / training.batch_size)
    what = "sequences" if training.method == "sft" else "pairs"
    most = "" if training.data else "at most "
    said = [f"training: {most}{epoch:,} {what}, {steps:,} optimizer steps", *supposed]
    found = model(config)
    if isinstance(found, str):
        return [*said, f"training memory: unknown, {found}"]
    longest = training.max_length or found.config.get("max_position_embeddings")
    if longest is None:
        return [*said, "training memory: unknown without training.max_length"]
    return [*said, *filter(None, [found.known]), _memory(config, found, longest)]


def _rows(config: Config, prompts: int) -> tuple[int, list[str]]:
    """Rows to learn from, those of a mix not counted; and whether that is supposed, in words."""
    given, examples = config.training.data, config.suppose.examples
    if not given:
        return prompts, []
    if examples and not inputs.there(given):
        return examples, [f"supposed: {examples:,} rows of training.data, since it is not there"]
    return sum(1 for _ in data.rows(given)), []


def model(config: Config) -> Model | str:
    """What is known of the model that is trained, or why nothing is.

    Raises:
        ValueError: `suppose.model` is no config that transformers knows.
    """
    folder = config.training.model or config.sampling.model
    path = os.path.join(folder, "config.json")
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            shape = json.load(file)
        tensors = list(_tensors(folder))
        if tensors:
            return Model(shape, tensors)
        known = f"parameters are counted by {path}, as there are no safetensors beside it"
    elif config.suppose.model:
        shape = config.suppose.model
        known = f"supposed: the model of suppose.model, since {folder or 'training.model'} is no local folder"
    else:
        return "the model is no local folder with safetensors"
    if "model_type" not in shape:
        return "the model's config has no model_type"
    return Model(shape, _built(json.dumps(shape)), known)


@functools.cache
def _built(shape: str) -> list[tuple[str, list[int]]]:
    """The tensors of a model that is built by its config, JSON, without memory for them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(**json.loads(shape)))
    return [(name, list(tensor.shape)) for name, tensor in built.named_parameters()]


def _memory(config: Config, found: Model, longest: int) -> str:
    """The memory of a worker whose rows all have `longest` tokens, and the GPUs that have it."""
    training = config.training
    answer = config.sampling.max_tokens
    dpo = training.method == "dpo"
    tokens = training.micro_batch_size * (longest + dpo * answer)
    targets = training.micro_batch_size * (2 * answer if dpo else longest)
    bf16 = training.precision == "bf16" or (training.precision == "auto" and training.use_gpu)
    parameters, learned = _count(found.tensors), _learned(found.tensors, training)
    try:
        need = memory.step(found.config, parameters, training, tokens, targets, bf16=bf16, trained=learned)
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


def _learned(tensors: list[tuple[str, list[int]]], training: Training) -> int | None:
    """Parameters that learn; of LoRA on all linear layers the two thin matrices of each. None: all."""
    if training.lora is None:
        return None
    rank = int(training.lora.get("r", 8))
    return sum(rank * sum(shape) for name, shape in tensors if len(shape) == 2 and ".layers." in name)


def count_parameters(folder: str) -> int | None:
    """Parameters in a folder's safetensors files, read from their headers alone; None without any."""
    return _count(_tensors(folder)) or None if os.path.isdir(folder) else None


def _count(tensors: list[tuple[str, list[int]]] | Iterator[tuple[str, list[int]]]) -> int:
    return sum(math.prod(shape) for _, shape in tensors)


def _tensors(folder: str) -> Iterator[tuple[str, list[int]]]:
    """Names and shapes of the tensors in a folder's safetensors files."""
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with open(os.path.join(folder, name), "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            header.pop("__metadata__", None)
            yield from ((key, tensor["shape"]) for key, tensor in header.items())
