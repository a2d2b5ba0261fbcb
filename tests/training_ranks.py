"""Trainings without Ray: python training_ranks.py JOBS.json RANK WORLD, one process a rank.

JOBS.json lists {"config": …, "die_at": step or null, "stick_at": step or null, …}; what `worker.loop` returns
is written by rank 0 into the run directory as result.json. `die_at` ends the training before that step, as a
kill does; `stick_at` leaves rank 1's shard of the checkpoint after that step half written; `chunk` is the
most tokens of a chunk of the head; with `no_export` rank 0 cannot write the model.
"""

import json
import os
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"

import torch
from torch import distributed

from lr_ray.config import Config
from lr_ray.store import Store
from lr_ray.training import logps, worker
from lr_ray.training.checkpoint import FOLDER, Checkpoints

CHUNK_LOGITS = logps._CHUNK_LOGITS


class Sticky(Checkpoints):
    stick_at = 0

    def _put(self, tag: str, name: str, state: Any) -> int:
        if self._rank == 1 and tag.startswith(f"step-{self.stick_at:08d}"):
            folder = Path(self._store.path(FOLDER, tag))
            folder.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"half")
            threading.Event().wait()
        return super()._put(tag, name, state)


worker.Checkpoints = Sticky  # pyrefly: ignore


class Mortal(worker.Worker):
    die_at = 0
    scored = 0
    no_export = False

    def _score(self, indices: Sequence[int]) -> worker.Scores:
        self.scored += len(indices)
        return super()._score(indices)

    def _export(self, weights: dict[str, torch.Tensor] | None) -> None:
        if self.no_export:
            raise ValueError("cannot write the model")
        super()._export(weights)

    def _step(self, number: int, total: int) -> dict[str, float]:
        if number == self.die_at:
            distributed.barrier()
            raise InterruptedError
        return super()._step(number, total)


def run(job: dict[str, Any], rank: int) -> None:
    config = Config.model_validate(job["config"])
    result: dict[str, Any] = {}
    mortal = Mortal(config, Store(config.run_dir))
    Sticky.stick_at = job.get("stick_at") or 0
    logps._CHUNK_LOGITS = CHUNK_LOGITS if "chunk" not in job else job["chunk"] * 261
    try:
        mortal.die_at = job.get("die_at") or 0
        mortal.no_export = bool(job.get("no_export"))
        result = {**mortal.train(None), "scored": mortal.scored}
    except InterruptedError:
        result = {"died": True, "scored": mortal.scored}
    except ValueError as error:
        result = {"error": str(error)}
    if rank == 0:
        (Path(config.run_dir) / "result.json").write_text(json.dumps(result))


def main() -> None:
    jobs, rank, world = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
    os.environ.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    meeting = f"file://{jobs}.{world}.{jobs.stat().st_mtime_ns}"
    distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world, timeout=timedelta(seconds=120)
    )
    for job in json.loads(jobs.read_text()):
        run(job, rank)
    distributed.barrier()
    # All is written and both ranks are here. DeepSpeed leaves process groups behind whose gloo threads can
    # abort the interpreter at its end ("terminate called without an active exception").
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
