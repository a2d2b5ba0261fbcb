"""Does LongReward's choice of pairs beat simpler ones? The comparison on the demo's task, at small scale.

For each seed: prompts of its own, candidates sampled and judged once, and for each reward pairs, training and
evaluation (`lr-ray compare`). The known ground truth is used once, at the end, to score all models' answers;
no stage has seen it. Everything is the real stack; only the judge's brain is simulated, by rules.

    python -m jobs.demo.compare [--seeds 0 1 2] [--rewards longreward length random direct]

The table pools the prompts of all seeds and shows the seeds' own differences beside it.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from jobs.demo import task
from jobs.demo.run import HERE, write_prompts
from lr_ray import cli, compare, config, simulated
from lr_ray.compare import table
from lr_ray.config import Config
from lr_ray.llm import usage
from lr_ray.store import Store

REWARDS = ("longreward", "length", "random", "direct")
TRUTH = "ground truth (0 to 1)"
SHOWN = (TRUTH, "reward", compare.LENGTH)
Measured = dict[str, dict[str, float]]


def settings(args: argparse.Namespace, seed: int, base_url: str) -> tuple[Config, compare.Score]:
    """The comparison of one seed, and the ground truth of its held-out prompts."""
    run_dir = Path(args.run_dir) / f"seed-{seed}"
    prompts, held_out = run_dir / "input" / "prompts.jsonl", run_dir / "input" / "held_out.jsonl"
    write_prompts(prompts, f"train-{seed}", args.prompts)
    truth = write_prompts(held_out, f"held-out-{seed}", args.held_out)
    loaded = config.load(
        str(HERE / "demo.yaml"),
        [
            f"run_dir={run_dir}",
            f"data.prompts=[{prompts}]",
            f"evaluation.prompts=[{held_out}]",
            f"judge.base_url={base_url}",
            f"compare.rewards=[{', '.join(args.rewards)}]",
            f"compare.seeds=[{seed}]",
            # One process starts sooner than two where the model is this small; the loss is the same.
            "training.num_workers=1",
            f"rewards.seed={seed}",
            *args.overrides,
        ],
    )
    return loaded, lambda prompt_id, text: task.score_truth(text, truth[prompt_id])


def pooled(results: list[tuple[Config, compare.Score]], against: str) -> list[dict[str, Any]]:
    """The comparison's table over the prompts of all seeds."""
    before: Measured = {}
    runs: dict[str, list[table.Measured]] = {}
    for of_seed, score in results:
        one = compare.gathered(of_seed, {TRUTH: score})
        for metric, values in one.before.items():
            before.setdefault(metric, {}).update(values)
        for name, seeds in one.runs.items():
            runs.setdefault(name, []).extend(seeds)
    return table.table(before, runs, against)


def machine() -> str:
    """What this ran on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} CPU cores ({names[0] if names else 'unknown'}), {gib:.0f} GiB"


def calls(of_seed: Config, prompts: int) -> str:
    """What the rewards cost: calls to the judge a prompt."""
    base = Store(of_seed.run_dir)
    asked = {"longreward": base, **{name: base.sub("rewards", name) for name in base.folders("rewards")}}
    counts = {name: sum(one.calls for one in usage.by_kind(store).values()) for name, store in asked.items()}
    return ", ".join(f"{name.partition('-')[0]} {count / prompts:.1f}" for name, count in counts.items())


def seconds(of_seed: Config) -> float:
    """What all stages took, over all calls of this command."""
    base = Store(of_seed.run_dir)
    stores = [base, *(base.sub("compare", name) for name in base.folders("compare"))]
    times = (json.loads(store.read("timing.json") or b"{}") for store in stores)
    return sum(sum(one.values()) for one in times)


def report(rows: list[dict[str, Any]], results: list[dict[str, Any]], took: list[float]) -> str:
    """The table for the README."""
    shown = [row for metric in SHOWN for row in rows if row["metric"] == metric]
    pairs: dict[str, list[str]] = {}
    for result in results:
        for run in result["runs"]:
            pairs.setdefault(run["name"], []).append(str(run["seeds"][0]["pairs"]))
    counted = "; ".join(f"{name} {', '.join(counts)}" for name, counts in pairs.items())
    return "\n".join(
        [
            table.markdown(shown, "the model before", results[0]["against"]),
            "",
            f"{results[0]['prompts']} held-out prompts a seed, {results[0]['n']} answers each.",
            f"Pairs: {counted}.",
            f"{machine()}; seconds of work a seed: {', '.join(f'{one:.0f}' for one in took)}.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run the comparison of every seed; an exit code as `lr-ray compare` has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rewards", nargs="+", default=list(REWARDS))
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--run-dir", default="runs/compare")
    parser.add_argument("--set", dest="overrides", nargs="+", default=[], metavar="SECTION.KEY=VALUE")
    args = parser.parse_args(argv)
    failed, took = 0, []
    parts: list[tuple[Config, compare.Score]] = []
    results: list[dict[str, Any]] = []
    with simulated.running() as base_url:
        for seed in args.seeds:
            of_seed, score = settings(args, seed, base_url)
            failed += compare.execute(of_seed)[0]
            parts.append((of_seed, score))
            results.append(compare.written(of_seed, {TRUTH: score}))
            took.append(seconds(of_seed))
    text = report(pooled(parts, results[0]["against"]), results, took)
    text += f" Judge calls a prompt: {calls(parts[0][0], args.prompts)}.\n"
    Store(args.run_dir).write(text.encode(), "compare.md")
    print(text)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
