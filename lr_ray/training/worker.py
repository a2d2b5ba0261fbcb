"""What each Ray Train worker does: tokenise, score with the reference, take the steps, export.

All workers run the same program over the same numbers; a mistake of the user is agreed on by all and
returned as a sentence, so that Ray does not start the group again to make it once more.
"""

import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import distributed

from lr_ray import journal
from lr_ray.config import Config, Training
from lr_ray.store import Store
from lr_ray.training import folder, lora, reference, sequence, shared_prefix, source, zero
from lr_ray.training.batch import PairIds, Totals, micro_batches, total_steps
from lr_ray.training.checkpoint import FOLDER, Checkpoints, attempt
from lr_ray.training.logps import Policy
from lr_ray.training.measure import Data, Item, Measure, digest, fitting
from lr_ray.training.order import Order
from lr_ray.training.record import Record
from lr_ray.training.step import Dpo, Objective, Sft, learning_rate, ready, step
from lr_ray.training.tokens import Encoder

# Settings that may change between a run and its resumption without changing what is computed.
_FREE = {
    *("checkpoint_steps", "max_failures", "report_to", "num_cpus", "data", "model"),
    *("num_workers", "micro_batch_size", "reference_actors", "sequence_parallel_size"),
    *("gradient_checkpointing", "tiled_mlp", "offload_activations"),
}
LEFT_OUT = "left_out.json"
"""The rows that are too long, by name."""
_SECONDS_A_PART = 30.0
Scores = dict[str, reference.Scores]


def loop(spec: dict[str, Any]) -> dict[str, Any]:
    """Ray Train's entry: `spec` holds config (as a dict), url of the run directory and the tally.

    Returns:
        steps, rows, rows_left_out of the run, and `unshared`, why rows were not streams, if they were not;
        or the one key `error`: a sentence for the user.
    """
    try:
        config = Config.model_validate(spec["config"])
        return Worker(config, Store(spec["url"])).train(spec["tally"])
    except ValueError as error:
        return {"error": str(error)}


