"""The loop on one page: which stage feeds which, and what resumes where.

    prompts ─► sample ─► judge ─► pairs ─► train ─► evaluate ─► report
               sampled/  judged/  pairs/   model/   evaluation.json  report.html

Each stage looks in the run directory for what is done, does the rest, and says both.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from lr_ray import agreement, card, evaluation, metrics, pairs, rewards, runtime
from lr_ray import config as configs
from lr_ray.config import Config, Pairs
from lr_ray.lacking import ready
from lr_ray.llm import shared
from lr_ray.placement import Need, require, worker
from lr_ray.preflight import RETRY, Found, check, claim
from lr_ray.progress import say
from lr_ray.retry import failures, paired, retry, settle, unscored, waiting
from lr_ray.rollout import rollout
from lr_ray.runtime import Watch
from lr_ray.sampling import check_model
from lr_ray.schemas import PAIRS
from lr_ray.store import Store
from lr_ray.synthesis import run as synthesis

PAIRS_A_FILE = 256


class Run:
    """One call of the command line on one run directory; `failed` counts rows that failed for good.

    With `store`, pairs and all that follows from them lie there; what is sampled and judged, and the model
    before, are those of `config.run_dir` all the same.
    """

    def __init__(
        self, config: Config, watch: Watch, found: Found | None = None, store: Store | None = None
    ) -> None:
        self.config, self.watch = config, watch
        self.found = found or Found()
        self.source = Store(config.run_dir)
        self.store = store or self.source
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
        """Sample and judge again what is in `failed/`, and in that of rewards, evaluation and other parts."""
        if self.found.prompts:
            with self.timed("sampling and judging"):
                self._retry("retry-failed", retry(self.config, self.store, self.found.prompts, self.watch))
        if rewards.lost(self.config, self.source):
            self._retry_rewards()
        if self.found.held_out:
            with self.timed("evaluation"):
                for name, config, store in evaluation.sides(self.config, self.store, self.source):
                    if waiting(config, store):
                        counts = retry(config, store, self.found.held_out, self.watch, name)
                        self._retry(f"retry-failed, {name}", counts)
                if self.store.exists("evaluation.json"):
                    evaluation.written(self.config, self.store, self.found.held_out, self.source)
        # Where nothing is evaluated whole yet, there may be no model after.
        evaluated = self.store.exists("evaluation.json")
        if evaluated and evaluation.lost(self.config, self.store, self.source):
            with self.timed("evaluation"):
                result = evaluation.evaluate(
                    self.config, self.store, self.found.held_out, self.watch, self.source, retry=True
                )
            lost = sum(result["failed"].values())
            self.failed += lost
            say(
                f"retry-failed, benchmarks: {lost} rows failed again"
                if lost
                else "retry-failed, benchmarks: done"
            )

        if synthesis.lost(self.store):
            before = self.store.files("failed")
            self.synthesize(retry=True)
            settle(self.store, before, self.store.index("synthesized").keys())
        if self.found.labels is not None:
            self._agree(retry=True)

    def _retry_rewards(self) -> None:
        """Ask again for rewards that failed; pairs without them are made anew the next time."""
        what = f"retry-failed, {self.config.pairs.reward}"
        without = [place for place in paired(self.source) if self._rests_on_these_rewards(place)]
        if any(place.exists("checkpoints") for place in without):
            say(f"{what}: not taken up, since a model is trained on pairs without them")
            return
        for place in without:
            place.fs.delete_file(place.path("pairs.json"))
        with self.timed("pairs"):
            failed = rewards.make(self.config, self.source, self.watch, retry=True)
        self.failed += failed
        say(f"{what}: {failed} rows failed again" if failed else f"{what}: done")

    def _rests_on_these_rewards(self, place: Store) -> bool:
        audit = json.loads(place.read("pairs.json") or b"{}")
        asked = (self.config.pairs.reward, rewards.settings(self.config))
        return (audit.get("rules", {}).get("reward"), audit.get("reward")) == asked

    def _retry(self, what: str, counts: dict[str, int]) -> None:
        self.failed += counts["failed"]
        say(f"{what}: {counts['taken']} prompts taken up, {counts['judged']} judged")
        if counts["failed"]:
            say(f"{what}: {counts['failed']} prompts failed again; failed/ says why")

    def synthesize(self, retry: bool = False) -> None:
        """Documents → `prompts.jsonl`; `synthesis.json` counts what became of documents and questions."""
        with self.timed("synthesis"):
            made = synthesis.synthesize(self.config, self.store, self.watch, retry=retry)
        self.failed += made["failed"]
        say(synthesis.said(made, self.store.url))

    def pairs(self) -> None:
        """Best against worst of every judged prompt; `pairs.json` counts what was dropped and why.

        Also of prompts that `data.prompts` named once: what is judged makes pairs without any input, and a
        model that is trained on them must not lose them when the files change.
        """
        ids = sorted(self.source.index("judged"))
        self._say_unnamed(ids)
        before = json.loads(self.store.read("pairs.json") or b"{}")
        if before.get("prompts") == len(ids) and self._by_these_rules(before):
            say(f"pairs: {before['pairs']} pairs were made already")
            self.failed += rewards.lost(self.config, self.source)
            self._show(before)
            return
        if before and self.store.exists("checkpoints"):
            raise ValueError(
                f"{self.store.url}: the model there is trained on other pairs "
                "(the rules or the judged prompts changed); use another run_dir"
            )
        with self.timed("pairs"):
            self.failed += rewards.make(self.config, self.source, self.watch)
            made, dropped = self._chosen()
            self.store.clear("pairs")
            for start in range(0, len(made), PAIRS_A_FILE):
                self.store.write_rows("pairs", made[start : start + PAIRS_A_FILE], PAIRS)
            audit = {
                **{"prompts": len(ids), "pairs": len(made), "dropped": dropped},
                **{"rules": self.config.pairs.model_dump(), "reward": rewards.settings(self.config)},
            }
            self.store.write(json.dumps(audit, indent=2).encode(), "pairs.json")
        self._show(audit)
        drops = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        say(f"pairs: {len(made)} pairs of {len(ids)} prompts" + (f"; dropped: {drops}" if drops else ""))

    def _say_unnamed(self, ids: list[str]) -> None:
        """Say how many judged prompts the config does not name, where the inputs were looked at."""
        named = {pointer.prompt_id for pointer in self.found.prompts}
        if named and not named.issuperset(ids):
            number = len(set(ids) - named)
            say(
                f"pairs: {number} of {len(ids)} judged prompts are not in data.prompts now, and are taken too"
            )

    def _chosen(self) -> tuple[list[Any], dict[str, int]]:
        """The pairs by prompt id, and how many prompts gave none, by reason."""
        dropped: dict[str, int] = {}
        made: list[Any] = []
        rewarded = rewards.rewarder(self.config, self.source)
        for row in self.source.rows("judged"):
            found = rewarded(row)  # type: ignore[arg-type]
            pair: Any = pairs.choose(found[0], self.config.pairs, found[1]) if found else pairs.UNREWARDED
            if isinstance(pair, str):
                dropped[pair] = dropped.get(pair, 0) + 1
            else:
                made.append(pair)
        made.sort(key=lambda pair: pair["prompt_id"])
        return made, dropped

    def _by_these_rules(self, audit: dict[str, Any]) -> bool:
        """Whether the pairs that `audit` counts were made as they would be again."""
        # What an audit does not name has its default.
        rules = Pairs.model_validate(audit.get("rules", {}))
        return rules == self.config.pairs and audit.get("reward", {}) == rewards.settings(self.config)

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
            raise ValueError(f"{self.store.url}: no pairs to train on; judge and pair first")
        workers = Need("training", training.num_workers, worker(training), flexible=False)
        require([workers], self.config.wait_for_nodes)
        from lr_ray.meter import STEPS

        # Of several trainings in one call, each counts its own.
        self.watch.tally.put.remote({"train_steps": 0, "train_total": 0, "train_tokens": 0})
        with self.timed("training"), self.watch.display.stage("training", counted=STEPS):
            self.watch.display.note("starting Ray Train and DeepSpeed")
            done = launch.train(self.config, self.store, self.watch.tally)
        if done.get("unshared"):
            say(f"train: each answer computed its own prompt, because {done['unshared']}")
        card.write(self.store)

    def evaluate(self) -> None:
        """The model before and after on `evaluation.prompts` and `evaluation.benchmarks`."""
        if not (self.config.evaluation.prompts or self.config.evaluation.benchmarks):
            say("evaluate: no evaluation.prompts or benchmarks in the config, so nothing is evaluated")
            return
        if not self.config.evaluation.model and not self.store.exists("model"):
            raise ValueError(f"{self.store.url}: no model to evaluate; train first")
        with self.timed("evaluation"):
            result = evaluation.evaluate(
                self.config, self.store, self.found.held_out, self.watch, self.source
            )
        card.write(self.store)
        self.failed += sum(result["failed"].values())

    def agreement(self) -> None:
        """How far the judge agrees with `agreement.pairs`."""
        self._agree(retry=False)

    def _agree(self, *, retry: bool) -> None:
        assert self.found.labels is not None
        with self.timed("agreement"):
            result = agreement.agree(self.config, self.store, self.found.labels, self.watch, retry=retry)
        self.failed += result["failed"]
        say(agreement.render(result))

    def report(self) -> None:
        """Everything in the run directory → `report.html`."""
        report(self.store)


def report(store: Store) -> None:
    """Everything in the run directory → `report.html`."""
    from lr_ray.report import write

    write(store)
    say(f"report: {store.url}/report.html")


def report_of(where: str, overrides: Sequence[str] = ()) -> None:
    """The report of a config's run directory, or of the run directory `where`.

    Raises:
        ValueError: neither is there, or a file of the run is not what it should be.
    """
    if "://" in where or os.path.isdir(where):
        if overrides:
            raise ValueError(f"{where} is a run directory; {overrides[0]} would change a config")
        report(_existing(where))
        return
    execute(configs.load(where, list(overrides)), ("report",))


def _existing(run_dir: str) -> Store:
    there = Store(run_dir)
    if not there.exists("config.yaml"):
        raise ValueError(f"{run_dir}: not a run directory, it has no config.yaml")
    return there


def execute(config: Config, stages: tuple[str, ...]) -> int:
    """Run stages in order on Ray.

    Returns:
        Rows that failed for good.

    Raises:
        ValueError: bad input or config, or another run works on the directory.
    """
    if stages == ("report",):
        report(_existing(config.run_dir))
        return 0
    needs = stages
    if stages == RETRY:
        needs = _to_retry(config)
        if not needs:
            say("retry-failed: nothing is in failed/")
            return 0
    found = check(config, needs)
    if "synthesize" in needs:
        synthesis.check(config)
    if "pairs" in needs:
        rewards.check(config)
    ready(config, stages)
    with Store(config.run_dir).claimed():
        claim(config, stages)
        if stages[0] == "synthesize" and synthesis.finished(config, Store(config.run_dir)):
            return _stepped(Run(config, None, found), stages)  # type: ignore[arg-type]
        return _execute(config, stages, found)


def _to_retry(config: Config) -> tuple[str, ...]:
    """The stages that take up again what has failed."""
    store = Store(config.run_dir)
    failed_at = {row["stage"] for row in failures(store)}
    needs: tuple[str, ...] = ("judge",) if failed_at - {"synthesize"} or unscored(config, store) else ()
    if "sample" in failed_at:
        needs = ("sample", *needs)
    held_out = config.evaluation.prompts and any(
        waiting(of_side, there) for _, of_side, there in evaluation.sides(config, store)
    )
    if held_out or (store.exists("evaluation.json") and evaluation.lost(config, store)):
        needs = (*needs, "evaluate")
    if rewards.lost(config, store):
        needs = (*needs, "pairs")
    if synthesis.lost(store):
        needs = (*needs, "synthesize")
    if agreement.lost(store):
        needs = (*needs, "agreement")
    return needs


def _execute(config: Config, stages: tuple[str, ...], found: Found) -> int:
    runtime.start()
    with ExitStack() as ending:
        watch = ending.enter_context(runtime.watch(config.judge.prices, metrics.run_label(config.run_dir)))
        ending.callback(shared.release)
        return _stepped(Run(config, watch, found), stages)


def _stepped(run: Run, stages: tuple[str, ...]) -> int:
    """Take the steps; returns how many rows failed for good."""
    steps: list[Callable[[], None]] = []
    if stages[:2] == ("sample", "judge"):
        steps, stages = [run.sample_and_judge], stages[2:]
    steps += [getattr(run, stage) for stage in stages]
    rolled = (run.sample_and_judge, run.sample, run.judge)
    for step in steps:
        step()
        if step in rolled and run.failed and run.nothing_left:
            say("every prompt failed, so nothing is left for the later stages")
            break
    return run.failed
