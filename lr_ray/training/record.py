"""What a training says while it runs: metrics.jsonl, TensorBoard, Weights & Biases, the run's tally."""

import json
import tempfile
import threading
from pathlib import Path
from typing import Any

from lr_ray import metrics as exported
from lr_ray.config import Training
from lr_ray.journal import SILENT, Journal
from lr_ray.store import Store
from lr_ray.training.checkpoint import upload

_LINES = "metrics.jsonl"
_EVERY = 2.0  # seconds between rewrites, aside, of metrics.jsonl, which object stores cannot append to


class Record:
    """Metrics of the optimizer steps after `first`, under TRL's names; later lines of a run before go.

    Made on rank 0 only. `tally` is the run's counting actor, or None.
    """

    def __init__(
        self,
        store: Store,
        training: Training,
        first: int,
        total: int,
        tally: Any,
        journal: Journal = SILENT,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._store, self._tally, self._journal = store, tally, journal
        lines = [json.loads(line) for line in (store.read(_LINES) or b"").splitlines()]
        self._lines = [line for line in lines if line["step"] <= first]
        self._tokens = self._lines[-1]["num_tokens"] if self._lines else 0
        self._aside = None if store.local else tempfile.TemporaryDirectory(prefix="lr-ray-")
        self._events = Path(self._aside.name if self._aside else store.path("metrics"))
        self._board = (
            SummaryWriter(str(self._events), purge_step=first + 1) if self._wants(training) else None
        )
        self._wandb = _wandb(store, training) if "wandb" in training.report_to else None
        self._failure: BaseException | None = None
        self._flushing, self._closing = threading.Lock(), threading.Event()
        self._flusher = threading.Thread(target=self._keep_flushing, daemon=True)
        self._flusher.start()
        journal.info("training", after_step=first, planned=total)
        if tally is not None:
            tally.put.remote({"train_steps": first, "train_total": total, "train_tokens": self._tokens})

    @staticmethod
    def _wants(training: Training) -> bool:
        return "tensorboard" in training.report_to

    def add(self, number: int, metrics: dict[str, float]) -> None:
        """Record optimizer step `number`; `num_tokens` comes as the step's and is written as the sum.

        Raises:
            OSError: what was recorded before could not be written.
        """
        if self._failure:
            raise self._failure
        tokens = int(metrics["num_tokens"])
        self._tokens += tokens
        line = {"step": number, **metrics, "num_tokens": self._tokens}
        self._lines.append(line)
        for name, value in line.items():
            if self._board and name != "step":
                self._board.add_scalar(f"train/{name}", value, number)
        if self._wandb:
            self._wandb.log({f"train/{name}": value for name, value in line.items()}, step=number)
        if self._tally is not None:
            self._tally.add.remote({"train_steps": 1, "train_tokens": tokens})
            self._tally.put.remote({(exported.TRAINING, name): value for name, value in metrics.items()})
        self._journal.info("step", **line)

    def flush(self) -> None:
        """Make everything so far durable. Any thread may call it."""
        with self._flushing:
            text = "".join(json.dumps(line) + "\n" for line in tuple(self._lines))
            self._store.write(text.encode(), _LINES)
            if self._board:
                self._board.flush()
                if self._aside:
                    upload(self._events, self._store, "metrics")

    def _keep_flushing(self) -> None:
        written = 0
        while not self._closing.wait(_EVERY):
            try:
                if len(self._lines) > written:
                    written = len(self._lines)
                    self.flush()
            except OSError as error:
                self._failure = error  # `add` raises it where training can end
                return

    def close(self) -> None:
        """Flush and end."""
        self._closing.set()
        self._flusher.join()
        self.flush()
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
        if self._aside:
            self._aside.cleanup()


def _wandb(store: Store, training: Training) -> Any:
    import hashlib

    import wandb  # pyrefly: ignore  # optional; launch refuses report_to wandb without it

    name = hashlib.sha256(store.url.encode()).hexdigest()[:16]
    return wandb.init(project="lr-ray", id=name, resume="allow", config=training.model_dump(mode="json"))
