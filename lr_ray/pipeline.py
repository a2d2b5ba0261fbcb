"""The loop on one page: which stage feeds which, and what resumes where.

    prompts ─► sample ─► judge ─► pairs ─► train ─► evaluate ─► report
               sampled/  judged/  pairs/   model/   evaluation.json  report.html

Each stage looks in the run directory for what is done, does the rest, and says both.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lr_ray import card, evaluation, metrics, pairs, runtime
from lr_ray.config import Config
from lr_ray.llm import shared
from lr_ray.placement import Need, require, worker
from lr_ray.preflight import RETRY, Found, check, claim
from lr_ray.progress import say
from lr_ray.retry import failures, retry
from lr_ray.rollout import rollout
from lr_ray.rows import PAIRS
from lr_ray.runtime import Watch
from lr_ray.sampling import check_model
from lr_ray.store import Store

PAIRS_A_FILE = 256


class Run:
    """One call of the command line on one run directory; `failed` counts rows that failed for good."""

    def __init__(self, config: Config, watch: Watch, found: Found | None = None) -> None:
        self.config, self.watch = config, watch
        self.found = found or Found()
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
        pointers = self.found.prompts
        with self.timed(stage):
            counts = rollout(self.config, self.store, pointers, self.watch, sample=sample, judge=judge)
        self.failed += counts["failed"]
        if counts["done"]:
            say(f"{stage}: {counts['done']} of {len(pointers)} prompts were done already")
        if counts["failed"]:
            of = f"{counts['failed']} of {len(pointers)}"
            say(f"{stage}: {of} prompts failed; failed/ says why, and lr-ray retry-failed takes them up")

    def retry_failed(self) -> None:
        """Sample and judge again what is in `failed/`, of the evaluation too; what succeeds leaves it."""
        if self.found.prompts:
            with self.timed("sampling and judging"):
                self._retry("retry-failed", retry(self.config, self.store, self.found.prompts, self.watch))
        if self.found.held_out:
            with self.timed("evaluation"):
                for name, config, store in evaluation.sides(self.config, self.store):
                    if any(failures(store)):
                        counts = retry(config, store, self.found.held_out, self.watch, name)
                        self._retry(f"retry-failed, {name}", counts)
                if self.store.exists("evaluation.json"):
                    evaluation.written(self.config, self.store, self.found.held_out)

    def _retry(self, what: str, counts: dict[str, int]) -> None:
        self.failed += counts["failed"]
        say(f"{what}: {counts['taken']} prompts taken up, {counts['judged']} judged")
        if counts["failed"]:
            say(f"{what}: {counts['failed']} prompts failed again; failed/ says why")

    def pairs(self) -> None:
        """Best against worst of every judged prompt; `pairs.json` counts what was dropped and why."""
        rules = self.config.pairs.model_dump()
        ids = sorted(self.store.index("judged"))
        before = json.loads(self.store.read("pairs.json") or b"{}")
        if before.get("rules") == rules and before.get("prompts") == len(ids):
            say(f"pairs: {before['pairs']} pairs were made already")
            self._show(before)
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
        self._show(audit)
        drops = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        say(f"pairs: {len(made)} pairs of {len(ids)} prompts" + (f"; dropped: {drops}" if drops else ""))

    def _show(self, audit: dict[str, Any]) -> None:
        """What became of the judged prompts, as metrics; pairs alone can be made without a watch."""
        if self.watch is not None:
            outcomes = {"pair": audit["pairs"], **dict.fromkeys(pairs.REASONS, 0), **audit["dropped"]}
            self.watch.tally.put.remote({(metrics.PAIRS, name): n for name, n in outcomes.items()})

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
        workers = Need("training", training.num_workers, worker(training), flexible=False)
        require([workers], self.config.wait_for_nodes)
        from lr_ray.meter import STEPS

        with self.timed("training"), self.watch.display.stage("training", counted=STEPS):
            self.watch.display.note("starting Ray Train and DeepSpeed")
            done = launch.train(self.config, self.store, self.watch.tally)
        if done.get("unshared"):
            say(f"train: each answer computed its own prompt, because {done['unshared']}")
        card.write(self.store)

    def evaluate(self) -> None:
        """The model before and after on `evaluation.prompts`."""
        if not self.config.evaluation.prompts:
            say("evaluate: no evaluation.prompts in the config, so nothing is evaluated")
            return
        if not self.config.evaluation.model and not self.store.exists("model"):
            raise ValueError(f"{self.config.run_dir}: no model to evaluate; train first")
        with self.timed("evaluation"):
            result = evaluation.evaluate(self.config, self.store, self.found.held_out, self.watch)
        card.write(self.store)
        self.failed += sum(result["failed"].values())

    def report(self) -> None:
        """Everything in the run directory → `report.html`."""
        report(self.store)


def report(store: Store) -> None:
    """Everything in the run directory → `report.html`."""
    from lr_ray.report import write

    write(store)
    say(f"report: {store.url}/report.html")


def execute(config: Config, stages: tuple[str, ...]) -> int:
    """Run stages in order on Ray.

    Returns:
        Rows that failed for good.

    Raises:
        ValueError: bad input or config, or another run works on the directory.
    """
    needs = stages
    if stages == RETRY:
        needs = _to_retry(config)
        if not needs:
            say("retry-failed: nothing is in failed/")
            return 0
    found = check(config, needs)
    if stages == ("report",):
        claim(config, stages)
        report(Store(config.run_dir))
        return 0
    with Store(config.run_dir).claimed():
        claim(config, stages)
        return _execute(config, stages, found)


def _to_retry(config: Config) -> tuple[str, ...]:
    """The stages that take up again what has failed."""
    store = Store(config.run_dir)
    failed_at = {row["stage"] for row in failures(store)}
    needs: tuple[str, ...] = ("judge",) if failed_at else ()
    if "sample" in failed_at:
        needs = ("sample", *needs)
    if config.evaluation.prompts and any(
        any(failures(there)) for *_, there in evaluation.sides(config, store)
    ):
        needs = (*needs, "evaluate")
    return needs


def _execute(config: Config, stages: tuple[str, ...], found: Found) -> int:
    runtime.start()
    with ExitStack() as ending:
        watch = ending.enter_context(runtime.watch(config.judge.prices, metrics.run_label(config.run_dir)))
        ending.callback(shared.release)
        run = Run(config, watch, found)
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
