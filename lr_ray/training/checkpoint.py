"""Checkpoints on any file system: each rank writes its own shard, a marker makes them valid.

`checkpoints/step-00000100/` holds DeepSpeed's files and, written last, `complete.json`, which says
after which step, by how many workers and under which settings it was written. A folder without it is
what a killed run left and is never read.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lr_ray.store import Store

FOLDER = "checkpoints"
_KEEP = 2
_PREFIX = "step-"


class Checkpoints:
    """The checkpoints of a run. `rank` 0 writes the marker and removes old ones; all ranks save."""

    def __init__(self, store: Store, rank: int, barrier: Callable[[], None]) -> None:
        self._store, self._rank, self._barrier = store, rank, barrier

    def save(self, step: int, state: Mapping[str, Any], write: Callable[[str, str], None]) -> None:
        """Save after optimizer step `step`; `write(folder, tag)` puts this rank's files in folder/tag."""
        tag = f"{_PREFIX}{step:08d}"
        if self._rank == 0:
            self._remove(tag)
        self._barrier()
        if self._store.local:
            write(self._store.path(FOLDER), tag)
        else:
            with tempfile.TemporaryDirectory(prefix="lr-ray-") as folder:
                Path(folder, tag).mkdir()
                write(folder, tag)
                upload(Path(folder, tag), self._store, FOLDER, tag)
        self._barrier()
        if self._rank == 0:
            marker = json.dumps({"step": step, **state}).encode()
            self._store.write(marker, FOLDER, tag, "complete.json")
            for old in self._tags()[:-_KEEP]:
                self._remove(old)

    def latest(self) -> dict[str, Any] | None:
        """What the marker of the newest valid checkpoint says, with `tag`; None when there is none."""
        for tag in reversed(self._tags()):
            marker = self._store.read(FOLDER, tag, "complete.json")
            if marker is not None:
                return {**json.loads(marker), "tag": tag}
        return None

    def load(self, tag: str, read: Callable[[str, str], None]) -> None:
        """Bring back a checkpoint; `read(folder, tag)` reads this rank's files from folder/tag."""
        if self._store.local:
            read(self._store.path(FOLDER), tag)
            return
        with tempfile.TemporaryDirectory(prefix="lr-ray-") as folder:
            target = Path(folder, tag)
            target.mkdir()
            pafs.copy_files(self._store.path(FOLDER, tag), str(target), source_filesystem=self._store.fs)
            read(folder, tag)

    def _tags(self) -> list[str]:
        selector = pafs.FileSelector(self._store.path(FOLDER), allow_not_found=True)
        names = [info.base_name for info in self._store.fs.get_file_info(selector)]
        return sorted(name for name in names if name.startswith(_PREFIX))

    def _remove(self, tag: str) -> None:
        if self._store.exists(FOLDER, tag, "complete.json"):
            self._store.fs.delete_file(self._store.path(FOLDER, tag, "complete.json"))
        if self._store.exists(FOLDER, tag):
            self._store.fs.delete_dir(self._store.path(FOLDER, tag))


def upload(folder: Path, store: Store, *parts: str) -> None:
    """Copy a local folder into the run directory, file by file."""
    store.fs.create_dir(store.path(*parts), recursive=True)
    pafs.copy_files(str(folder), store.path(*parts), destination_filesystem=store.fs)


def publish(folder: Path, store: Store, name: str, last: str) -> None:
    """Make a finished local folder the run's folder `name`, so that `last` in it means it is whole."""
    if store.local:
        target = Path(store.path(name))
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
        return
    kept = folder / last
    with tempfile.TemporaryDirectory(prefix="lr-ray-") as aside:
        moved = shutil.move(kept, Path(aside, last))
        upload(folder, store, name)
        store.write(Path(moved).read_bytes(), name, last)
