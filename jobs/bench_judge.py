"""What the judge does in rows a second, seconds a row, tokens from prefix caches, and CPU; see README.

    python jobs/bench_judge.py [--only scaling latency reuse statements clients] [--out DIR]
    ray job submit --working-dir . -- python jobs/bench_judge.py

Without --base-url it starts simulated judges on loopback, which is right where all Ray hosts are one machine.
Writes bench_judge.md and bench_judge.json.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script, Python looks only beside it

from jobs.judging import onejudge, prefix_cache, workload
from lr_ray import simulated
from lr_ray.config import Judge, Retrieval

PARTS = ("scaling", "latency", "reuse", "statements", "clients")
ENGINE = "engine"  # only on demand: it needs --base-url of a real server that reports cached tokens


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=(*PARTS, ENGINE), default=PARTS)
    parser.add_argument("--base-url", help="an endpoint of your own, in place of the simulated ones")
    parser.add_argument("--model", default="simulated-judge")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rows-in-flight", type=int, default=2, help="of an actor, while scaling")
    parser.add_argument(
        "--latencies", type=float, nargs="+", default=[1.0, 0.1], help="while scaling, seconds"
    )
    parser.add_argument("--rows", type=int, default=24, help="for reuse, statements and clients")
    parser.add_argument("--context-tokens", type=int, default=16000)
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 4], help="a document, for reuse")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2], help="of the cache, in rows' worth")
    parser.add_argument("--several", type=int, default=5, help="statements a call, against one")
    parser.add_argument("--data", nargs=2, metavar=("PROMPTS", "CANDIDATES"), help="rows for statements")
    parser.add_argument("--candidates", type=int, default=4, help="a row, for engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default=".")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {"machine": machine(), "seed": options.seed}
    for part in options.only:
        found[part] = globals()[part](options)
        print(f"{part}: {json.dumps(found[part])}", flush=True)
    text = table(found)
    print(text)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    (Path(options.out) / "bench_judge.json").write_text(json.dumps(found, indent=1) + "\n")
    (Path(options.out) / "bench_judge.md").write_text(text + "\n")


def machine() -> str:
    """The processor, its cores, and the versions that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    name = names[0] if names else platform.machine()
    return f"{name}, {cores} cores, Python {platform.python_version()}, load before {load:.1f}"


@contextmanager
def endpoint(options: argparse.Namespace, servers: int = 1, **knobs: Any) -> Iterator[list[str]]:
    """Base URLs: the one given, or those of simulated judges."""
    with ExitStack() as stack:
        own = options.base_url
        yield [own] if own else [stack.enter_context(simulated.running(**knobs)) for _ in range(servers)]


