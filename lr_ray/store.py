"""The run directory: what is done, atomic writes, resume.

A stage writes finished rows as small parquet files, each named by its rows' ids, so that a retried
task overwrites its own file instead of adding a second one. On resume the ids in those files are what
is done. Works on every file system pyarrow knows; a file appears whole or not at all.
"""

import hashlib
import io
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

Row = dict[str, Any]


class Store:
    """A run directory at `url`: a local path or a URI such as s3://bucket/run. Cheap to pickle.

    Raises:
        ValueError: the URL's file system is not known.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.fs, self.root = filesystem(self.url)

    def __reduce__(self) -> tuple[type["Store"], tuple[str]]:
        return Store, (self.url,)

    @property
    def local(self) -> bool:
        return isinstance(self.fs, pafs.LocalFileSystem)

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def sub(self, *parts: str) -> "Store":
        """The run directory inside this one, as an evaluation has it."""
        return Store("/".join((self.url, *parts)))

    def exists(self, *parts: str) -> bool:
        return self.fs.get_file_info(self.path(*parts)).type != pafs.FileType.NotFound

    def files(self, folder: str, suffix: str = ".parquet") -> list[str]:
        """Names of the finished files in `folder`, sorted; a folder that is not there holds none."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        names = (info.base_name for info in self.fs.get_file_info(selector))
        return sorted(name for name in names if name.endswith(suffix) and not name.startswith("."))

    def write(self, data: bytes, *parts: str) -> None:
        """Write a whole file; readers see the old one or the new one, never a part."""
        path = self.path(*parts)
        folder, _, name = path.rpartition("/")
        self.fs.create_dir(folder, recursive=True)
        # Object stores show an object only when its upload is complete; elsewhere a rename does that.
        renames = not isinstance(self.fs, pafs.S3FileSystem | pafs.GcsFileSystem)
        target = f"{folder}/.{name}.tmp" if renames else path
        with self.fs.open_output_stream(target) as stream:
            stream.write(data)
        if renames:
            self.fs.move(target, path)

    def read(self, *parts: str) -> bytes | None:
        """A file's bytes; None when it is not there."""
        if not self.exists(*parts):
            return None
        with self.fs.open_input_stream(self.path(*parts)) as stream:
            return stream.read()

    def write_rows(self, folder: str, rows: list[Row], schema: pa.Schema) -> None:
        """Write `rows` as one parquet file named by their prompt ids."""
        name = hashlib.sha256("\0".join(str(row["prompt_id"]) for row in rows).encode()).hexdigest()[:24]
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
        with self.fs.open_input_file(self.path(folder, name)) as file:
            return pq.ParquetFile(file).read(columns=columns)

    def rows(self, folder: str, columns: list[str] | None = None) -> Iterator[Row]:
        """Every row once, with one file in memory at a time. `columns` must hold prompt_id."""
        where = self.index(folder)
        for name in self.files(folder):
            for row, content in enumerate(self.table(folder, name, columns).to_pylist()):
                prompt_id = content["prompt_id"]
                if where[prompt_id] == (name, row):
                    yield content


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
