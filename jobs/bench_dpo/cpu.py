"""CPU mode: each variant alone in a process of its own; CPU time and memory above the base."""

import ctypes
import gc
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jobs.bench_dpo import shapes, variants
from lr_ray.training import savings

GOALS = {"trl": (5.0, 0.3), "full": (3.5, 0.25), "response": (1.75, None)}


def measure(settings: dict[str, Any]) -> dict[str, Any]:
    """One variant, in this process: seconds of a step and memory above what stood before it."""
    import torch

    torch.set_num_threads(settings["threads"])
    shape = shapes.SHAPES[settings["shape"]]
    prompt, answer = settings["prompt"], settings["answer"]
    model = shapes.build(shape, prompt + answer, "cpu", torch.float32).train()
    if settings["checkpointing"]:
        savings.recompute(model)
    pair = shapes.pair(shape, prompt, answer)
    step = variants.make(settings["variant"], model, pair, bf16=settings["bf16"])
    base = _trimmed()
    cpu, wall = [], []
    for _ in range(settings["steps"] + 1):
        model.zero_grad(set_to_none=True)
        started, used = time.perf_counter(), _cpu_seconds()
        loss = step()
        cpu.append(_cpu_seconds() - used)
        wall.append(time.perf_counter() - started)
    return {
        "variant": settings["variant"],
        "cpu": statistics.median(cpu[1:]),
        "wall": statistics.median(wall[1:]),
        "memory": (_status("VmHWM") - base) / 2**30,
        "loss": float(loss),
    }


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _trimmed() -> int:
    """Bytes resident with what was freed handed back, and the kernel's high-water mark set to it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError as error:
        raise ValueError(
            f"memory cannot be measured here: /proc/self/clear_refs: {error.strerror}"
        ) from error
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def compare(settings: dict[str, Any], names: list[str], rounds: int) -> list[dict[str, Any]]:
    """Every variant in `rounds` processes, in turns, so that a slow minute hits all; medians of them."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            found[name].append(_alone({**settings, "variant": name}))
            print(f"round {number + 1}: {json.dumps(found[name][-1])}", file=sys.stderr, flush=True)
    return [
        {key: statistics.median(run[key] for run in runs) for key in ("cpu", "wall", "memory", "loss")}
        | {"variant": name}
        for name, runs in found.items()
    ]


def _alone(settings: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "jobs.bench_dpo", "one", json.dumps(settings)]
    quiet = {"CUDA_VISIBLE_DEVICES": "", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet}, check=False)
    if done.returncode:
        raise ValueError(f"{settings['variant']} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """The results as markdown: what was measured, and how it stands to the shared prefix."""
    ours = next(one for one in results if one["variant"] == "shared")
    lines = [
        f"{machine()}, {settings['threads']} threads. {describe(settings)}",
        "",
        "| | CPU s | wall s | memory over base, GiB | CPU, times shared | shared's memory | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in results:
        name = variants.NAMES[one["variant"]]
        ratio = f"{one['cpu'] / ours['cpu']:.2f} | {ours['memory'] / one['memory']:.2f}x"
        goal = GOALS.get(one["variant"])
        if goal:
            share = f" and {goal[1]}x" if goal[1] else ""
            name += f" (goal: {goal[0]}{share})"
        figures = f"{one['cpu']:.2f} | {one['wall']:.2f} | {one['memory']:.2f}"
        lines.append(f"| {name} | {figures} | {ratio} | {one['loss']:.5f} |")
    return "\n".join(lines)


def describe(settings: dict[str, Any]) -> str:
    """The settings in words."""
    shape = shapes.SHAPES[settings["shape"]]
    how = ["bf16 autocast" if settings["bf16"] else "float32"]
    how += ["gradient checkpointing"] if settings["checkpointing"] else []
    return (
        f"Prompt {settings['prompt']:,} tokens, answers {settings['answer']} each; Llama with {shape.layers} "
        f"layers, {shape.hidden} wide, MLP {shape.intermediate}, {shape.heads} heads over {shape.kv_heads}, "
        f"vocabulary {shape.vocab:,}; {', '.join(how)}. A step is forward, loss and backward of one pair, "
        "the reference computed ahead."
    )


def machine() -> str:
    """Processor and versions."""
    import torch
    import transformers

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "CPU")
    versions = [f"torch {torch.__version__}", f"transformers {transformers.__version__}"]
    if importlib.util.find_spec("trl"):
        from importlib.metadata import version

        versions.append(f"TRL {version('trl')}")
    return f"{model}, {os.cpu_count()} cores, {platform.system()}; {', '.join(versions)}"
