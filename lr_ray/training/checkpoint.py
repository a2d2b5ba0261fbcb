"""Checkpoints on any file system: each rank writes its own shards aside, a marker makes them valid.

`checkpoints/step-00000100-<attempt>/` holds the shards, `rank-<n>.json` once rank n's are whole and,
written last by rank 0, `complete.json`, which says after which step, by how many workers, under which
settings and of which files. A folder without it is what a killed run left, or is being written, and is
never read. Every start of a run is an attempt with folders of its own, so that nothing of a killed one
can get mixed in. Training waits for the copy of its state in host memory, not for any file.
"""

import io
import json
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from lr_ray.store import Store, sync
from lr_ray.training import shards
from lr_ray.training.shards import Shards

FOLDER = "checkpoints"
MARKER = "complete.json"
_KEEP = 2
_PREFIX = "step-"
_POLL = 0.2  # seconds between looks at the other ranks' files


def attempt() -> str:
    """A name for one start of a run, which all its ranks must share."""
    return uuid.uuid4().hex[:8]


class Checkpoints:
    """The checkpoints of one rank. Rank 0 also writes the markers and removes old folders."""

    def __init__(self, store: Store, rank: int, workers: int, attempt: str) -> None:
        self._store, self._rank, self._workers, self._attempt = store, rank, workers, attempt
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(
        self, step: int, state: dict[str, Any], take: Callable[[], Shards], before: Callable[[], None]
    ) -> None:
        """Save after optimizer step `step`, in the background.

        Args:
            step: the number of the step.
            state: what the marker says beside the step.
            take: this rank's shards, as copies that stay as they are until `take` is called again.
            before: called on rank 0 before the marker is written, in the background.

        Raises:
            OSError: the checkpoint before could not be written.
        """
        self.wait()
        taken = take()
        tag = f"{_PREFIX}{step:08d}-{self._attempt}"
        marker = {"step": step, "workers": self._workers, **state}
        self._writer = threading.Thread(target=self._run, args=(tag, marker, taken, before), daemon=True)
        self._writer.start()

    @property
    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._writer is not None and self._writer.is_alive()

    def check(self) -> None:
        """Raise what ended a background write, if one failed."""
        if self._failure:
            raise self._failure

    def wait(self) -> None:
        """Return when nothing is being written; raises as `check` does."""
        if self._writer:
            self._writer.join()
            self._writer = None
        self.check()

    def latest(self) -> dict[str, Any] | None:
        """What the marker of the newest whole checkpoint says, with `tag`; None when there is none."""
        for tag in reversed(self._tags()):
            marker = self._whole(tag)
            if marker is not None:
                return {**marker, "tag": tag}
        return None

    def read(self, tag: str, name: str, trusted: list[Any]) -> Any:
        """The state in one file of a checkpoint; see `shards.read`."""
        with self._store.fs.open_input_file(self._store.path(FOLDER, tag, name)) as stream:
            return shards.read(io.BufferedReader(stream, 1 << 20), trusted)

    def _run(self, tag: str, marker: dict[str, Any], taken: Shards, before: Callable[[], None]) -> None:
        try:
            sizes = {name: self._put(tag, name, state) for name, state in taken.items()}
            self._store.write(json.dumps(sizes).encode(), FOLDER, tag, f"rank-{self._rank}.json")
            if self._rank == 0:
                files = self._gather(tag)
                before()
                self._store.write(json.dumps({**marker, "files": files}).encode(), FOLDER, tag, MARKER)
                self._prune(tag)
        except BaseException as error:  # the training thread raises it, see `check`
            self._failure = error

    def _put(self, tag: str, name: str, state: Any) -> int:
        """Write one shard; its size in bytes. It is on disk, not only in its cache, when this returns."""
        path = self._store.path(FOLDER, tag, name)
        self._store.fs.create_dir(self._store.path(FOLDER, tag), recursive=True)
        if not self._store.local:
            with self._store.fs.open_output_stream(path) as stream:
                shards.write(state, stream)
                return stream.tell()
        shards.write(state, path)
        sync(path)
        return os.path.getsize(path)

    def _gather(self, tag: str) -> dict[str, int]:
        """Every rank's files with their sizes, as soon as all of them are there."""
        files: dict[str, int] = {}
        for rank in range(self._workers):
            while (found := self._store.read(FOLDER, tag, f"rank-{rank}.json")) is None:
                threading.Event().wait(_POLL)
            files.update(json.loads(found))
        return files

    def _whole(self, tag: str) -> dict[str, Any] | None:
        """What the marker of a checkpoint says; None where it has none, or has lost files or bytes since."""
        found = self._store.read(FOLDER, tag, MARKER)
        marker = None if found is None else json.loads(found)
        return marker if marker and self._sizes(tag, marker["files"]) == marker["files"] else None

    def _sizes(self, tag: str, names: dict[str, int]) -> dict[str, int | None]:
        paths = [self._store.path(FOLDER, tag, name) for name in names]
        return {info.base_name: info.size for info in self._store.fs.get_file_info(paths)}

    def _tags(self) -> list[str]:
        selector = pafs.FileSelector(self._store.path(FOLDER), allow_not_found=True)
        names = [info.base_name for info in self._store.fs.get_file_info(selector)]
        return sorted(name for name in names if name.startswith(_PREFIX))

    def _prune(self, newest: str) -> None:
        """Keep the last whole checkpoints, and what this attempt may be writing by now after `newest`."""
        tags = self._tags()
        whole = [tag for tag in tags if self._whole(tag) is not None]
        for tag in tags:
            coming = tag > newest and tag.endswith(self._attempt)
            if tag not in whole[-_KEEP:] and not coming:
                if self._store.exists(FOLDER, tag, MARKER):
                    self._store.fs.delete_file(self._store.path(FOLDER, tag, MARKER))
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
