"""Packed rows through a Ray Data pipeline: streamed in, saved as they come out, counted, ended early.

Each row is saved as it comes out of a stage. When calls stop early (`llm.spending`), rows come out "left",
saved nowhere, and the flow ends.
"""

import functools
import math
import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from lr_ray.placement import Need
from lr_ray.rows import unpack
from lr_ray.runtime import TASK_CPUS, Watch
from lr_ray.schemas import SCHEMAS
from lr_ray.store import Store

if TYPE_CHECKING:
    import ray.data

ROWS_A_FILE = 8
"""Rows saved together: few enough that a crash re-samples little, enough that files stay few."""
SETTLED = 3.0
"""Seconds after which the counters are sure to know of every call in flight; they lag by one."""
ANSWER = 10.0
"""Seconds in which the tally must answer."""
MOST_BLOCKS = 2000
"""Ray Data's unit of streaming is a block; one a prompt, up to what its scheduler handles with ease."""

SAVING = Need("saving", 2, {"CPU": TASK_CPUS}, flexible=False)
"""The tasks that write rows."""


def flow(dataset: "ray.data.Dataset", counts: dict[str, int], watch: Watch, engines: bool) -> str:
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
    """Calls that have no answer yet; none where the tally is gone: why the flow stops is known without it."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError

    try:
        counts = ray.get(watch.tally.snapshot.remote(), timeout=ANSWER)
    except GetTimeoutError:
        return math.inf  # it is slow, and is asked again
    except RayError:
        return 0.0
    return counts.get("calls_started", 0) - counts.get("calls_finished", 0)


def blocks(items: list[dict[str, Any]]) -> "ray.data.Dataset":
    """A dataset of `items`, one a block as far as Ray Data's scheduler handles as many.

    Mostly rows of kind "pointer", which whoever works on them loads: tasks that loaded them would run ahead
    of slower stages and fill the object store.
    """
    import ray.data

    return ray.data.from_items(items, override_num_blocks=min(len(items), MOST_BLOCKS))


def saved(
    dataset: "ray.data.Dataset", store: Store, *, keep: bool, again: bool = False
) -> "ray.data.Dataset":
    """Packed rows saved in the folders of their kinds; then `{prompt_id, kind, reason}`, or with `keep`
    the rows themselves. `again`: what failed in sampling was saved before, when it left the engine."""
    from ray.data import TaskPoolStrategy

    save: Any = functools.partial(_save, store=store, keep=keep, again=again)
    # Unbounded, Ray starts a process for each task that waits, ends those that idle, and starts others: on
    # two cores 600 rows took twice as long and held twice the object store.
    compute = TaskPoolStrategy(size=SAVING.count)
    return dataset.map_batches(
        save, batch_size=ROWS_A_FILE, batch_format="pyarrow", num_cpus=TASK_CPUS, compute=compute
    )


def _save(batch: pa.Table, store: Store, keep: bool, again: bool = False) -> pa.Table:
    """Write each kind of row to its folder.

    With `keep` the whole rows flow on, else `{prompt_id, kind, reason}`.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    reasons: list[str] = []
    for packed in batch.to_pylist():
        row = unpack(packed)
        reasons.append(row["reason"] if packed["kind"] == "left" else "")
        if not (again and row.get("stage") == "sample"):
            groups.setdefault(packed["kind"], []).append(row)
    groups.pop("left", None)
    for kind, rows in groups.items():
        store.write_rows(kind, rows, SCHEMAS[kind])
    return batch if keep else batch.select(["prompt_id", "kind"]).append_column("reason", [reasons])
