"""How long training stands still for a checkpoint: python -m jobs.bench_checkpoint [--parameters 2e8].

Side by side, on the same engine and disk: DeepSpeed's own save, ours when training waits for the files,
and ours as it is, where training waits for a copy in host memory. One process a rank, on CPU, random
weights, ZeRO-1, float32. Prints one JSON object; times are rank 0's in seconds, medians over the saves.
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SEED = 0


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=2e8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--saves", type=int, default=3)
    parser.add_argument("--folder", help="where to write (none: a temporary folder)")
    parser.add_argument("--rank", type=int)
    return parser.parse_args()


def main() -> None:
    """Start the ranks, or be one."""
    args = arguments()
    if args.rank is not None:
        return measure(args)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        command = [sys.executable, "-m", "jobs.bench_checkpoint", *sys.argv[1:], "--folder", folder]
        ranks = [subprocess.Popen([*command, "--rank", str(rank)]) for rank in range(args.workers)]
        codes = [rank.wait() for rank in ranks]
    sys.exit(max(codes))


def model(parameters: float) -> Any:
    """A Llama of about so many parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    width = 1024
    layers = max(1, round((parameters - 2 * 8192 * width) / (12 * width * width + width * width)))
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(vocab_size=8192, num_attention_heads=8, **shape))


def measure(args: argparse.Namespace) -> None:
    """One rank."""
    os.environ.update(DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="", LOCAL_RANK=str(args.rank))
    import torch
    from torch import distributed

    from lr_ray.config import Training
    from lr_ray.training import zero
    from lr_ray.training.batch import PairIds, Totals
    from lr_ray.training.logps import Policy
    from lr_ray.training.step import Dpo, step

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // args.workers))
    meeting = f"file://{args.folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=args.rank, world_size=args.workers)
    training = Training(batch_size=args.workers, num_workers=args.workers, learning_rate=1e-5)
    policy = model(args.parameters)
    count = sum(parameter.numel() for parameter in policy.parameters())
    engine = zero.ZeroEngine(Policy(policy), training, bf16=False, device="cpu")
    objective = Dpo(training, shared=False)
    pairs = [PairIds(list(range(8)), [1, 2], [3, 4])]
    totals = Totals(args.workers, 2 * args.workers)

    def take_step() -> None:
        step(engine, objective, [pairs], totals, 1e-5, lambda local: local)

    def timed(what: Callable[[], Any]) -> float:
        distributed.barrier()
        started = time.perf_counter()
        what()
        return time.perf_counter() - started

    take_step()
    times: dict[str, list[float]] = {"step": [timed(take_step) for _ in range(args.saves)]}
    times["deepspeed"], times["deepspeed_durable"] = theirs(args, engine, timed)
    times.update(ours(args, engine, timed, take_step))
    if args.rank == 0:
        found = {f"{name}_s": round(statistics.median(values), 3) for name, values in times.items()}
        for name in ("deepspeed", "deepspeed_durable", "waited"):
            found[f"stall_over_{name}"] = round(found["stall_s"] / found[f"{name}_s"], 4)
        size = sum(path.stat().st_size for path in Path(args.folder, "ours").rglob("*.pt")) / 2
        every = {name: [round(value, 3) for value in values] for name, values in times.items()}
        about = {"parameters": count, "workers": args.workers, "checkpoint_gb": round(size / 1e9, 2)}
        print(json.dumps({**about, **found, "all": every}))
    distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed leaves gloo threads behind that can abort the interpreter's end


def theirs(
    args: argparse.Namespace, engine: Any, timed: Callable[..., float]
) -> tuple[list[float], list[float]]:
    """DeepSpeed's own synchronous save to a local folder: until it returns, and until it is on the disk."""
    from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
    from torch import distributed

    from lr_ray.store import sync

    raw = engine._engine
    before, raw.checkpoint_engine = raw.checkpoint_engine, TorchCheckpointEngine(raw._config)
    folder = Path(args.folder, "deepspeed")
    returned, durable = [], []
    for number in range(args.saves):
        started = time.perf_counter()
        save = functools.partial(raw.save_checkpoint, str(folder), tag=str(number), save_latest=False)
        returned.append(timed(save))
        for path in folder.rglob("*.pt"):
            sync(str(path))
        durable.append(time.perf_counter() - started)
        distributed.barrier()
        if args.rank == 0:
            shutil.rmtree(folder)
    raw.checkpoint_engine = before
    return returned, durable


def ours(
    args: argparse.Namespace, engine: Any, timed: Callable[..., float], take_step: Callable[[], None]
) -> dict[str, list[float]]:
    """Saves that training waits for, and saves that it goes on beside; the first stall apart."""
    import torch
    from torch import distributed

    from lr_ray.store import Store
    from lr_ray.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(Store(f"{args.folder}/ours"), args.rank, args.workers, "bench")
    engine.reserve()
    take_step()
    times: dict[str, list[float]] = {"stall": [], "background": [], "step_beside": [], "waited": []}

    def save(number: int) -> None:
        checkpoints.save(number, {}, engine.snapshot, lambda: None)

    def wait(number: int) -> None:
        save(number)
        checkpoints.wait()

    for number in range(0, 2 * args.saves, 2):
        started = time.perf_counter()
        times["stall"].append(timed(lambda number=number: save(number)))
        busy = torch.ones(1)
        while busy.item():
            times["step_beside"].append(timed(take_step))
            busy.fill_(checkpoints.writing)
            distributed.all_reduce(busy)
        times["background"].append(time.perf_counter() - started)
        times["waited"].append(timed(lambda number=number: wait(number + 1)))
    return times


if __name__ == "__main__":
    main()
