"""The reference's log-probs as a Ray Data job before training: tokenising tasks, scoring actors.

Rows flow as places in their files, then as token ids; what the cache has is dropped on the way. An actor
writes the scores of a block when it has them, so that a killed job repeats a block an actor at most.
"""

import functools
import os
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lr_ray import data
from lr_ray.config import Config, Training
from lr_ray.placement import DATA_TASKS, Need, require, worker
from lr_ray.store import Store
from lr_ray.training import source

ROWS_A_BLOCK = 8
"""Pairs that are tokenised, scored and saved together."""
_BLOCKS = 2000  # as many as Ray Data's scheduler handles with ease
_IDS = ("prompt", "chosen", "rejected")
_SCORED = pa.schema([("key", pa.string()), ("error", pa.string())])
_TOKENS = pa.schema([*_SCORED, *((name, pa.binary()) for name in _IDS)])


class Reference(NamedTuple):
    """The reference model as a worker sees it: its folder there, its window, and what it computes in."""

    folder: str
    fingerprint: str
    limit: int
    precision: str


def score(config: Config, store: Store, tally: Any = None) -> int:
    """Fill `reference/` with what it lacks of the run's pairs; how many were computed.

    Needs a running Ray with CPUs (and GPUs) for the actors and one task besides, and a config as
    `launch.check` returns it. `tally` is the run's counting actor.

    Raises:
        ValueError: a row that cannot be learned from, no rows, or too few CPUs or GPUs.
    """
    import ray
    import ray.data

    from lr_ray.training.reference import Cache

    training = config.training
    count = actors(training)
    count, _ = require([Need("the reference", count, worker(training)), DATA_TASKS], config.wait_for_nodes)
    share: dict[str, Any] = {
        "num_cpus": training.num_cpus,
        "num_gpus": int(training.use_gpu),
        "resources": dict(training.resources),
    }
    describe: Any = ray.remote(_describe).options(**share)
    reference = ray.get(describe.remote(config))
    cache = Cache(store, reference.fingerprint)
    blocks = _blocks(training, store)
    known = frozenset(cache.load())
    tokenise: Any = functools.partial(_tokenise, reference=reference, known=known)
    scorer: Any = Scorer
    dataset = (
        ray.data.from_items(blocks, override_num_blocks=len(blocks))
        .map_batches(tokenise, batch_size=1, num_cpus=1)
        .map_batches(
            scorer,
            fn_constructor_kwargs={"training": training, "store": store, "reference": reference},
            compute=ray.data.ActorPoolStrategy(size=count),
            batch_size=None,
            batch_format="pyarrow",
            **share,
        )
    )
    computed = 0
    for row in dataset.iter_rows():
        if row["error"]:
            raise ValueError(row["error"])
        computed += 1
        if tally is not None:
            tally.add.remote({"reference_pairs": 1})
    cache.merge()
    return computed


def actors(training: Training) -> int:
    """How many actors score; 0: the training workers do it, as with LoRA, whose base is the reference."""
    if training.lora is not None:
        return 0
    if training.reference_actors is not None:
        return training.reference_actors
    # What workers compute together is too long for one of them, and so for an actor.
    return 0 if training.sequence_parallel_size > 1 else training.num_workers


def _quiet() -> None:
    """Set here and not as a runtime environment, for which Ray would start processes anew."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _describe(config: Config) -> Reference:
    _quiet()
    from lr_ray.training import folder, zero
    from lr_ray.training.reference import fingerprint

    training = config.training
    local = folder.local(training.model or config.sampling.model)
    precision = zero.precision(training)
    window = folder.limit(local, training.max_length)
    return Reference(local, fingerprint(local, precision), window, precision)


def _blocks(training: Training, store: Store) -> list[dict[str, Any]]:
    places = [place for part in source.urls(training, store) for place, _ in data.rows(part)]
    if not places:
        raise ValueError(f"{', '.join(training.data) or store.url + '/pairs'}: no rows to train on")
    size = max(ROWS_A_BLOCK, -(-len(places) // _BLOCKS))
    return [{"places": places[at : at + size]} for at in range(0, len(places), size)]


def _tokenise(batch: dict[str, Any], reference: Reference, known: frozenset[str]) -> pa.Table:
    """The pairs at a block's places that fit and have no score; a bad one as its error."""
    from lr_ray.training.reference import key

    rows: list[dict[str, Any]] = []
    for place in batch["places"][0]:
        name = str(data.Place(*place))
        try:
            _, row = source.opened("dpo", name, data.row_at(data.Place(*place)))
            pair = _encoder(reference.folder).pair(row, name)
        except ValueError as error:
            rows.append({"error": str(error)})
            continue
        fits = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= reference.limit
        if fits and key(pair) not in known:
            ids = {part: np.asarray(getattr(pair, part), dtype="<i4").tobytes() for part in _IDS}
            rows.append({"key": key(pair), **ids})
    return pa.Table.from_pylist(rows, schema=_TOKENS)


@functools.lru_cache(maxsize=1)
def _encoder(folder: str) -> Any:
    _quiet()
    from lr_ray.training.tokens import Encoder

    return Encoder(folder)


class Scorer:
    """An actor with the reference model. The model is loaded when the first pair that lacks a score comes."""

    def __init__(self, training: Training, store: Store, reference: Reference) -> None:
        from lr_ray.training.reference import Cache

        self._training, self._reference = training, reference
        self._cache = Cache(store, reference.fingerprint)
        self._loaded: tuple[Any, Any] | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score a block and save it; keys and errors go on."""
        from lr_ray.training.batch import PairIds
        from lr_ray.training.reference import score as score_batch

        scores = {}
        rows = [row for row in batch.to_pylist() if not row["error"]]
        rows.sort(key=lambda row: -len(row["prompt"]))
        size = self._training.micro_batch_size
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            ids = [[np.frombuffer(row[name], "<i4").tolist() for name in _IDS] for row in part]
            policy, objective = self._load()
            layout = objective.layout([PairIds(*one) for one in ids]).to(self._device)
            scores.update(zip((row["key"] for row in part), score_batch(policy, layout), strict=True))
        if scores:
            self._cache.put(scores)
        return batch.select(_SCORED.names)

    @property
    def _device(self) -> str:
        return "cuda" if self._training.use_gpu else "cpu"

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            _quiet()
            import torch

            from lr_ray.training import folder, shared_prefix
            from lr_ray.training.logps import Policy
            from lr_ray.training.step import Dpo

            if not self._training.use_gpu:
                cores = len(os.sched_getaffinity(0))
                torch.set_num_threads(max(1, cores // actors(self._training)))
            dtype = torch.bfloat16 if self._reference.precision == "bf16" else torch.float32
            model = folder.load(self._reference.folder, dtype).to(self._device).eval()
            shared = shared_prefix.enable(model, self._reference.limit) is None
            self._loaded = Policy(model), Dpo(self._training, shared=shared)
        return self._loaded
