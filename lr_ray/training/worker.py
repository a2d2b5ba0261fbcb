"""What each Ray Train worker does: tokenise, score with the reference, take the steps, export.

All workers run the same program over the same numbers; a mistake of the user is agreed on by all and
returned as a sentence, so that Ray does not start the group again to make it once more.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed

from lr_ray.config import Config, Training
from lr_ray.store import Store
from lr_ray.training import folder, reference, shared_prefix, source, zero
from lr_ray.training.batch import PairIds, Totals, batch_at, micro_batches, total_steps
from lr_ray.training.checkpoint import FOLDER, Checkpoints
from lr_ray.training.measure import Data, Item, Measure, digest, fitting
from lr_ray.training.record import Record
from lr_ray.training.step import Dpo, Objective, Sft, learning_rate, ready, step
from lr_ray.training.tokens import Encoder

# Settings that may change between a run and its resumption without changing what is computed.
_FREE = {"checkpoint_steps", "max_failures", "report_to", "num_cpus", "data", "model"}
_SECONDS_A_PART = 30.0
Scores = dict[str, reference.Scores]


def loop(spec: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's entry: `spec` holds config (as a dict), url of the run directory and the tally.

    Returns:
        steps, rows, rows_left_out of the run, or the one key `error`: a sentence for the user.
    """
    try:
        config = Config.model_validate(spec["config"])
        return Worker(config, Store(spec["url"])).train(spec["tally"])
    except ValueError as error:
        return {"error": str(error)}


