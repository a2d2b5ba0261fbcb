"""The loop on one page: which stage feeds which, and what resumes where.

    prompts ─► sample ─► judge ─► pairs ─► train ─► evaluate ─► report
               sampled/  judged/  pairs/   model/   evaluation.json  report.html

Each stage looks in the run directory for what is done, does the rest, and says both.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from lr_ray import config as configs
from lr_ray import data, pairs, runtime
from lr_ray.config import Config
from lr_ray.evaluation import evaluate as run_evaluation
from lr_ray.rollout import rollout
from lr_ray.rows import PAIRS
from lr_ray.runtime import Watch
from lr_ray.sampling import check_model
from lr_ray.store import Store

PAIRS_A_FILE = 256
STAGES = ("sample", "judge", "pairs", "train", "evaluate", "report")
# What the finished rows of a run directory depend on. Everything else may change between two calls.
IDENTITY = {
    "data": {"prompt_template"},
    "sampling": {"model", "n", "temperature", "top_p", "max_tokens", "truncate"},
    "judge": {
        "model",
        "max_tokens",
        "structured_output",
        "parameters",
        "extract_chunk_tokens",
        "tokenizer",
        "no_statements_score",
        "weights",
        "retrieval",
    },
}


def say(text: str) -> None:
    """One plain line for the user, beside the display."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


