"""What failed for good is taken up again, at the stage where it failed.

A prompt leaves `failed/` only after it stands in `judged/`, or in a newer file of `failed/` with its new
reason: a crash in between leaves it in both, which counts once. What the ledger holds is not paid again, so
of a row only the units that never got an answer cost anything.
"""

from collections.abc import Iterator
from typing import Any

from lr_ray import data
from lr_ray.config import Config
from lr_ray.rollout import rollout
from lr_ray.rows import FAILED
from lr_ray.runtime import Watch
from lr_ray.store import Store

FOLDER = "failed"


def failures(store: Store) -> Iterator[dict[str, Any]]:
    """The rows of `failed/` that were not judged since."""
    judged = store.index("judged")
    return (row for row in store.rows(FOLDER) if row["prompt_id"] not in judged)


def retry(
    config: Config, store: Store, pointers: list[data.Pointer], watch: Watch, name: str = ""
) -> dict[str, int]:
    """Sample and judge again those of `pointers` that are in `failed/`.

    Returns:
        `rollout`'s counts, with `taken`: prompts that were taken up.

    Raises:
        ValueError, Stopped: as `rollout`.
    """
    ids = {row["prompt_id"] for row in failures(store)}
    taken = [pointer for pointer in pointers if pointer.prompt_id in ids]
    before = store.files(FOLDER)
    try:
        counts = rollout(config, store, taken, watch, retry=True, name=name)
    finally:
        settle(store, before)
    return {**counts, "taken": len(taken)}


def settle(store: Store, before: list[str]) -> None:
    """Take out of the files `before` of `failed/` what is judged now, or failed anew in a later file."""
    newer = [name for name in store.files(FOLDER) if name not in before]
    done = set(store.index("judged"))
    for name in newer:
        done.update(store.table(FOLDER, name, ["prompt_id"])["prompt_id"].to_pylist())
    for name in before:
        rows = store.table(FOLDER, name).to_pylist()
        kept = [row for row in rows if row["prompt_id"] not in done]
        if len(kept) == len(rows):
            continue
        if kept:
            store.write_rows(FOLDER, kept, FAILED)  # fewer ids, so another name
        store.fs.delete_file(store.path(FOLDER, name))
