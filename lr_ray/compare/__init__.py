"""`lr-ray compare`: several trainings on the same candidates, each evaluated on the same held-out prompts.

    prompts ─► sample ─► judge ─┬─► pairs ─► train ─► evaluate    compare/NAME-seedN/
                                ├─► pairs ─► train ─► evaluate
                                └─► …                             compare.json

Each step is the stage that `lr-ray run` has, in a run directory of its own inside the comparison's;
candidates, scores, rewards that take work, and the model before are made once and shared. What is done is
not done again.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lr_ray import evaluation, metrics, rewards, runtime
from lr_ray.compare.entries import Entry, against, entries, names
from lr_ray.compare.result import LENGTH, RESULT, Score, gathered, measured, show, written
from lr_ray.config import Config
from lr_ray.lacking import can_pair
from lr_ray.llm import shared
from lr_ray.pipeline import Run
from lr_ray.preflight import Found, check, claim
from lr_ray.progress import say
from lr_ray.retry import waiting
from lr_ray.runtime import Watch
from lr_ray.store import Store

__all__ = ["LENGTH", "Score", "checked", "execute", "gathered", "measured", "retry", "show", "written"]

STAGES = ("sample", "judge", "evaluate")


def execute(config: Config) -> tuple[int, dict[str, Any]]:
    """Do what is not done of the comparison, write `compare.json`.

    Returns:
        How many rows failed for good, and what is written.

    Raises:
        ValueError: bad input or config, or another run works on the directory.
        Stopped: the judge stopped early; the same command goes on from there.
    """
    todo, found = checked(config)
    base = Store(config.run_dir)
    with base.claimed():
        claim(config, STAGES)
        with _watched(config) as watch:
            run = Run(config, watch, found)
            run.sample_and_judge()
            if run.nothing_left:
                raise ValueError(
                    f"{config.run_dir}: every prompt failed, as failed/ says, so nothing is compared"
                )
            failed = run.failed + sum(_train(entry, base, todo, found, watch) for entry in todo)
        result = written(config)
    say(f"compare: {base.url}/{RESULT}")
    return failed + sum(seed["failed"] for one in result["runs"] for seed in one["seeds"]), result


def retry(config: Config) -> int:
    """Take up again what failed for good in the runs of a comparison, and write `compare.json` anew.

    What the runs share is the pipeline's to take up.

    Returns:
        How many rows failed again.

    Raises:
        ValueError, Stopped: as `execute`.
    """
    base = Store(config.run_dir)
    lost = [entry for entry in entries(config) if _lost(entry, base)]
    if not lost:
        return 0
    found = checked(config)[1]._replace(prompts=[])
    failed = 0
    with base.claimed():
        claim(config, STAGES)
        with _watched(config) as watch:
            for entry in lost:
                say(f"retry-failed: {entry.folder}")
                run = Run(entry.config, watch, found, entry.store(base))
                run.retry_failed()
                failed += run.failed
        written(config)
    return failed


def _lost(entry: Entry, base: Store) -> bool:
    """Whether the entry misses rewards, or rows of its evaluation."""
    store, config = entry.store(base), entry.config
    if rewards.lost(config, base) and not store.exists("checkpoints"):
        return True
    if not store.exists("evaluation.json"):
        return False
    sides = evaluation.sides(config, store, base)
    return evaluation.lost(config, store, base) or any(waiting(one, there) for _, one, there in sides)


@contextmanager
def _watched(config: Config) -> Iterator[Watch]:
    """Ray, and the run's display and counts."""
    runtime.start()
    with ExitStack() as ending:
        watch = ending.enter_context(runtime.watch(config.judge.prices, metrics.run_label(config.run_dir)))
        ending.callback(shared.release)
        yield watch


def checked(config: Config) -> tuple[list[Entry], Found]:
    """The trainings and the inputs, once nothing is found that would stop any of them later.

    Raises:
        ValueError: in one sentence.
    """
    if not (config.evaluation.prompts or config.evaluation.benchmarks):
        raise ValueError("evaluation.prompts is not set: a comparison needs held-out prompts or benchmarks")
    if config.evaluation.model:
        raise ValueError("evaluation.model is set: a comparison evaluates the models that it trains")
    todo = entries(config)
    against(config)
    from lr_ray.training import launch

    runs = [entry.config for entry in todo[: len(names(config))]]
    for one in runs:
        launch.check(one)
        if not one.training.data:
            rewards.check(one)
    found = check(config, STAGES)
    for one in runs:
        can_pair(one, found.prompts)
    return todo, found


def _train(entry: Entry, base: Store, todo: list[Entry], found: Found, watch: Watch) -> int:
    """Pairs, training and evaluation of one entry; rows that failed for good before the evaluation."""
    from lr_ray.training import launch

    store = entry.store(base)
    _claim(entry, store)
    say(f"compare: {entry.folder}")
    run = Run(entry.config, watch, found, store)
    if not entry.config.training.data:
        run.pairs()
        if not store.files("pairs"):
            say(f"compare: {entry.folder} has no pairs, so nothing is trained")
            return run.failed
    failed = run.failed
    if not launch.done(store):
        _lend([other.store(base) for other in todo], store)
    run.train()
    run.evaluate()
    return failed


def _claim(entry: Entry, store: Store) -> None:
    """Save what the entry is made with in its run directory, or refuse one that was made with another.

    Raises:
        ValueError: a training began there with other settings.
    """
    claim(entry.config.model_copy(update={"run_dir": store.url}), (), "give the run another name")


def _lend(siblings: list[Store], store: Store) -> None:
    """Copy the reference's log-probs that other entries have: many of their pairs are the same."""
    for other in siblings:
        folders = [f"reference/{model}" for model in other.folders("reference") if other.url != store.url]
        for folder in folders:
            for name in sorted(set(other.files(folder)) - set(store.files(folder))):
                store.write(other.read(folder, name) or b"", folder, name)