def scaling(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows a second by the number of actors, for each latency of the endpoint."""
    import ray

    from jobs.judging.scaling import sweep

    if "RAY_ADDRESS" in os.environ:
        ray.init()
    else:
        # An actor waits more than it works: more of them than cores.
        ray.init(num_cpus=max(16, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
    found: list[dict[str, Any]] = []
    for latency in options.latencies:
        with (
            tempfile.TemporaryDirectory() as folder,
            endpoint(options, plain=True, latency=latency) as urls,
        ):
            found += sweep(urls, folder, options.actors, latency, options.rows_in_flight, options.model)
    ray.shutdown()
    return found


def latency(options: argparse.Namespace) -> dict[str, float]:
    """One row with one call after another, and as it is."""
    rows = workload.rows(options.seed, 5, 8000, candidates=3)
    with endpoint(options, latency=0.2) as (url,):
        return onejudge.latency(rows, url, options.model)


def reuse(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Of the reuse that is possible, what a limited cache reaches, in a model and by a server's count."""
    found = []
    for questions in options.questions:
        rows = workload.rows(options.seed, options.rows, options.context_tokens, questions=questions)
        scattered = random.Random(options.seed).sample(rows, len(rows))
        whole = prefix_cache.measure(rows, Judge(), None)
        worth = (whole.blocks - whole.possible) // len(rows)
        for size in options.sizes:
            one: dict[str, Any] = {
                "questions_a_document": questions,
                "rows_worth": size,
                "tokens": size * worth * 16,
                "possible": whole.possible / whole.blocks,
            }
            for late in (False, True):
                came = prefix_cache.measure(scattered, Judge(), size * worth, late=late, ordered=False)
                ours = prefix_cache.measure(rows, Judge(), size * worth, late=late)
                one["late" if late else "early"] = [came.reached, ours.reached]
            if not options.base_url:
                one["server"] = [_served(options, r, size * worth, r is rows) for r in (scattered, rows)]
            found.append(one)
    return found


def _served(options: argparse.Namespace, rows: Any, blocks: int, ordered: bool) -> float:
    size = prefix_cache.BLOCK
    with endpoint(options, latency=0.2, cache_blocks=blocks, cache_block=size) as (url,):
        onejudge.reuse(rows, url, options.model, ordered=ordered)
        told = onejudge.stats(url)
    return told["hit_tokens"] / told["possible_tokens"]


def statements(options: argparse.Namespace) -> dict[str, Any]:
    """Several statements a call against one."""
    if options.data:
        rows = onejudge.read_rows(*map(Path, options.data))
    else:
        rows = workload.rows(options.seed, options.rows, 8000, candidates=5)
    with endpoint(options) as (url,):
        return onejudge.statements(rows, url, options.model, options.several)


def clients(options: argparse.Namespace) -> dict[str, Any]:
    """The same calls by a plain script and by us."""
    rows = workload.rows(options.seed, 2 * options.rows, 8000)
    with endpoint(options, plain=True, latency=0.2) as (url,):
        return onejudge.clients(rows, url, options.model, concurrency=256)


def engine(options: argparse.Namespace) -> dict[str, Any]:
    """The reuse by a real server's own count, for short documents that a small model can take."""
    from jobs.judging.engine import measure

    if not options.base_url:
        raise SystemExit("--only engine needs --base-url, as of vLLM with --enable-prompt-tokens-details")
    settings = Judge(model=options.model, concurrency=8, extract_chunk_tokens=512)
    settings = settings.model_copy(update={"retrieval": Retrieval(chunk_tokens=32)})
    rows = workload.rows(
        options.seed, options.rows, 2048, candidates=options.candidates, sentences=4, questions=4
    )
    scattered = random.Random(options.seed).sample(rows, len(rows))
    ways = {"first come": (scattered, False), "ordered": (rows, True)}
    return {
        way: measure(made, options.base_url, settings, salt=way, ordered=ordered)
        for way, (made, ordered) in ways.items()
    }


def table(found: dict[str, Any]) -> str:
    """The figures as markdown."""
    lines = [f"Measured on {found['machine']}; seed {found['seed']}."]
    writers = {
        "scaling": _scaling,
        "latency": _latency,
        "reuse": _reuse,
        "statements": _statements,
        "clients": _clients,
        ENGINE: _engine,
    }
    for part, write in writers.items():
        if part in found:
            lines += ["", *write(found[part])]
    return "\n".join(lines)


def _scaling(found: list[dict[str, Any]]) -> list[str]:
    lines = ["| endpoint latency | actors | rows/s | calls/s | of linear |", "|---|---|---|---|---|"]
    lines += [
        f"| {one['latency']:g} s | {one['actors']} | {one['rows_a_second']:.2f} "
        f"| {one['calls_a_second']:.0f} | {one['efficiency']:.2f} |"
        for one in found
    ]
    return lines


def _latency(found: dict[str, float]) -> list[str]:
    return [
        f"One row of {found['calls']} calls at 0.2 s each: {found['serial']:.1f} s one after another, "
        f"{found['ours']:.2f} s as it is ({found['ratio']:.3f} of it; {found['settled']:.2f} s once settled)."
    ]


def _reuse(found: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Of the possible reuse, first come → ordered. Engine: known once begun; hosted: once answered.",
        "",
        "| questions a document | cache, rows' worth | model, engine | model, hosted | server's count |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        cells = [f"{a:.1%} → {b:.1%}" for a, b in (one["early"], one["late"], one.get("server", [0, 0]))]
        lines.append(f"| {one['questions_a_document']} | {one['rows_worth']} | {' | '.join(cells)} |")
    return lines


def _statements(found: dict[str, Any]) -> list[str]:
    (calls, fewer), (tokens, less) = found["calls"], found["prompt_tokens"]
    return [
        f"{found['statements_per_call']} statements a call instead of 1, {found['rows']} rows: "
        f"{calls} → {fewer} calls, {tokens} → {less} prompt tokens, "
        f"{found['verdicts_changed']} of {found['verdicts']} verdicts changed, "
        f"best or worst answer changed in {found['best_and_worst_changed']} rows."
    ]


def _clients(found: dict[str, Any]) -> list[str]:
    lines = [
        f"{found['calls']} calls, {found['concurrency']} in flight, endpoint latency 0.2 s:",
        "",
        "| one process | calls/s | CPU a call |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {one['calls_a_second']:.0f} | {one['cpu_ms_a_call']:.2f} ms |"
        for name, one in found.items()
        if isinstance(one, dict)
    ]
    return lines


def _engine(found: dict[str, Any]) -> list[str]:
    lines = ["| a real server | prompt tokens | cached | of the possible |", "|---|---|---|---|"]
    lines += [
        f"| {way} | {one['prompt_tokens']} | {one['cached']:.1%} | {one['cached'] / one['possible']:.1%} |"
        for way, one in found.items()
    ]
    return lines


if __name__ == "__main__":
    main()
