"""LongReward in rounds: each samples from the model of the round before, judges, and trains on its own pairs.

    python -m jobs.rounds CONFIG.yaml [--rounds 3] [--plan] [SECTION.KEY=VALUE ...]
    ray job submit --working-dir . -- python jobs/rounds.py CONFIG.yaml --rounds 3

A round is an ordinary `lr-ray run` in RUN_DIR/round-N. It starts from the model it samples, which is its
reference too: round N's DPO holds on to round N-1's model, not to the first. Its evaluation has that model as
the one before. `{round}` in data.prompts is the round's number, for prompts that each round sees alone;
judge.budget is each round's own. What the judge said of a prompt without looking at an answer is taken from
the round before. The same command again goes on where it stopped; a round that is finished is not looked at
again.
"""

import argparse
import hashlib
import json
import sys
from typing import Any

from lr_ray import cli, pipeline
from lr_ray import config as configs
from lr_ray.config import Config
from lr_ray.preflight import STAGES, inputs
from lr_ray.progress import say
from lr_ray.reuse import reusing
from lr_ray.store import Store

DONE, RESULT = "round.json", "rounds.json"


def of_round(config: Config, number: int) -> Config:
    """The config of round `number`, from 1."""
    base = Store(config.run_dir)
    update: dict[str, Any] = {"run_dir": _folder(base, number).url}
    prompts = [pattern.replace("{round}", str(number)) for pattern in config.data.prompts]
    update["data"] = config.data.model_copy(update={"prompts": prompts})
    if number > 1:
        model = _folder(base, number - 1).sub("model").absolute
        update["sampling"] = config.sampling.model_copy(update={"model": model})
    return config.model_copy(update=update)


def _folder(base: Store, number: int) -> Store:
    return base.sub(f"round-{number}")


def check(config: Config, rounds: int) -> None:
    """Find what would stop a later round, before the first is paid.

    Raises:
        ValueError: one sentence naming the key and the fault.
    """
    fixed = {
        "data.candidates": (config.data.candidates, "a round samples its own"),
        "training.model": (config.training.model, "a round starts from the model it samples"),
        "training.data": (config.training.data, "a round trains on its own pairs"),
        "evaluation.model": (config.evaluation.model, "a round evaluates the model it trains"),
    }
    for key, (value, why) in fixed.items():
        if value:
            raise ValueError(f"{key} is set, but {why}")
    if config.training.method != "dpo":
        raise ValueError(f"training.method is {config.training.method}, but rounds are of dpo")
    if rounds < 1:
        raise ValueError(f"--rounds {rounds}: at least one")
    if any("{round}" in pattern for pattern in config.data.prompts):
        for number in range(1, rounds + 1):
            inputs(of_round(config, number))


def run(config: Config, rounds: int) -> int:
    """Do what is not done of the rounds; write `rounds.json`.

    Returns:
        Rows that failed for good.

    Raises:
        ValueError: bad input or config, or a round that gave no model.
        Stopped: the judge stopped early; the same command goes on from there.
    """
    check(config, rounds)
    failed = 0
    base = Store(config.run_dir)
    for number in range(1, rounds + 1):
        # What that round took over lies in its own ledger: none before it need be looked at.
        before = [_folder(base, number - 1)] if number > 1 else []
        failed += _round(of_round(config, number), number, before)
    told = [_told(_folder(base, number), number) for number in range(1, rounds + 1)]
    base.write(json.dumps(told, indent=2).encode(), RESULT)
    for one in told:
        say(_line(one))
    return failed


def _round(config: Config, number: int, before: list[Store]) -> int:
    """Do a round that is not finished, with what those `before` paid for; rows of it that failed for good."""
    from lr_ray.training import launch

    store = Store(config.run_dir)
    settings = hashlib.sha256(configs.dump(config).encode()).hexdigest()
    finished = json.loads(store.read(DONE) or b"{}")
    if finished.get("settings") == settings and launch.done(store):
        say(f"round {number}: finished already")
        return finished["failed"]
    say(f"round {number}: from {config.sampling.model}")
    failed = pipeline.execute(reusing(config, before), STAGES)
    if not launch.done(store):
        raise ValueError(
            f"{store.url}: no model came out of round {number}, so there is nothing to go on from"
        )
    store.write(json.dumps({"settings": settings, "failed": failed}).encode(), DONE)
    return failed


def _told(store: Store, number: int) -> dict[str, Any]:
    """What came out of a round; None for what is not known."""
    audit, evaluated = (json.loads(store.read(name) or b"{}") for name in ("pairs.json", "evaluation.json"))
    lines = (store.read("metrics.jsonl") or b"").splitlines()
    return {
        "round": number,
        "prompts": audit.get("prompts"),
        "pairs": audit.get("pairs"),
        "steps": json.loads(lines[-1])["step"] if lines else None,
        "table": evaluated.get("table", []),
    }


def _line(told: dict[str, Any]) -> str:
    text = f"round {told['round']}: {told['pairs']} pairs of {told['prompts']} prompts, {told['steps']} steps"
    for row in told["table"]:
        if row["metric"] == "reward" and row["difference"] is not None:
            text += f", reward {row['before']:.2f} → {row['after']:.2f}, {row['difference']:+.2f} "
            text += f"({row['low']:+.2f} … {row['high']:+.2f})"
    return text


def _planned(rounds: int) -> str:
    """What the forecast of the first round leaves out."""
    if rounds == 1:
        return "rounds: 1"
    return (
        f"rounds: {rounds}; all above is the first alone. Each of the others takes about as much, less what "
        "it need not ask again of prompts that the round before had (extracts)"
    )


def main(argv: list[str] | None = None) -> int:
    """Run or plan the rounds; an exit code as `lr-ray run` has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", metavar="CONFIG.yaml")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plan", action="store_true", help="What the first round takes; spends nothing.")
    args = parser.parse_intermixed_args(argv)
    config = configs.load(args.config, args.overrides)
    if not args.plan:
        return 1 if run(config, args.rounds) else 0
    from lr_ray import dry_run

    print(dry_run.text(of_round(config, 1)))
    print(_planned(args.rounds))
    return 0


if __name__ == "__main__":
    sys.exit(cli.guarded(main))
