"""What failed for good is taken up again, at the stage where it failed.

A prompt leaves `failed/` only after it stands in `judged/`, or in a newer file of `failed/` with its new
reason: a crash in between leaves it in both, which counts once. What the ledger holds is not paid again, so
of a row only the units that never got an answer cost anything.

With `judge.retry_unscored` so is a judged prompt that misses a score for a reason that may be gone, and its
units without a usable answer get new samples. Its row stands until the new one is saved, and gives way whole.
"""

from collections.abc import Iterator, Sequence, Set
from typing import Any

from lr_ray import data
from lr_ray.config import Config
from lr_ray.judge.core import NO_STATEMENTS, NO_WEIGHT
from lr_ray.rollout import rollout
from lr_ray.runtime import Watch
from lr_ray.schemas import FAILED, JUDGED
from lr_ray.store import Store

FOLDER = "failed"
HOPELESS = (
    NO_STATEMENTS,
    NO_WEIGHT,
    *("HTTP 413", "context_length_exceeded", "string_above_max_length"),  # it will be as long again
    "the endpoint's reply is larger",
    "vectors of several widths",  # each reply is whole by itself, and kept
)
"""What a reason holds that no new sample can mend."""


def failures(store: Store) -> Iterator[dict[str, Any]]:
    """The rows of `failed/` that were not judged since."""
    judged = store.index("judged")
    return (row for row in store.rows(FOLDER) if row["prompt_id"] not in judged)


def unscored(config: Config, store: Store) -> set[str]:
    """Judged prompts that miss a score which new samples may give; none unless `judge.retry_unscored`.

    Raises:
        ValueError: a model there is trained on pairs of the scores as they are.
    """
    if not config.judge.retry_unscored:
        return set()
    found = set()
    for row in store.rows("judged", ["prompt_id", "candidates.list.element.unscored"]):
        reasons = [missing["reason"] for one in row["candidates"] for missing in one["unscored"]]
        if any(not any(hopeless in reason for hopeless in HOPELESS) for reason in reasons):
            found.add(row["prompt_id"])
    if found and any(place.exists("checkpoints") for place in paired(store)):
        raise ValueError(
            f"{store.url}: the model there is trained on pairs of its scores as they are; judge what is "
            "unscored in another run_dir, with this one in judge.reuse"
        )
    return found


def waiting(config: Config, store: Store) -> bool:
    """Whether there is anything to take up."""
    return any(failures(store)) or bool(unscored(config, store))


def retry(
    config: Config, store: Store, pointers: list[data.Pointer], watch: Watch, name: str = ""
) -> dict[str, int]:
    """Sample and judge again those of `pointers` that are in `failed/`.

    Returns:
        `rollout`'s counts, with `taken`: prompts that were taken up.

    Raises:
        ValueError, Stopped: as `rollout`.
    """
    ids, again = {row["prompt_id"] for row in failures(store)}, unscored(config, store)
    judged = store.files("judged")
    # Judged again are the same answers, or none.
    again &= store.index("sampled").keys() | {one.prompt_id for one in pointers if one.candidates}
    taken = [pointer for pointer in pointers if pointer.prompt_id in ids | again]
    before = store.files(FOLDER)
    try:
        counts = rollout(config, store, taken, watch, retry=again, name=name)
    finally:
        settle(store, before)
        if again:
            newest(store, judged)
            for place in paired(store):
                if place.exists("pairs.json"):  # of scores that may be others
                    place.fs.delete_file(place.path("pairs.json"))
    return {**counts, "taken": len(taken)}


def settle(store: Store, before: list[str], also: Set[str] = frozenset()) -> None:
    """Take out of the files `before` of `failed/` what is judged now, or failed anew in a later file, or is
    among those `also` done."""
    newer = [name for name in store.files(FOLDER) if name not in before]
    done = {*store.index("judged"), *also}
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


def newest(store: Store, before: Sequence[str]) -> None:
    """Of prompts that are judged twice, take the older row out of its file.

    Newer is what stands in no file of `before`. Only among equals is it `judged_at`: that is the clock of
    whichever node judged the row.

    Its neighbours are written to a file of their own before: a crash in between leaves rows twice, of which
    each is whole, and the next call goes on.
    """
    old = set(before)
    last: dict[str, tuple[bool, float]] = {}
    files: dict[str, list[tuple[str, tuple[bool, float]]]] = {}
    for name in store.files("judged"):
        rows = store.table("judged", name, ["prompt_id", "judged_at"]).to_pylist()
        files[name] = [(row["prompt_id"], (name not in old, row["judged_at"])) for row in rows]
        for prompt_id, age in files[name]:
            last[prompt_id] = max(age, last.get(prompt_id, age))
    for name, ages in files.items():
        stays = [age >= last[prompt_id] for prompt_id, age in ages]
        if all(stays):
            continue
        rows = store.table("judged", name).to_pylist()
        kept = [row for row, stay in zip(rows, stays, strict=True) if stay]
        if kept:
            store.write_rows("judged", kept, JUDGED)
        store.fs.delete_file(store.path("judged", name))


def paired(store: Store) -> Iterator[Store]:
    """Where pairs of the run's scores may lie."""
    yield store
    yield from (store.sub("compare", name) for name in store.folders("compare"))
