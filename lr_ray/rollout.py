"""Prompts → candidates → scores, as one streaming Ray Data pipeline over one run directory.

A prompt is one row from end to end. What is in `sampled/`, `judged/` or `failed/` is done; the rest of
the pointers flows through, each row saved as it comes out of an engine and again as it leaves the judge.
"""

import functools
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lr_ray import data
from lr_ray.config import Config
from lr_ray.judge.actor import judge_stage
from lr_ray.rows import FAILED, JUDGED, SAMPLED, pack, unpack
from lr_ray.runtime import TASK_CPUS, Watch, require
from lr_ray.sampling import sample_stage
from lr_ray.store import Store

if TYPE_CHECKING:
    import ray.data

SCHEMAS = {"sampled": SAMPLED, "judged": JUDGED, "failed": FAILED}
ROWS_A_FILE = 8
"""Rows saved together: few enough that a crash re-samples little, enough that files stay few."""
MOST_BLOCKS = 2000
"""Ray Data's unit of streaming is a block; one a prompt, up to what its scheduler handles with ease."""


def rollout(
    config: Config,
    store: Store,
    pointers: list[data.Pointer],
    watch: Watch,
    *,
    sample: bool = True,
    judge: bool = True,
    name: str = "",
) -> dict[str, int]:
    """Sample and judge what is not done yet.

    Returns:
        Counts of prompts: `done` before, `sampled`, `judged`, and `failed` of all pointers.

    Raises:
        ValueError: too few CPUs or GPUs for the actors asked for.
    """
    finished = store.index("failed").keys() | (store.index("judged").keys() if judge else set())
    sampled = store.index("sampled")
    left = [pointer for pointer in pointers if pointer.prompt_id not in finished]
    fresh = [p for p in left if p.prompt_id not in sampled]
    waiting = [p.prompt_id for p in left if p.prompt_id in sampled] if judge else []
    if not sample:
        fresh = [p for p in fresh if p.candidates]
    counts = {"done": len(pointers) - len(fresh) - len(waiting), "sampled": 0, "judged": 0}
    if fresh or waiting:
        engines = any(not p.candidates for p in fresh)
        _require(config, engines, judge)
        stage = name or " and ".join(["sampling"] * engines + ["judging"] * judge)
        counted = ("judged", "failed") if judge else ("sampled", "failed")
        with watch.display.stage(stage, len(fresh) + len(waiting), counted):
            if engines:
                watch.display.note("starting vLLM")
            dataset = _dataset(config, store, fresh, waiting, watch, judge)
            for row in dataset.iter_rows():
                watch.display.note("")
                counts[row["kind"]] = counts.get(row["kind"], 0) + 1
    of_pointers = {pointer.prompt_id for pointer in pointers}
    counts["failed"] = len(store.index("failed").keys() & of_pointers)
    return counts


def _require(config: Config, engines: bool, judge: bool) -> None:
    stages, gpus = {"loading and saving": 2 * TASK_CPUS}, 0.0
    if engines:
        stages["sampling"] = config.sampling.actors * config.sampling.num_cpus
        sizes = config.sampling.engine
        gpus = config.sampling.actors * config.sampling.num_gpus
        gpus *= sizes.get("tensor_parallel_size", 1) * sizes.get("pipeline_parallel_size", 1)
    if judge:
        stages["judging"] = config.judge.actors * config.judge.num_cpus
    require(stages, gpus)


def _dataset(
    config: Config,
    store: Store,
    fresh: list[data.Pointer],
    waiting: list[str],
    watch: Watch,
    judge: bool,
) -> "ray.data.Dataset":
    """The pipeline; its rows are `{prompt_id, kind}` of what was saved last."""
    parts = []
    template = config.data.prompt_template
    if fresh:
        items = [{"prompt_id": p.prompt_id, "pointer": p} for p in fresh]
        part = _blocks(items).map(functools.partial(_load, template=template), num_cpus=TASK_CPUS)
        if any(not p.candidates for p in fresh):
            part = sample_stage(part, config, watch.tally)
            part = _saved(part, store, keep=judge)
        parts.append(part)
    if waiting:
        where = store.index("sampled")
        items = [{"prompt_id": one, "file": where[one][0], "row": where[one][1]} for one in waiting]
        parts.append(_blocks(items).map(functools.partial(_reload, store=store), num_cpus=TASK_CPUS))
    dataset = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    if not judge:
        return dataset
    unfinished = {p.prompt_id for p in fresh} | set(waiting)
    dataset = judge_stage(dataset, config, store, watch.tally, unfinished)
    return _saved(dataset, store, keep=False)


def _blocks(items: list[dict[str, Any]]) -> "ray.data.Dataset":
    import ray.data

    return ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS))


def _saved(dataset: "ray.data.Dataset", store: Store, *, keep: bool) -> "ray.data.Dataset":
    save: Any = functools.partial(_save, store=store, keep=keep)
    return dataset.map_batches(save, batch_size=ROWS_A_FILE, batch_format="pyarrow", num_cpus=TASK_CPUS)


def _load(item: dict[str, Any], template: str) -> dict[str, Any]:
    prompt_id, prompt, candidates = item["pointer"]
    pointer = data.Pointer(prompt_id, data.Place(*prompt), [data.Place(*place) for place in candidates])
    return dict(pack("sampled" if candidates else "prompt", data.load(pointer, template)))


def _reload(item: dict[str, Any], store: Store) -> dict[str, Any]:
    row = store.table("sampled", item["file"]).slice(item["row"], 1).to_pylist()[0]
    return dict(pack("sampled", row))


def _save(batch: pa.Table, store: Store, keep: bool) -> pa.Table:
    """Write each kind of row to its folder; with `keep` the whole rows flow on, else `{prompt_id, kind}`."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for packed in batch.to_pylist():
        row = unpack(packed)
        if keep or row.get("stage") != "sample":  # the others were saved when they left the engine
            groups.setdefault(packed["kind"], []).append(row)
    for kind, rows in groups.items():
        store.write_rows(kind, rows, SCHEMAS[kind])
    return batch if keep else batch.select(["prompt_id", "kind"])