class Worker:
    """One rank of a training. The process group must be up."""

    def __init__(self, config: Config, store: Store) -> None:
        self.training, self.store, self.journal = config.training, store, journal.of(config)
        self.rank, self.workers = distributed.get_rank(), distributed.get_world_size()
        # Workers that compute a batch together have the same examples.
        together = config.training.sequence_parallel_size
        self.team, self.teams = self.rank // together, self.workers // together
        self.device, self.precision = _device(config.training), zero.precision(config.training)
        self.start = folder.local(config.training.model or config.sampling.model)

    def train(self, tally: Any) -> dict[str, Any]:
        """The whole training; see `loop`."""
        rows = source.read(self.training, self.store)
        self.data = Data(rows, Encoder(self.start), self.training)
        self.kept = self._measure()
        self.order = self._order(rows.main)
        model = folder.load(self.start, torch.bfloat16 if self.precision == "bf16" else torch.float32)
        self.objective = self._objective(model)
        if self.training.lora is not None:
            torch.manual_seed(self.training.seed)  # the adapter's start is random
            model = lora.wrap(model, self.training.lora)
        ready(model, self.training)
        self.model = model
        policy, bf16 = self._policy(model), self.precision == "bf16"
        self.engine = zero.ZeroEngine(policy, self.training, bf16=bf16, device=self.device)
        print_of = self._fingerprint()
        self.scores: Scores = {}
        if self.training.method == "dpo":
            self.scores = self._reference(print_of)
            self._numbers()
        left_out = len(self.data) - len(self.kept)
        steps = self._steps(tally, print_of, left_out)
        weights = self.engine.weights()
        self._agree(lambda: self._export(weights))
        done = {"steps": steps, "rows": len(self.kept), "rows_left_out": left_out}
        return {**done, "unshared": self.unshared} if self.unshared else done

    def _export(self, weights: dict[str, torch.Tensor] | None) -> None:
        assert weights is not None
        if self.training.lora is not None:
            lora.export(self.start, self.training.lora, weights, self.store)
        else:
            folder.save(self.model, weights, self.start, self.store)

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
        measures = sorted(measure for measures, _ in gathered for measure in measures)
        kept = fitting(measures, limit)
        if self.rank == 0 and len(kept) < len(measures):
            over = [one for one in measures if one.longest > limit]
            rows = [{"row": self.data.name(one.row), "tokens": one.longest} for one in over]
            self.store.write(json.dumps({"max_length": limit, "rows": rows}).encode(), LEFT_OUT)
        return kept

    def _order(self, main: int) -> Order:
        """The order of `kept`, in which the rows from `main` on are the mix's."""
        training = self.training
        count = sum(measure.row < main for measure in self.kept)
        if not count:
            raise ValueError(f"training.max_length: none of the {main} rows beside training.mix fits")
        return Order(
            count,
            training.seed,
            extra=len(self.kept) - count,
            ratio=training.mix.ratio if training.mix else 0.0,
            lengths=[one.tokens for one in self.kept],
            bucket=training.bucket,
        )

    def _objective(self, model: Any) -> Objective:
        """What is learned, as streams where the model takes them, else as padded rows."""
        reason = self.unshared = shared_prefix.enable(model, max(one.longest for one in self.kept))
        if reason is not None and self.training.sequence_parallel_size > 1:
            raise ValueError(f"training.sequence_parallel_size: {reason}")
        if self.training.method == "sft":
            return Sft(packed=reason is None)
        return Dpo(self.training, shared=reason is None)

    def _policy(self, model: Any) -> Policy:
        together = self.training.sequence_parallel_size
        return sequence.SequencePolicy(model, sequence.groups(together)) if together > 1 else Policy(model)

    def _fingerprint(self) -> str:
        return self._agree(functools.partial(reference.fingerprint, self.start, self.precision))

    def _agree(self, make: Callable[[], Any]) -> Any:
        """What `make` returns on rank 0, on every rank; all of them raise the ValueError that it raises."""
        found: list[Any] = [None, None]
        if self.rank == 0:
            try:
                found[0] = make()
            except ValueError as error:
                found[1] = str(error)
        distributed.broadcast_object_list(found)
        if found[1] is not None:
            raise ValueError(found[1])
        return found[0]

    def _reference(self, fingerprint: str) -> Scores:
        """Scores of every kept pair; what the cache lacks is computed, all ranks in equal rounds."""
        cache = reference.Cache(self.store, fingerprint)
        scores: Scores = self._agree(cache.load)
        lacking = reference.missing([one.key for one in self.kept], scores)
        if not lacking:
            return scores
        size = self.training.micro_batch_size * self.teams
        lacking += lacking[:1] * (-len(lacking) % size)  # ZeRO-3 needs every rank in every forward pass
        tokens = [one.tokens for one in self.kept]
        passes = micro_batches(lacking, tokens, self.training.micro_batch_size, self.teams, self.team)
        self.engine.policy.eval()
        fresh: Scores = {}
        written = time.monotonic()
        for number, indices in enumerate(passes, 1):
            with lora.off(self.model):
                fresh.update(self._score(indices))
            if number == len(passes) or time.monotonic() - written > _SECONDS_A_PART:
                cache.put(fresh)
                fresh, written = {}, time.monotonic()
        self.engine.policy.train()
        distributed.barrier()
        return self._agree(cache.load)

    def _numbers(self) -> None:
        for one in self.kept:
            if not all(map(math.isfinite, self.scores[one.key])):
                raise ValueError(
                    f"{self.data.name(one.row)}: the reference's log-probs are {self.scores[one.key]}: "
                    f"{self.start} does not compute in {self.precision} what a model should"
                )

    def _score(self, indices: Sequence[int]) -> Scores:
        items = [self.data[self.kept[index].row] for index in indices]
        pairs = reference.score(self.engine.policy, self.objective.layout(items).to(self.device))
        return {self.kept[index].key: pair for index, pair in zip(indices, pairs, strict=True)}

    def _steps(self, tally: Any, fingerprint: str, left_out: int) -> int:
        """All optimizer steps that are still to do; their number."""
        training = self.training
        total = total_steps(self.order.epoch, training.batch_size, training.epochs, training.max_steps)
        settings = training.model_dump(mode="json", exclude=_FREE)
        state = {"settings": settings, "data": digest(self.kept), "start": fingerprint}
        checkpoints = Checkpoints(self.store, self.rank, self.workers, self._agree(attempt))
        first = self._resume(checkpoints, state)
        record = Record(self.store, training, first, total, tally, self.journal) if self.rank == 0 else None
        try:
            self._train(range(first + 1, total + 1), checkpoints, state, record, left_out)
        finally:
            if record:
                record.close()
        return total

    def _train(
        self,
        numbers: range,
        checkpoints: Checkpoints,
        state: dict[str, Any],
        record: Record | None,
        left_out: int,
    ) -> None:
        """Take the optimizer steps `numbers`, in which a last checkpoint would be the model itself."""
        counts = {"rows": len(self.kept), "rows_left_out": left_out}
        every = self.training.checkpoint_steps
        for number in numbers:
            metrics = self._step(number, numbers.stop - 1)
            if record:
                record.add(number, {**metrics, **counts})
            checkpoints.check()
            if number == numbers.start and number + every < numbers.stop:
                self.engine.reserve()
            if number % every == 0 and number < numbers.stop - 1:
                flush = record.flush if record else _nothing
                checkpoints.save(number, state, self.engine.snapshot, flush)
        checkpoints.wait()

    def _step(self, number: int, total: int) -> dict[str, float]:
        started = time.perf_counter()
        training = self.training
        torch.manual_seed((training.seed * 1_000_003 + number) * self.workers + self.rank)
        batch = self.order.batch(number - 1, training.batch_size)
        tokens = [one.tokens for one in self.kept]
        mine = micro_batches(batch, tokens, training.micro_batch_size, self.teams, self.team)
        passes = [[self._item(index) for index in indices] for indices in mine]
        totals = Totals(len(batch), sum(self.kept[index].targets for index in batch))
        rate = learning_rate(number, total, training)
        try:
            metrics = step(self.engine, self.objective, passes, totals, rate, self._sum_over_teams)
        except ValueError as error:
            raise ValueError(f"step {number}: {error}") from error
        return {
            **metrics,
            "epoch": number * training.batch_size / self.order.epoch,
            "num_tokens": sum(tokens[index] for index in batch),
            "step_time": time.perf_counter() - started,
        }

    def _sum_over_teams(self, values: torch.Tensor) -> torch.Tensor:
        values = values.to(self.device)
        distributed.all_reduce(values)
        return values * self.teams / self.workers  # all workers of a team have added the same

    def _item(self, index: int) -> Item:
        measure = self.kept[index]
        item = self.data[measure.row]
        if isinstance(item, PairIds):
            return dataclasses.replace(item, reference=self.scores[measure.key])
        return item

    def _resume(self, checkpoints: Checkpoints, state: dict[str, Any]) -> int:
        """Load the newest checkpoint; the step it was written after, or 0."""
        found = self._agree(checkpoints.latest)
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
        names, read = list(found["files"]), functools.partial(checkpoints.read, found["tag"])
        if found["workers"] == self.workers:
            self.engine.load(names, read)
        else:
            self.engine.load_resized(names, read, found["tag"])
        return int(found["step"])


def _device(training: Training) -> str:
    """The device of this rank."""
    if training.use_gpu:
        return f"cuda:{torch.cuda.current_device()}"
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, cores))
    return "cpu"


def _nothing() -> None: ...
