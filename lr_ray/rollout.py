"""Prompts → candidates → scores, as one streaming Ray Data pipeline over one run directory.

A prompt is one row from end to end. What is in `sampled/`, `judged/` or `failed/` is done; the rest of
the pointers flows through, each row saved as it comes out of an engine and again as it leaves the judge.
When the judge stops early (`llm.spending`), rows come out of it "left", saved nowhere, and the flow ends.
"""

import functools
from collections.abc import Set
from typing import TYPE_CHECKING, Any, NamedTuple

from lr_ray import data
from lr_ray.config import Config
from lr_ray.flow import SAVING, blocks, flow, saved
from lr_ray.judge.actor import judge_stage
from lr_ray.llm.spending import Stopped
from lr_ray.placement import DATA_TASKS, Groups, Need, require
from lr_ray.rows import Packed, pack
from lr_ray.runtime import Watch
from lr_ray.sampling import need, sample_stage
from lr_ray.store import Store

if TYPE_CHECKING:
    import ray.data


def rollout(
    config: Config,
    store: Store,
    pointers: list[data.Pointer],
    watch: Watch,
    *,
    sample: bool = True,
    judge: bool = True,
    name: str = "",
    retry: bool | Set[str] = False,
) -> dict[str, int]:
    """Sample and judge what is not done yet; with `retry`, what failed before too, and where that names
    prompts, those of them that are judged.

    Returns:
        Counts of prompts: `done` before, `sampled`, `judged`, and `failed` of all pointers.

    Raises:
        ValueError: too few CPUs or GPUs for the actors asked for.
        Stopped: the judge stopped early; what was paid for and what was judged is saved.
    """
    again = retry if isinstance(retry, Set) else set()
    finished = store.index("judged").keys() - again if judge else set()
    if retry is False:
        config = config.model_copy(
            update={"judge": config.judge.model_copy(update={"retry_unscored": False})}
        )
        finished |= store.index("failed").keys()
    sampled = store.index("sampled")
    left = [pointer for pointer in pointers if pointer.prompt_id not in finished]
    fresh = [p for p in left if p.prompt_id not in sampled]
    waiting = {p.prompt_id: sampled[p.prompt_id] for p in left if p.prompt_id in sampled} if judge else {}
    if not sample:
        fresh = [p for p in fresh if p.candidates]
    counts = {"done": len(pointers) - len(fresh) - len(waiting), "sampled": 0, "judged": 0, "left": 0}
    if fresh or waiting:
        # Where candidates come from files, every prompt has some.
        engines = any(not p.candidates for p in fresh)
        config = _fitted(config, engines, judge)
        stage = name or " and ".join(["sampling"] * engines + ["judging"] * judge)
        counted = ("judged", "failed") if judge else ("sampled", "failed")
        with watch.display.stage(stage, len(fresh) + len(waiting), counted), Groups() as groups:
            if engines:
                watch.display.note("starting vLLM")
            work = _Work(fresh, waiting, engines)
            dataset = _dataset(config, store, work, watch, groups, judge=judge)
            stopped = flow(dataset, counts, watch, engines)
        if stopped:
            done = f"{counts['judged']} prompts were judged now, {counts['done']} were done before"
            raise Stopped(f"{stopped}; {done}; what is paid is kept, the same command goes on from there")
    of_pointers = {pointer.prompt_id for pointer in pointers}
    counts["failed"] = len(failed(store) & of_pointers)
    return counts


def failed(store: Store) -> set[str]:
    """Prompts that failed for good."""
    # A row in both has failed and was taken up again: a crash came before it was taken out of failed/.
    return store.index("failed").keys() - store.index("judged").keys()


class _Work(NamedTuple):
    """What is to be done: `waiting` are sampled already, with the place of their rows in `sampled/`."""

    fresh: list[data.Pointer]
    waiting: dict[str, tuple[str, int]]
    engines: bool


def _fitted(config: Config, engines: bool, judge: bool) -> Config:
    """The config with as many actors as the cluster holds."""
    needs = {"saving": SAVING, "Ray Data": DATA_TASKS}
    if engines:
        needs["sampling"] = need(config.sampling)
    if judge:
        each = {"CPU": config.judge.num_cpus, **config.judge.resources}
        needs["judge"] = Need("judging", config.judge.actors, each)
    counts = dict(zip(needs, require(list(needs.values()), config.wait_for_nodes), strict=True))
    return config.model_copy(
        update={
            stage: getattr(config, stage).model_copy(update={"actors": counts[stage]})
            for stage in ("sampling", "judge")
            if stage in needs
        }
    )


def _dataset(
    config: Config, store: Store, work: _Work, watch: Watch, groups: Groups, *, judge: bool
) -> "ray.data.Dataset":
    """The pipeline; its rows are `{prompt_id, kind, reason}` of what was saved last, or left."""
    load = functools.partial(_load, template=config.data.prompt_template, store=store)
    parts = []
    if work.fresh:
        places = [
            {"prompt_id": p.prompt_id, "prompt": [*p.prompt], "candidates": [[*c] for c in p.candidates]}
            for p in work.fresh
        ]
        part = blocks([dict(pack("pointer", place)) for place in places])
        if work.engines:
            part = sample_stage(part, config, groups, load, watch.tally)
            part = saved(part, store, keep=judge)
        parts.append(part)
    if work.waiting:
        places = [{"prompt_id": one, "file": name, "row": row} for one, (name, row) in work.waiting.items()]
        parts.append(blocks([dict(pack("pointer", place)) for place in places]))
    dataset = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    if not judge:
        return dataset
    dataset = judge_stage(dataset, config, store, watch.tally, load)
    return saved(dataset, store, keep=False, again=True)


def _load(place: dict[str, Any], template: str, store: Store) -> Packed:
    """The row at a place: in `sampled/`, or in the input."""
    if "file" in place:
        row = store.table("sampled", place["file"]).slice(place["row"], 1).to_pylist()[0]
        return pack("sampled", row)
    candidates = [data.Place(*candidate) for candidate in place["candidates"]]
    pointer = data.Pointer(place["prompt_id"], data.Place(*place["prompt"]), candidates)
    return pack("sampled" if candidates else "prompt", data.load(pointer, template))
