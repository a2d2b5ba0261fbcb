"""The memory formula against what autograd really saves, and against a process's real peak."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from lr_ray.config import Training
from lr_ray.training import memory, savings, shared_prefix
from lr_ray.training.batch import PairIds
from lr_ray.training.logps import Policy

SHAPES: list[Any] = [
    (LlamaForCausalLM, LlamaConfig, {"hidden_size": 128, "intermediate_size": 352, "num_key_value_heads": 2}),
    (LlamaForCausalLM, LlamaConfig, {"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 8}),
    (Qwen3ForCausalLM, Qwen3Config, {"hidden_size": 128, "intermediate_size": 512, "num_key_value_heads": 4}),
]


def saved(model: torch.nn.Module, tokens: int) -> int:
    """Bytes, beside the weights, that a forward pass keeps for the backward pass."""
    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    sizes: dict[int, int] = {}
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)  # or its address could be given to another
        return tensor

    ids = torch.randint(100, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        Policy(model)(shared_prefix.stream([PairIds(ids, ids[:8], ids[:8])]))
    return sum(sizes.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "config", "shape"), SHAPES)
def test_saved_bytes_a_token_and_layer_are_the_formulas(
    kind: Any, config: Any, shape: dict[str, int], dtype: torch.dtype, checkpointing: bool
) -> None:
    per_token = []
    for layers in (2, 3):
        made = config(vocab_size=100, num_hidden_layers=layers, num_attention_heads=8, head_dim=32, **shape)
        model = kind(made).to(dtype).train()
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        shared_prefix.prepare(model)
        per_token.append((saved(model, 800) - saved(model, 400)) / 400)
    a_layer = per_token[1] - per_token[0]
    tree, size = made.to_dict(), dtype.itemsize
    expected = tree["hidden_size"] * size if checkpointing else memory.layer(tree, size)
    assert a_layer == pytest.approx(expected, rel=0.1)


PEAK = """
import sys, threading, time, torch
from transformers import LlamaConfig, LlamaForCausalLM
from lr_ray.training import memory, shared_prefix
from lr_ray.training.batch import PairIds
from lr_ray.training.logps import Policy
checkpointing, tokens = sys.argv[1] == "True", 4096
shape = LlamaConfig(hidden_size=512, intermediate_size=1408, num_hidden_layers=4, num_attention_heads=8,
    num_key_value_heads=2, vocab_size=1000, max_position_embeddings=8192)
model = LlamaForCausalLM(shape).train()
if checkpointing:
    model.activation_checkpointing_enable({"use_reentrant": False})
shared_prefix.prepare(model)
ids = torch.randint(1000, (tokens,)).tolist()
def learn(prompt):
    Policy(model)(shared_prefix.stream([PairIds(prompt, prompt[:8], prompt[:8])])).sum().backward()
def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
learn(ids[:64])
base, seen, over = held(), [0], []
def watch():
    while not over:
        seen.append(held())
        time.sleep(0.001)
watcher = threading.Thread(target=watch)
watcher.start()
learn(ids)
over.append(True)
watcher.join()
print((max(seen) - base) / sum(memory.activations(shape.to_dict(), tokens, 4, checkpointing)))
"""


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_peak_of_a_process_is_the_formulas(checkpointing: bool) -> None:
    """What the process really holds more at the peak of a step than before it."""
    command = [sys.executable, "-c", PEAK, str(checkpointing)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)
    # The allocator's own habits are in it, so the bounds are wide.
    assert 0.5 < float(done.stdout.split()[-1]) < 1.6


def test_stages_share_out_what_zero_says() -> None:
    config = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config |= {"vocab_size": 10}

    def at(stage: int, **more: Any) -> memory.Memory:
        zero = {"stage": stage, **more}
        training = Training(num_workers=4, deepspeed={"zero_optimization": zero})
        return memory.step(config, 1000, training, 10, 2, bf16=True)

    assert (at(0).weights, at(0).gradients, at(0).optimizer) == (2000, 2000, 12000)
    assert (at(1).weights, at(1).gradients, at(1).optimizer) == (2000, 2000, 3000)
    assert (at(2).weights, at(2).gradients, at(2).optimizer) == (2000, 500, 3000)
    assert (at(3).weights, at(3).gradients, at(3).optimizer) == (500, 500, 3000)
    offloaded = at(3, offload_optimizer={"device": "cpu"})
    assert (offloaded.optimizer, offloaded.host) == (0, 3000)
    assert offloaded.device < at(3).device


def test_tiles_keep_no_mlp_and_the_host_takes_what_is_kept() -> None:
    kind, config, shape = SHAPES[0]
    per_token = []
    for layers in (2, 3):
        made = config(vocab_size=100, num_hidden_layers=layers, num_attention_heads=8, head_dim=32, **shape)
        model = kind(made).train()
        savings.tile(model, 16)
        shared_prefix.prepare(model)
        per_token.append((saved(model, 800) - saved(model, 400)) / 400)
    tree = made.to_dict()
    kept, working = memory.activations(tree, 1000, 4, False, 16)
    assert per_token[1] - per_token[0] == pytest.approx(kept / 3 / 1000, rel=0.1)
    whole, more = memory.activations(tree, 1000, 4, False)
    assert kept < 0.6 * whole
    assert working < more
    for checkpointing in (False, True):
        kept, working = memory.activations(tree, 1000, 4, checkpointing)
        plain, offloaded = (
            memory.step(
                tree,
                10,
                Training(gradient_checkpointing=checkpointing, offload_activations=there),
                1000,
                10,
                bf16=False,
            )
            for there in (False, True)
        )
        assert (plain.activations, plain.host) == (kept + working, 0)
        # A layer's backward pass needs its insides on the device wherever the inputs lie.
        assert (offloaded.activations, offloaded.host) == (working, kept)
