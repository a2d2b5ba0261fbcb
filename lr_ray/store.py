"""The run directory: what is done, atomic writes, resume.

A stage writes finished rows as small parquet files, each named by its rows' ids, so that a retried
task overwrites its own file instead of adding a second one. On resume the ids in those files are what
is done. Works on every file system pyarrow knows; a file appears whole or not at all.
"""

import fcntl
import hashlib
import io
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import orjson
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from lr_ray import beacon, parquet
from lr_ray.progress import say

Row = dict[str, Any]

PATIENCE = 120.0  # seconds; a server of NFS 4 keeps a dead client's locks for up to a lease of about 90
LOOK_EVERY = 1.0
SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a submitted job


class Store:
    """A run directory at `url`: a local path or a URI such as s3://bucket/run. Cheap to pickle.

    Raises:
        ValueError: the URL's file system is not known.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url) if "://" in url else None
        if parts is not None and parts.password:
            raise ValueError(
                f"{parts.scheme}://…@{parts.hostname}: keys belong in the environment, not in a URL"
            )
        self.url = url.rstrip("/")
        self.fs, self.root = filesystem(self.url)

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.absolute,)

    @property
    def local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    @property
    def absolute(self) -> str:
        """The URL as it means the same in a process with another working directory."""
        return self.root if self.local else self.url

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other runs out of the directory for the length of the block.

        By a lock that ends with the process, on local and NFS disks; on object storage by `beacon`, which
        takes up to a minute to see that a process was killed. A submitted job, which may be one that is sent
        again after its head node died, waits for the lock for `PATIENCE` seconds.

        Raises:
            ValueError: another process holds it.
            RuntimeError: on object storage, another one took over while this one was cut off.
        """
        if not self.local:
            where = self.url.partition("?")[0]
            with beacon.lit(where, self._lock, self._put_lock, say):
                yield
            return
        os.makedirs(self.root, exist_ok=True)
        file = os.open(self.path(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock_out(file, PATIENCE if SUBMITTED in os.environ else 0.0)
            os.truncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            os.close(file)

    def _lock_out(self, file: int, patience: float) -> None:
        until, said = time.monotonic() + patience, False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                holder = os.pread(file, 200, 0).decode(errors="replace").strip()
                used = f"{self.url} is in use by another run ({holder})"
                if time.monotonic() >= until:
                    raise ValueError(used) from error
            except OSError:
                return  # a file system without locks
            if not said:
                said = True
                say(f"{used}; waiting up to {patience:g} s, as the lock of one that died may outlive it")
            time.sleep(LOOK_EVERY)

    def _lock(self) -> bytes | None:
        try:
            return self.read(".lock")
        except FileNotFoundError:
            return None  # removed just after it was seen

    def _put_lock(self, content: bytes | None) -> None:
        if content is None:
            self.fs.delete_file(self.path(".lock"))
        else:
            self.write(content, ".lock")

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def sub(self, *parts: str) -> "Store":
        """The run directory inside this one, as an evaluation has it."""
        url, query, options = self.url.partition("?")
        return Store("/".join((url, *parts)) + query + options)

    def exists(self, *parts: str) -> bool:
        return self.fs.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound

    def files(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """Names of the finished files in `folder`, sorted; a folder that is not there holds none."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        names = (info.base_name for info in self.fs.get_file_info(selector))
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in `folder`, sorted."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        found = self.fs.get_file_info(selector)
        return sorted(info.base_name for info in found if info.type == pafs.FileType.Directory)

    def write(self, data: bytes | Iterable[bytes], *parts: str) -> None:
        """Write a whole file, durable on return; readers see the old one or the new one, never a part.

        `data` may come in pieces; it must not fail on the way.
        """
        pieces = [data] if isinstance(data, bytes) else data
        path = self.path(*parts)
        folder, _, name = path.rpartition("/")
        if isinstance(self.fs, pafs.S3FileSystem | pafs.GcsFileSystem):
            # Objects need no folders, and show only when their upload is complete.
            with self.fs.open_output_stream(path) as stream:
                for piece in pieces:
                    stream.write(piece)
            return
        self.fs.create_dir(folder, recursive=True)
        # Two lives of one task may write the same file at the same time, so each has a name of its own.
        target = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with self.fs.open_output_stream(target) as stream:
                for piece in pieces:
                    stream.write(piece)
            if self.local:
                sync(target)
            self.fs.move(target, path)
        except BaseException as error:
            with suppress(OSError):
                self.fs.delete_file(target)
            if isinstance(error, OSError):
                why = os.strerror(error.errno) if error.errno else str(error)
                raise OSError(f"cannot write {path}: {why}") from error
            raise
        if self.local:
            sync(folder)

    def read(self, *parts: str) -> bytes | None:
        """A file's bytes; None when it is not there."""
        if not self.exists(*parts):
            return None
        with self.fs.open_input_stream(self.path(*parts)) as stream:
            return stream.read()

    def write_rows(self, folder: str, rows: list[Row], schema: pa.Schema) -> None:
        """Write `rows` as one parquet file named by their prompt ids."""
        ids = orjson.dumps([row["prompt_id"] for row in rows])
        name = hashlib.sha256(ids).hexdigest()[:24]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
        self.write(sink.getvalue(), folder, f"{name}.parquet")

    def clear(self, folder: str) -> None:
        """Remove the finished files of `folder`."""
        for name in self.files(folder):
            self.fs.delete_file(self.path(folder, name))

    def index(self, folder: str) -> dict[str, tuple[str, int]]:
        """Where each prompt id's row lies: id → (file name, row in it). The later file wins."""
        where: dict[str, tuple[str, int]] = {}
        for name in self.files(folder):
            ids = self.table(folder, name, ["prompt_id"])["prompt_id"].to_pylist()
            where.update((prompt_id, (name, row)) for row, prompt_id in enumerate(ids))
        return where

    def table(self, folder: str, name: str, columns: list[str] | None = None) -> pa.Table:
        with parquet.opened(self.fs, self.path(folder, name), f"{self.url}/{folder}/{name}") as file:
            return file.read(columns=columns)

    def rows(self, folder: str, columns: list[str] | None = None) -> Iterator[Row]:
        """Every row once, with one file in memory at a time. `columns` must hold prompt_id."""
        where = self.index(folder)
        for name in self.files(folder):
            for row, content in enumerate(self.table(folder, name, columns).to_pylist()):
                prompt_id = content["prompt_id"]
                if where[prompt_id] == (name, row):
                    yield content


def sync(path: str) -> None:
    """Make a local file, or the entries of a folder, survive a power cut."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def parted(url: str) -> tuple[str, str]:
    """A URL, and its file system's options, as ?endpoint_override=…, which each file below it needs too."""
    found = re.fullmatch(r"(\w+://.*?)(\?\w+=.*)", url)
    return (found[1], found[2]) if found else (url, "")


def filesystem(url: str) -> tuple[pafs.FileSystem, str]:
    """The pyarrow file system and the path in it for a local path or a URI.

    hf:// goes through huggingface_hub's fsspec file system.

    Raises:
        ValueError: unknown scheme.
    """
    if url.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        return pafs.PyFileSystem(pafs.FSSpecHandler(HfFileSystem())), url.removeprefix("hf://")
    if "://" in url:
        try:
            return pafs.FileSystem.from_uri(url)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{url}: no such file system: {error}") from error
    return pafs.LocalFileSystem(), os.path.abspath(os.path.expanduser(url))
