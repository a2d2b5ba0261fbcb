"""Log-probs of the reference model, computed once and kept in the run directory.

`reference/<fingerprint of the model>/` holds small parquet files of (key, chosen, rejected), where the
key is a hash of a pair's token ids. Files appear whole as they come, so a killed run repeats little;
training itself then holds one model.
"""

import hashlib
import io
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from lr_ray.store import Store
from lr_ray.training.batch import Padded, PairIds
from lr_ray.training.shared_prefix import Stream

Scores = tuple[float, float]
_SCHEMA = pa.schema([("key", pa.string()), ("chosen", pa.float64()), ("rejected", pa.float64())])


def key(pair: PairIds) -> str:
    """What the two log-probs of a pair depend on beside the model."""
    digest = hashlib.sha256()
    for ids in (pair.prompt, pair.chosen, pair.rejected):
        digest.update(struct.pack("<q", len(ids)))
        digest.update(np.asarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()[:32]


def fingerprint(folder: str, precision: str) -> str:
    """A hash of the weights and the config in a model folder, and of the precision they run in."""
    digest = hashlib.sha256(precision.encode())
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".safetensors", ".bin") or path.name == "config.json":
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@torch.no_grad()
def score(policy: nn.Module, batch: Padded | Stream) -> list[Scores]:
    """The log-probs (chosen, rejected) of each pair of a batch, summed in float64; `policy` is as in `step`.

    With an adapter in `policy` the caller switches it off: the reference is the model underneath.
    """
    logps = policy(batch).double()
    sums = logps.new_zeros(batch.sequences).index_add(0, batch.owner, logps)
    return [(chosen, rejected) for chosen, rejected in sums.view(-1, 2).tolist()]


class Cache:
    """The scores in `reference/` of one model; `put` is durable when it returns."""

    def __init__(self, store: Store, model: str) -> None:
        self._store, self._folder = store, f"reference/{model}"

    def load(self) -> dict[str, Scores]:
        found: dict[str, Scores] = {}
        for name in self._store.files(self._folder):
            table = self._store.table(self._folder, name).to_pydict()
            scores = zip(table["chosen"], table["rejected"], strict=True)
            found.update(zip(table["key"], scores, strict=True))
        return found

    def put(self, scores: Mapping[str, Scores]) -> str:
        """Write scores as one file; its name, which their keys determine."""
        names = sorted(scores)
        rows = [{"key": n, "chosen": scores[n][0], "rejected": scores[n][1]} for n in names]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), sink)
        name = f"{hashlib.sha256(''.join(names).encode()).hexdigest()[:24]}.parquet"
        self._store.write(sink.getvalue(), self._folder, name)
        return name

    def merge(self) -> None:
        """Put all files into one. Nothing else may write."""
        before = self._store.files(self._folder)
        if len(before) > 1:
            kept = self.put(self.load())
            for name in before:
                if name != kept:
                    self._store.fs.delete_file(self._store.path(self._folder, name))


def missing(keys: Iterable[str], found: Mapping[str, Scores]) -> list[int]:
    """Numbers of the keys that have no score, each key once."""
    seen = set(found)
    places = []
    for number, name in enumerate(keys):
        if name not in seen:
            seen.add(name)
            places.append(number)
    return places
