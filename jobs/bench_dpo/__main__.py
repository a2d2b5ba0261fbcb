"""The benchmark's command line."""

import argparse
import importlib.util
import json
import logging
import os
import sys

from jobs import bench_dpo


def main(argv: list[str] | None = None) -> int:
    """Run; returns 0, or 2 after a sentence on what cannot run here."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.bench_dpo",
        description=bench_dpo.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    modes = parser.add_subparsers(dest="mode", required=True)
    _cpu_arguments(modes.add_parser("cpu"))
    _gpu_arguments(modes.add_parser("gpu"))
    modes.add_parser("one").add_argument("settings", type=json.loads)  # what `cpu` starts
    options = parser.parse_args(argv)
    try:
        return {"cpu": _cpu, "gpu": _gpu, "one": _one}[options.mode](options)
    except ValueError as error:
        print(f"bench_dpo: {error}", file=sys.stderr)
        return 2


def _cpu_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default="small")
    parser.add_argument("--prompt", type=int, default=4096)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a process, after one more")
    parser.add_argument("--rounds", type=int, default=1, help="processes a variant")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast instead of float32")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--variants", default="trl,full,response,whole,shared")


def _gpu_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="8b")
    parser.add_argument("--lengths", default="4096,16384,65536,131072", help="tokens of the prompt")
    parser.add_argument("--answer", type=int, default=512)
    parser.add_argument("--train", default="lora,full")
    parser.add_argument("--variants", default="shared,response,trl")
    parser.add_argument("--kernels", choices=["torch", "cudnn", "flash"], default="torch")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA, on all linear layers")
    parser.add_argument("--seconds", type=float, default=540, help="no new measurement starts after this")
    parser.add_argument("--out", help="file to append each result to as it comes, a JSON object a line")


def _cpu(options: argparse.Namespace) -> int:
    from jobs.bench_dpo import cpu

    names = options.variants.split(",")
    if "trl" in names and not importlib.util.find_spec("trl"):
        print("TRL is not installed (pip install lr-ray[bench]): left out", file=sys.stderr)
        names.remove("trl")
    settings = {
        name: getattr(options, name)
        for name in ("shape", "prompt", "answer", "steps", "threads", "bf16", "checkpointing")
    }
    print(cpu.table(cpu.compare(settings, names, options.rounds), settings))
    return 0


def _one(options: argparse.Namespace) -> int:
    from jobs.bench_dpo import cpu

    logging.disable(logging.WARNING)
    print(json.dumps(cpu.measure(options.settings)))
    return 0


def _gpu(options: argparse.Namespace) -> int:
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    from jobs.bench_dpo import gpu

    logging.disable(logging.WARNING)
    return gpu.run(options)


if __name__ == "__main__":
    sys.exit(main())
