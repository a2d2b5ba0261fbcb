"""Rows through one stage of calls: what is in the run directory is done, the rest flows, each row is saved.

What a rollout is to candidates, this is to everything else that asks a chat endpoint: synthesis,
comparisons, grading.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lr_ray.config import Config
from lr_ray.flow import blocks, flow, saved
from lr_ray.llm.asker import Asker, ask_stage
from lr_ray.llm.spending import Stopped
from lr_ray.placement import DATA_TASKS, Need, require
from lr_ray.rows import pack
from lr_ray.runtime import TASK_CPUS, Watch
from lr_ray.store import Store

Load = Callable[[Any], Mapping[str, Any]]
"""Item → row with a `prompt_id`, in a task anywhere; so that long rows need not pass through the driver."""


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
    """Let `asker` work on every item (its row's id, and what `load` makes the row of) that is not done.

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
        loading = Need("loading and saving", 2, {"CPU": TASK_CPUS}, flexible=False)
        needs = [loading, DATA_TASKS, Need(name, judge.actors, each)]
        actors = require(needs, config.wait_for_nodes)[-1]
        config = config.model_copy(update={"judge": judge.model_copy(update={"actors": actors})})
        with watch.display.stage(name, len(left), (asker.makes, "failed")):
            rows = blocks(left).map(functools.partial(_load, load=load, kind=asker.takes), num_cpus=TASK_CPUS)
            made = ask_stage(rows, asker, config, store, watch.tally)
            stopped = flow(saved(made, store, keep=False), counts, watch, engines=False)
        if stopped:
            done = f"{counts[asker.makes]} rows were done now, {counts['done']} before"
            raise Stopped(f"{stopped}; {done}; what is paid is kept, the same command goes on from there")
    of_items = {one for one, _ in every}
    counts["failed"] = len((store.index("failed").keys() - store.index(asker.makes).keys()) & of_items)
    return counts


def _load(item: dict[str, Any], load: Load, kind: Any) -> dict[str, Any]:
    return dict(pack(kind, load(item["item"])))
