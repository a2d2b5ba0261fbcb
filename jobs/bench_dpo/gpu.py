"""GPU mode: whole optimizer steps of a random model on one device, by length, with and without sharing."""

import argparse
import gc
import importlib.util
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from jobs.bench_dpo import shapes, variants
from lr_ray.training import savings

Result = dict[str, Any]


def run(options: argparse.Namespace) -> int:
    """Measure every length, way of training and variant that is asked for, until the time is up.

    Raises:
        ValueError: the device or a library is not there.
    """
    deadline = time.monotonic() + options.seconds
    device = _device(options.device)
    trained, names = _installed(options.train.split(","), options.variants.split(","))
    with _kernels(options.kernels):
        print(check(device), file=sys.stderr, flush=True)
    results: list[Result] = []
    for length in (int(word) for word in options.lengths.split(",")):
        for train in trained:
            for name in names:
                if time.monotonic() > deadline:
                    print(f"time is up before {length} {train} {name}", file=sys.stderr)
                    continue
                results.append(_guarded(options, device, length, train, name))
                _keep(options, results[-1])
    print(table(results, options, device))
    return 0


def _device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "there is no GPU that this torch can use; --device cpu --shape tiny tries the script out"
        )
    return device


def _installed(trained: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """What of this can run here; the rest is named."""
    for wanted, value, module in ((trained, "lora", "peft"), (names, "trl", "trl")):
        if value in wanted and not importlib.util.find_spec(module):
            print(f"{module} is not installed: no figures for {value}", file=sys.stderr)
            wanted.remove(value)
    if not trained or not names:
        raise ValueError("nothing is left to measure")
    return trained, names


def check(device: torch.device) -> str:
    """Loss and gradient of a stream against two plain rows, on this device's own kernels; a line about it.

    Raises:
        ValueError: they differ by more than the precision explains.
    """
    shape = shapes.Shape(128, 256, 2, 4, 1, 500)
    worst = {}
    for kind, allowed in ((torch.float32, 5e-3), (torch.bfloat16, 3e-2)):
        for answer in (2, 70):
            pair = shapes.pair(shape, 300, answer)
            found = []
            for name in ("response", "shared"):
                model = shapes.build(shape, 500, str(device), kind).train()
                savings.recompute(model)
                variants.make(name, model, pair)()
                found.append(torch.cat([weight.grad.double().flatten() for weight in model.parameters()]))
            worst[answer, kind] = float((found[0] - found[1]).norm() / found[0].norm())
            if not worst[answer, kind] <= allowed:
                raise ValueError(
                    f"the shared prefix's gradient is off by {worst[answer, kind]:.1%} in {kind}"
                )
    return "gradients of shared and plain passes differ by " + ", ".join(
        f"{value:.1e} ({kind}, answers of {answer})" for (answer, kind), value in worst.items()
    )


def _guarded(options: argparse.Namespace, device: torch.device, length: int, train: str, name: str) -> Result:
    """One measurement; running out of memory is its result."""
    result: Result = {"length": length, "train": train, "variant": name}
    try:
        return {**result, **_measure(options, device, length, train, name)}
    except torch.OutOfMemoryError:
        return {**result, "error": "out of memory"}
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _measure(options: argparse.Namespace, device: torch.device, length: int, train: str, name: str) -> Result:
    shape, lora = shapes.SHAPES[options.shape], train == "lora"
    model = shapes.build(shape, length + options.answer, str(device), torch.bfloat16).train()
    savings.recompute(model)
    if lora:
        model = _adapted(model, options.rank)
    pair = shapes.pair(shape, length, options.answer)
    backward = variants.make(name, model, pair)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=device.type == "cuda")

    def step() -> float:
        loss = backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()  # waits for the device

    with _kernels(options.kernels):
        first, _ = _timed(step)  # loads kernels, makes the optimizer's state
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        times = [_timed(step) for _ in range(3 if first < 20 else 1)]
    seconds, loss = min(times)
    shared = name in ("shared", "whole")
    once, twice = shapes.flops(shape, length, options.answer, shared=shared, lora=lora)
    return {
        "seconds": seconds,
        "first": first,
        "loss": loss,
        "tokens": 2 * (length + options.answer) / seconds,
        "memory": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
        "tflops": once / seconds / 1e12,
        "tflops_recomputed": twice / seconds / 1e12,
    }


def _timed(step: Callable[[], float]) -> tuple[float, float]:
    started = time.perf_counter()
    loss = step()
    return time.perf_counter() - started, loss


def _adapted(model: Any, rank: int) -> Any:
    """LoRA on all linear layers but the head, in bf16: float32 adapters would copy their long inputs."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, settings, autocast_adapter_dtype=False)


def _kernels(name: str) -> AbstractContextManager[Any]:
    """The order in which SDPA tries its kernels: torch's own, or cuDNN's or flash attention first."""
    orders = {
        "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
        "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION],
    }
    return sdpa_kernel(orders[name], set_priority=True) if name in orders else nullcontext()


def _keep(options: argparse.Namespace, result: Result) -> None:
    line = json.dumps(
        {**result, "shape": options.shape, "answer": options.answer, "kernels": options.kernels}
    )
    print(line, file=sys.stderr, flush=True)
    if options.out:
        with Path(options.out).open("a") as file:
            file.write(line + "\n")


def table(results: list[Result], options: argparse.Namespace, device: torch.device) -> str:
    """The results as markdown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    peak = next((value for word, value in shapes.PEAKS.items() if word in name), None)
    shape = shapes.SHAPES[options.shape]
    lines = [
        f"{name}, torch {torch.__version__}, kernels: {options.kernels}. Llama with {shape.layers} layers, "
        f"{shape.hidden} wide, random bf16 weights, answers of {options.answer} tokens, one pair a step, "
        f"gradient checkpointing, AdamW with bf16 state; LoRA of rank {options.rank} on all linear layers. "
        f"Tokens count the prompt twice. Of {peak or 'an unknown'} TFLOPS: the work that the variant "
        "needs, and what checkpointing computes again.",
        "",
        "| prompt | train | variant | s/step | tokens/s | peak GiB | of peak | recomputing | times shared |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    best = {(one["length"], one["train"]): one for one in results if one["variant"] == "shared"}
    for one in results:
        start = f"| {one['length']:,} | {one['train']} | {variants.NAMES[one['variant']]} "
        if "error" in one:
            lines.append(f"{start}| {one['error']} | | | | | |")
            continue
        shares = [f"{one[key] / peak:.0%}" if peak else "" for key in ("tflops", "tflops_recomputed")]
        ours = best.get((one["length"], one["train"]), {}).get("seconds")
        ratio = f"{one['seconds'] / ours:.2f}" if ours else ""
        memory = "" if one["memory"] is None else f"{one['memory']:.1f}"
        figures = [f"{one['seconds']:.2f}", f"{one['tokens']:,.0f}", memory, *shares, ratio]
        lines.append(f"{start}| {' | '.join(figures)} |")
    return "\n".join(lines)
