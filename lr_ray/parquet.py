"""Parquet files that may be torn, or none at all."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq


@contextmanager
def opened(fs: pafs.FileSystem, path: str, name: str) -> Iterator[pq.ParquetFile]:
    """The file at `path`, read within the block; `name` is what the user calls it.

    Raises:
        ValueError: it cannot be read as parquet, at its opening or within the block.
    """
    with fs.open_input_file(path) as file:
        try:
            yield pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{name}: cannot be read as parquet: {' '.join(str(error).split())}") from error