class Run:
    """One call of the command line on one run directory; `failed` counts rows that failed for good."""

    def __init__(self, config: Config, watch: Watch) -> None:
        self.config, self.watch = config, watch
        self.store = Store(config.run_dir)
        self.failed = 0

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds of a stage to `timing.json`, over all calls that worked on it."""
        began = time.monotonic()
        try:
            yield
        finally:
            times = json.loads(self.store.read("timing.json") or b"{}")
            times[stage] = round(times.get(stage, 0.0) + time.monotonic() - began, 1)
            self.store.write(json.dumps(times).encode(), "timing.json")

    @property
    def nothing_left(self) -> bool:
        """No prompt came through sampling or judging."""
        return not (self.store.files("sampled") or self.store.files("judged"))

    def sample(self) -> None:
        """Candidates for every prompt, without judging."""
        self._roll("sampling", judge=False)

    def judge(self) -> None:
        """Scores for what was sampled, here or (`data.candidates`) elsewhere."""
        self._roll("judging", sample=False)

    def sample_and_judge(self) -> None:
        """Both as one stream."""
        self._roll("sampling and judging")

    def _roll(self, stage: str, *, sample: bool = True, judge: bool = True) -> None:
        pointers = inputs(self.config)
        with self.timed(stage):
            counts = rollout(self.config, self.store, pointers, self.watch, sample=sample, judge=judge)
        self.failed += counts["failed"]
        if counts["done"]:
            say(f"{stage}: {counts['done']} of {len(pointers)} prompts were done already")
        if counts["failed"]:
            of = f"{counts['failed']} of {len(pointers)}"
            say(f"{stage}: {of} prompts failed; failed/ in the run directory says why")

    def pairs(self) -> None:
        """Best against worst of every judged prompt; `pairs.json` counts what was dropped and why."""
        rules = self.config.pairs.model_dump()
        ids = sorted(self.store.index("judged"))
        before = json.loads(self.store.read("pairs.json") or b"{}")
        if before.get("rules") == rules and before.get("prompts") == len(ids):
            say(f"pairs: {before['pairs']} pairs were made already")
            return
        if before and self.store.exists("checkpoints"):
            raise ValueError(
                f"{self.config.run_dir}: the model there is trained on other pairs "
                "(the rules or the judged prompts changed); use another run_dir"
            )
        with self.timed("pairs"):
            dropped: dict[str, int] = {}
            made: list[Any] = []
            for row in self.store.rows("judged"):
                pair: Any = pairs.choose(row, self.config.pairs)  # type: ignore[arg-type]
                if isinstance(pair, str):
                    dropped[pair] = dropped.get(pair, 0) + 1
                else:
                    made.append(pair)
            made.sort(key=lambda pair: pair["prompt_id"])
            self.store.clear("pairs")
            for start in range(0, len(made), PAIRS_A_FILE):
                self.store.write_rows("pairs", made[start : start + PAIRS_A_FILE], PAIRS)
            audit = {"prompts": len(ids), "pairs": len(made), "dropped": dropped, "rules": rules}
            self.store.write(json.dumps(audit, indent=2).encode(), "pairs.json")
        drops = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        say(f"pairs: {len(made)} pairs of {len(ids)} prompts" + (f"; dropped: {drops}" if drops else ""))

    def train(self) -> None:
        """The pairs (or SFT rows) → `model/`."""
        from lr_ray.training import launch

        training = self.config.training
        check_model(training.model or self.config.sampling.model, "training.model or sampling.model")
        if launch.done(self.store):
            say("train: the model was trained already")
            return
        if training.method == "dpo" and not training.data and not self.store.files("pairs"):
            raise ValueError(f"{self.config.run_dir}: no pairs to train on; judge and pair first")
        runtime.require({"training": training.num_workers * training.num_cpus})
        from lr_ray.meter import STEPS

        with self.timed("training"), self.watch.display.stage("training", counted=STEPS):
            self.watch.display.note("starting Ray Train and DeepSpeed")
            launch.train(self.config, self.store, self.watch.tally)

    def evaluate(self) -> None:
        """The model before and after on `evaluation.prompts`."""
        if not self.config.evaluation.prompts:
            say("evaluate: no evaluation.prompts in the config, so nothing is evaluated")
            return
        if not self.config.evaluation.model and not self.store.exists("model"):
            raise ValueError(f"{self.config.run_dir}: no model to evaluate; train first")
        pointers = data.scan(self.config.evaluation.prompts)
        with self.timed("evaluation"):
            result = run_evaluation(self.config, self.store, pointers, self.watch)
        self.failed += sum(result["failed"].values())

    def report(self) -> None:
        """Everything in the run directory → `report.html`."""
        from lr_ray.report import write

        write(self.store)
        say(f"report: {self.store.url}/report.html")


def inputs(config: Config) -> list[data.Pointer]:
    """Checked pointers to every prompt of the config.

    Raises:
        ValueError: bad input, or none named.
    """
    if not config.data.prompts and not config.data.candidates:
        raise ValueError("data.prompts is not set: name jsonl or parquet files of prompts")
    return data.scan(config.data.prompts, config.data.candidates)


def check(config: Config, stages: tuple[str, ...]) -> None:
    """Find what would stop the stages later, before anything is sampled or paid.

    Raises:
        ValueError: bad prompts, model, judge or training settings, in one sentence.
    """
    if {"sample", "judge"} & set(stages):
        inputs(config)
    if "sample" in stages and not config.data.candidates:
        check_model(config.sampling.model, "sampling.model")
    if "train" in stages:
        from lr_ray.training import launch

        launch.check(config)
    if "evaluate" in stages and config.evaluation.prompts:
        data.scan(config.evaluation.prompts)
    if {"judge", "evaluate"} & set(stages):
        from lr_ray.llm import client

        client.check(config)


def claim(config: Config) -> None:
    """Save the resolved config in the run directory, or refuse one that finished rows contradict.

    Raises:
        ValueError: the directory holds rows made under another value of a key in `IDENTITY`.
    """
    store = Store(config.run_dir)
    saved = store.read("config.yaml")
    now = config.model_dump(mode="json")
    if saved is not None and (store.files("sampled") or store.files("judged")):
        before = yaml.safe_load(saved)
        for section, keys in IDENTITY.items():
            for key in sorted(keys & before.get(section, {}).keys()):
                was, asked = before[section][key], now[section][key]
                if was != asked:
                    raise ValueError(
                        f"{config.run_dir} holds rows made with {section}.{key}={was!r}; "
                        f"the config now says {asked!r}: use another run_dir"
                    )
    store.write(configs.dump(config).encode(), "config.yaml")


def execute(config: Config, stages: tuple[str, ...]) -> int:
    """Run stages in order on Ray.

    Returns:
        Rows that failed for good.

    Raises:
        ValueError: bad input or config.
    """
    check(config, stages)
    claim(config)
    if stages == ("report",):
        Run(config, Watch(None, None)).report()  # type: ignore[arg-type]
        return 0
    runtime.start()
    with runtime.watch(config.judge.prices) as watch:
        run = Run(config, watch)
        steps: list[Callable[[], None]] = []
        if stages[:2] == ("sample", "judge"):
            steps, stages = [run.sample_and_judge], stages[2:]
        steps += [getattr(run, stage) for stage in stages]
        for step in steps:
            step()
            if run.failed and run.nothing_left:
                say("every prompt failed, so nothing is left for the later stages")
                break
        return run.failed
