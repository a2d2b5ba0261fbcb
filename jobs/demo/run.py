"""`make demo`: the whole loop on this machine, from synthetic documents to a better model and a report.

Everything is the real stack; only the judge's brain is simulated, by rules over the text of each request.
The known ground truth is used once, at the end, to score both models' answers; no stage has seen it.

    python -m jobs.demo.run [--seed 0] [--prompts 240] [--held-out 80] [--run-dir runs/demo]
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from jobs.demo import task
from lr_ray import cli, config, evaluation, pipeline, simulated
from lr_ray.store import Store

HERE = Path(__file__).parent


def write_prompts(path: Path, seed: str, count: int) -> dict[str, task.Truth]:
    """Prompts as jsonl at `path`; what is true of them is returned and written nowhere."""
    rows, truth = task.make_prompts(seed, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return truth


def truth_means(store: Store, side: str, truth: dict[str, task.Truth]) -> dict[str, float]:
    """Mean ground-truth score of a prompt's answers."""
    answers = evaluation.texts(store, side)
    return {
        key: fmean(task.score_truth(text, truth[key]) for text in texts) for key, texts in answers.items()
    }


def show(result: dict[str, Any]) -> None:
    """The table of `evaluation.json`."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Held-out prompts: {result['prompts']}, answers a prompt and model: {result['n']}")
    for column in ("", "before", "after", "difference", "95% interval"):
        table.add_column(column, justify="left" if not column else "right")
    for row in result["table"]:
        numbers = [f"{row[key]:.2f}" for key in ("before", "after")] + [f"{row['difference']:+.2f}"]
        table.add_row(row["metric"], *numbers, f"{row['low']:+.2f} … {row['high']:+.2f}")
    Console().print(table)


def main(argv: list[str] | None = None) -> int:
    """Run the demo; returns an exit code as `lr-ray run` does."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=240)
    parser.add_argument("--held-out", type=int, default=80)
    parser.add_argument("--run-dir", default="runs/demo")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE")
    args = parser.parse_args(argv)
    began = time.monotonic()
    run_dir = Path(args.run_dir)
    prompts, held_out = run_dir / "input" / "prompts.jsonl", run_dir / "input" / "held_out.jsonl"
    write_prompts(prompts, f"train-{args.seed}", args.prompts)
    truth = write_prompts(held_out, f"held-out-{args.seed}", args.held_out)
    with simulated.running() as base_url:
        settings = config.load(
            str(HERE / "demo.yaml"),
            [
                f"run_dir={run_dir}",
                f"data.prompts=[{prompts}]",
                f"evaluation.prompts=[{held_out}]",
                f"judge.base_url={base_url}",
                f"training.seed={args.seed}",
                *args.overrides,
            ],
        )
        failed = pipeline.execute(settings, ("sample", "judge", "pairs", "train", "evaluate"))
    store = Store(settings.run_dir)
    before, after = (truth_means(store, side, truth) for side in evaluation.SIDES)
    result = evaluation.add_metric(store, "ground truth (0 to 1)", before, after)
    pipeline.execute(settings, ("report",))
    show(result)
    print(f"{time.monotonic() - began:.0f} s; the report: {run_dir / 'report.html'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
