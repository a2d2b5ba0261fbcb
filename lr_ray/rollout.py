"""Prompts → candidates → scores, as one streaming Ray Data pipeline over one run directory.

A prompt is one row from end to end. What is in `sampled/`, `judged/` or `failed/` is done; the rest of
the pointers flows through, each row saved as it comes out of an engine and again as it leaves the judge.
When the judge stops early (`llm.spending`), rows come out of it "left", saved nowhere, and the flow ends.
"""

import functools
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa

from lr_ray import data
from lr_ray.config import Config
from lr_ray.judge.actor import judge_stage
from lr_ray.llm.spending import Stopped
from lr_ray.placement import DATA_TASKS, Need, require
from lr_ray.rows import FAILED, JUDGED, SAMPLED, pack, unpack
from lr_ray.runtime import TASK_CPUS, Watch
from lr_ray.sampling import bundles, sample_stage
from lr_ray.store import Store

if TYPE_CHECKING:
    import ray.data

SCHEMAS = {"sampled": SAMPLED, "judged": JUDGED, "failed": FAILED}
ROWS_A_FILE = 8
"""Rows saved together: few enough that a crash re-samples little, enough that files stay few."""
SETTLED = 3.0
"""Seconds after which the counters are sure to know of every call in flight; they lag by one."""
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
    retry: bool = False,
) -> dict[str, int]:
    """Sample and judge what is not done yet; with `retry`, what failed before too.

    Returns:
        Counts of prompts: `done` before, `sampled`, `judged`, and `failed` of all pointers.

    Raises:
        ValueError: too few CPUs or GPUs for the actors asked for.
        Stopped: the judge stopped early; what was paid for and what was judged is saved.
    """
    finished = set(store.index("judged")) if judge else set()
    if not retry:
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
        with watch.display.stage(stage, len(fresh) + len(waiting), counted):
            if engines:
                watch.display.note("starting vLLM")
            work = _Work(fresh, waiting, engines)
            stopped = _flow(_dataset(config, store, work, watch, judge), counts, watch, engines)
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


def _flow(dataset: "ray.data.Dataset", counts: dict[str, int], watch: Watch, engines: bool) -> str:
    """Let all rows through and count them by kind. Returns why the judge stopped early, if it did."""
    stopped, since = "", 0.0
    for row in dataset.iter_rows():
        watch.display.note("")
        counts[row["kind"]] = counts.get(row["kind"], 0) + 1
        if row["kind"] == "left" and not stopped:
            stopped, since = row["reason"], time.monotonic()
            watch.display.note("stopping: calls in flight finish")
        # Without engines the rest is through at once; engines would work on for hours.
        if stopped and engines and time.monotonic() - since > SETTLED and not _in_flight(watch):
            break
    return stopped


def _in_flight(watch: Watch) -> float:
    import ray

    counts = ray.get(watch.tally.snapshot.remote())
    return counts.get("calls_started", 0) - counts.get("calls_finished", 0)


def _fitted(config: Config, engines: bool, judge: bool) -> Config:
    """The config with as many actors as the cluster holds."""
    loading = Need("loading and saving", 2, {"CPU": TASK_CPUS}, flexible=False)
    needs = {"loading": loading, "Ray Data": DATA_TASKS}
    if engines:
        sampling, workers = config.sampling, bundles(config.sampling)
        each = {"CPU": sampling.num_cpus, "GPU": sampling.num_gpus, **sampling.resources}
        needs["sampling"] = Need("sampling", sampling.actors, each, workers)
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


def _dataset(config: Config, store: Store, work: _Work, watch: Watch, judge: bool) -> "ray.data.Dataset":
    """The pipeline; its rows are `{prompt_id, kind, reason}` of what was saved last, or left."""
    parts = []
    template = config.data.prompt_template
    if work.fresh:
        items = [{"prompt_id": p.prompt_id, "pointer": p} for p in work.fresh]
        part = _blocks(items).map(functools.partial(_load, template=template), num_cpus=TASK_CPUS)
        if work.engines:
            part = sample_stage(part, config, watch.tally)
            part = _saved(part, store, keep=judge)
        parts.append(part)
    if work.waiting:
        items = [{"prompt_id": one, "file": name, "row": row} for one, (name, row) in work.waiting.items()]
        parts.append(_blocks(items).map(functools.partial(_reload, store=store), num_cpus=TASK_CPUS))
    dataset = parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]
    if not judge:
        return dataset
    dataset = judge_stage(dataset, config, store, watch.tally)
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
    """Write each kind of row to its folder.

    With `keep` the whole rows flow on, else `{prompt_id, kind, reason}`.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    reasons: list[str] = []
    for packed in batch.to_pylist():
        row = unpack(packed)
        reasons.append(row["reason"] if packed["kind"] == "left" else "")
        if keep or row.get("stage") != "sample":  # the others were saved when they left the engine
            groups.setdefault(packed["kind"], []).append(row)
    groups.pop("left", None)
    for kind, rows in groups.items():
        store.write_rows(kind, rows, SCHEMAS[kind])
    return batch if keep else batch.select(["prompt_id", "kind"]).append_column("reason", [reasons])
