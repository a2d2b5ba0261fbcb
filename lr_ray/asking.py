"""Rows through one stage of calls: what is in the run directory is done, the rest flows, each row is saved.

What a rollout is to candidates, this is to everything else that asks a chat endpoint: synthesis,
comparisons, grading.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lr_ray.config import Config
from lr_ray.flow import SAVING, blocks, flow, saved
from lr_ray.llm.asker import Asker, ask_stage
from lr_ray.llm.spending import Stopped
from lr_ray.placement import DATA_TASKS, Need, require
from lr_ray.rows import Kind, Packed, pack
from lr_ray.runtime import Watch
from lr_ray.store import Store

Load = Callable[[Any], Mapping[str, Any]]
"""Item → row with a `prompt_id`, by the actor that works on it: long rows pass through nobody else."""


def ask_rows(
    config: Config,
    store: Store,
    items: Iterable[tuple[str, Any]],
    asker: type[Asker],
    watch: Watch,
    *,
    load: Load,
    name: str,
    retry: bool = False,
) -> dict[str, int]:
    """Let `asker` work on every item that is not done: a row's id, and the JSON `load` makes the row of.

    What it makes lies in the folder of that kind, what failed for good in `failed/`; with `retry`, that is
    taken up again. Calls are under `config.judge`'s limits and budget, and in the ledger of `store`.

    Returns:
        Counts of items: `done` before, and of all `failed`.

    Raises:
        ValueError: too few CPUs for an actor.
        Stopped: the run stopped early; what was paid for is kept.
    """
    every = list(items)
    finished = set(store.index(asker.makes)) | (set() if retry else store.index("failed").keys())
    left = [{"prompt_id": one, "item": item} for one, item in every if one not in finished]
    counts = {"done": len(every) - len(left), asker.makes: 0}
    if left:
        judge = config.judge
        each = {"CPU": judge.num_cpus, **judge.resources}
        needs = [SAVING, DATA_TASKS, Need(name, judge.actors, each)]
        actors = require(needs, config.wait_for_nodes)[-1]
        changes = {"actors": actors, "retry_unscored": retry and judge.retry_unscored}
        config = config.model_copy(update={"judge": judge.model_copy(update=changes)})
        with watch.display.stage(name, len(left), (asker.makes, "failed")):
            places = [dict(pack("pointer", one)) for one in left]
            opened = functools.partial(_load, load=load, kind=asker.takes)
            made = ask_stage(blocks(places), asker, config, store, watch.tally, opened)
            stopped = flow(saved(made, store, keep=False), counts, watch, engines=False)
        if stopped:
            done = f"{counts[asker.makes]} rows were done now, {counts['done']} before"
            raise Stopped(f"{stopped}; {done}; what is paid is kept, the same command goes on from there")
    of_items = {one for one, _ in every}
    counts["failed"] = len((store.index("failed").keys() - store.index(asker.makes).keys()) & of_items)
    return counts


def _load(place: dict[str, Any], load: Load, kind: Kind) -> Packed:
    return pack(kind, load(place["item"]))