class Worker:
    """One rank of a training. The process group must be up."""

    def __init__(self, config: Config, store: Store) -> None:
        self.training, self.store = config.training, store
        self.rank, self.workers = distributed.get_rank(), distributed.get_world_size()
        self.device, self.bf16 = _device(config.training)
        self.start = folder.local(config.training.model or config.sampling.model)

    def train(self, tally: Any) -> dict[str, Any]:
        """The whole training; see `loop`."""
        rows = source.read(self.training.method, self.training.data, self.store)
        self.data = Data(rows, Encoder(self.start), self.training)
        self.kept = self._measure()
        model = folder.load(self.start, torch.bfloat16 if self.bf16 else torch.float32)
        self.objective = self._objective(model)
        ready(model, self.training)
        self.engine = zero.ZeroEngine(model, self.training, bf16=self.bf16, device=self.device)
        print_of = self._fingerprint()
        self.scores: Scores = self._reference(print_of) if self.training.method == "dpo" else {}
        left_out = len(self.data) - len(self.kept)
        steps = self._steps(tally, print_of, left_out)
        weights = self.engine.weights()
        if self.rank == 0:
            assert weights is not None
            folder.save(model, weights, self.start, self.store)
        distributed.barrier()
        return {"steps": steps, "rows": len(self.kept), "rows_left_out": left_out}

    def _measure(self) -> list[Measure]:
        """Measures of the rows that fit, the same on every rank; each rank tokenises its share."""
        limit = folder.limit(self.start, self.training.max_length)
        objective = Sft() if self.training.method == "sft" else Dpo(self.training, shared=False)
        mine: list[Measure] = []
        error = None
        try:
            mine = [
                self.data.measure(row, objective) for row in range(self.rank, len(self.data), self.workers)
            ]
        except ValueError as found:
            error = str(found)
        gathered: list[Any] = [None] * self.workers
        distributed.all_gather_object(gathered, (mine, error))
        errors = sorted(error for _, error in gathered if error)
        if errors:
            raise ValueError(errors[0])
        return fitting([measure for measures, _ in gathered for measure in measures], limit)

    def _objective(self, model: Any) -> Objective:
        if self.training.method == "sft":
            return Sft()
        shared = shared_prefix.unsupported(model, max(one.longest for one in self.kept)) is None
        if shared:
            shared_prefix.prepare(model)
        return Dpo(self.training, shared=shared)

    def _fingerprint(self) -> str:
        found: list[Any] = [None]
        if self.rank == 0:
            found = [reference.fingerprint(self.start, "bf16" if self.bf16 else "fp32")]
        distributed.broadcast_object_list(found)
        return found[0]

    def _reference(self, fingerprint: str) -> Scores:
        """Scores of every kept pair; what the cache lacks is computed, all ranks in equal rounds."""
        cache = reference.Cache(self.store, fingerprint)
        found: list[Any] = [cache.load() if self.rank == 0 else None]
        distributed.broadcast_object_list(found)
        scores: Scores = found[0]
        lacking = reference.missing([one.key for one in self.kept], scores)
        if not lacking:
            return scores
        size = self.training.micro_batch_size * self.workers
        lacking += lacking[:1] * (-len(lacking) % size)  # ZeRO-3 needs every rank in every forward pass
        tokens = [one.tokens for one in self.kept]
        passes = micro_batches(lacking, tokens, self.training.micro_batch_size, self.workers, self.rank)
        self.engine.policy.eval()
        fresh: Scores = {}
        written = time.monotonic()
        for indices in passes:
            fresh.update(self._score(indices))
            if time.monotonic() - written > _SECONDS_A_PART:
                cache.put(fresh)
                fresh, written = {}, time.monotonic()
        cache.put(fresh)
        self.engine.policy.train()
        distributed.barrier()
        found = [cache.load() if self.rank == 0 else None]
        distributed.broadcast_object_list(found)
        return found[0]

    @torch.no_grad()
    def _score(self, indices: Sequence[int]) -> Scores:
        items = [self.data[self.kept[index].row] for index in indices]
        batch = self.objective.layout(items).to(self.device)
        logps = self.engine.policy(batch)
        sums = logps.double().new_zeros(batch.sequences).index_add(0, batch.owner, logps.double())
        pairs = sums.view(-1, 2).tolist()
        return {self.kept[index].key: (pair[0], pair[1]) for index, pair in zip(indices, pairs, strict=True)}

    def _steps(self, tally: Any, fingerprint: str, left_out: int) -> int:
        """All optimizer steps that are still to do; their number."""
        training = self.training
        total = total_steps(len(self.kept), training.batch_size, training.epochs, training.max_steps)
        settings = training.model_dump(mode="json", exclude=_FREE)
        state = {"settings": settings, "data": digest(self.kept), "start": fingerprint}
        checkpoints = Checkpoints(self.store, self.rank, _barrier)
        first = self._resume(checkpoints, state)
        record = Record(self.store, training, first, total, tally) if self.rank == 0 else None
        counts = {"rows": len(self.kept), "rows_left_out": left_out}
        for number in range(first + 1, total + 1):
            metrics = self._step(number, total)
            if record:
                record.add(number, {**metrics, **counts})
            if number % training.checkpoint_steps == 0 and number < total:
                if record:
                    record.flush()
                checkpoints.save(number, state, self.engine.save)
        if record:
            record.close()
        return total

    def _step(self, number: int, total: int) -> dict[str, float]:
        started = time.perf_counter()
        training = self.training
        torch.manual_seed((training.seed * 1_000_003 + number) * self.workers + self.rank)
        batch = batch_at(number - 1, len(self.kept), training.batch_size, training.seed)
        tokens = [one.tokens for one in self.kept]
        mine = micro_batches(batch, tokens, training.micro_batch_size, self.workers, self.rank)
        passes = [[self._item(index) for index in indices] for indices in mine]
        totals = Totals(len(batch), sum(self.kept[index].targets for index in batch))
        rate = learning_rate(number, total, training)
        metrics = step(self.engine, self.objective, passes, totals, rate, _sum_over_ranks(self.device))
        return {
            **metrics,
            "epoch": number * training.batch_size / len(self.kept),
            "num_tokens": sum(tokens[index] for index in batch),
            "step_time": time.perf_counter() - started,
        }

    def _item(self, index: int) -> Item:
        measure = self.kept[index]
        item = self.data[measure.row]
        if isinstance(item, PairIds):
            return dataclasses.replace(item, reference=self.scores[measure.key])
        return item

    def _resume(self, checkpoints: Checkpoints, state: dict[str, Any]) -> int:
        """Load the newest checkpoint; the step it was written after, or 0."""
        found = checkpoints.latest()
        if found is None:
            return 0
        before, now = found["settings"], state["settings"]
        changed = [f"training.{name}" for name in sorted(now) if before.get(name) != now[name]]
        changed += [what for what in ("data", "start") if found[what] != state[what]]
        if changed:
            raise ValueError(
                f"{self.store.url}/{FOLDER}: written with another {' and another '.join(changed)}; "
                "put that back, or use another run_dir"
            )
        checkpoints.load(found["tag"], self.engine.load)
        return int(found["step"])


def _device(training: Training) -> tuple[str, bool]:
    """The device of this rank, and whether it computes in bf16."""
    if not training.use_gpu:
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, cores))
        return "cpu", training.precision == "bf16"
    has_bf16 = training.precision == "auto" and torch.cuda.is_bf16_supported()
    return f"cuda:{torch.cuda.current_device()}", training.precision == "bf16" or has_bf16


def _barrier() -> None:
    distributed.barrier()


def _sum_over_ranks(device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    def reduce(values: torch.Tensor) -> torch.Tensor:
        values = values.to(device)
        distributed.all_reduce(values)
        return values

    return reduce
