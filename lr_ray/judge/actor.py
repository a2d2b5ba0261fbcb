"""The judge as a stage of a Ray Data pipeline: sampled rows in, judged or failed rows out."""

import asyncio
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from lr_ray import rows
from lr_ray.config import Config, api_key
from lr_ray.judge import core, retrieval
from lr_ray.llm import ledger
from lr_ray.llm.calls import Calls
from lr_ray.llm.client import Client, GaveUp
from lr_ray.llm.governor import Governor
from lr_ray.store import Store

if TYPE_CHECKING:
    from ray.data import Dataset

COUNT_EVERY = 1.0  # seconds between reports to the tally


class JudgeActor:
    """Judges `rows_in_flight` rows at once. Everything bound to an event loop is made by the first call."""

    def __init__(self, config: Config, store: Store, recorded: ledger.Recorded, tally: Any = None) -> None:
        self._config, self._store, self._recorded = config, store, recorded
        self._tally = _Tally(tally)
        if _reborn():
            # The records of an earlier life of this actor are newer than the driver's index.
            self._recorded = ledger.scan(store, finished=store.index("judged"))
        self._started: asyncio.Future[None] | None = None

    async def __call__(self, packed: rows.Packed) -> rows.Packed:
        """The judged row; a failed one passes through, and one whose calls gave up becomes one.

        Raises:
            EndpointRefused: the endpoint refuses us for good.
        """
        if packed["kind"] != "sampled":
            assert packed["kind"] == "failed", f"cannot judge a {packed['kind']} row"
            return packed
        if self._started is None:
            self._start()
        async with self._places:
            return await self._judge(packed["prompt_id"], cast(rows.Sampled, rows.unpack(packed)))

    def _start(self) -> None:
        judge = self._config.judge
        self._started = asyncio.get_running_loop().create_future()
        self._places = asyncio.Semaphore(judge.rows_in_flight)
        # The limit is for all actors together.
        governor = Governor(max(1, judge.concurrency // judge.actors))
        key = api_key(self._config)
        self._client = Client(judge, key, governor)
        self._embedder = Client(judge, key, governor, judge.retrieval.embedding_base_url)
        self._ledger = ledger.Ledger(self._store)

    async def _judge(self, prompt_id: str, row: rows.Sampled) -> rows.Packed:
        judge = self._config.judge
        with self._tally.row():
            replies = await asyncio.to_thread(ledger.load, self._store, self._recorded.get(prompt_id, []))
            calls = Calls(prompt_id, self._client, self._ledger, replies, judge, self._tally.count)
            try:
                judged = await core.judge_row(row, calls, judge, self._embed(calls))
            except GaveUp as error:
                self._tally.count("failed", 1)
                return rows.failed(prompt_id, "judge", str(error))
            self._recorded.pop(prompt_id, None)
            self._tally.count("judged", 1)
            self._tally.count("unscored", _unscored(judged))
        return rows.pack("judged", judged)

    def _embed(self, calls: Calls) -> retrieval.Embed | None:
        model = self._config.judge.retrieval.embedding_model
        return None if model is None else lambda texts: calls.embed(texts, model, self._embedder)

    async def close(self) -> None:
        """Close connections and the ledger; for uses without Ray, which kills its actors."""
        if self._started is not None:
            await self._client.close()
            await self._embedder.close()
            self._ledger.close()


def _unscored(judged: rows.Judged) -> int:
    reasons = (missing["reason"] for one in judged["candidates"] for missing in one["unscored"])
    return sum(reason != core.NO_WEIGHT for reason in reasons)


class _Tally:
    """Adds up what an actor counts, and tells the run's tally at most once a second."""

    def __init__(self, tally: Any) -> None:
        self._tally = tally
        self._counts: dict[str, float] = {}
        self._rows = 0
        self._reporter: asyncio.Task[None] | None = None

    def count(self, name: str, number: float) -> None:
        if self._tally is not None and number:
            self._counts[name] = self._counts.get(name, 0) + number

    @contextmanager
    def row(self) -> Iterator[None]:
        """Around the work on a row: reports run while there is any, and one follows the last."""
        self._rows += 1
        if self._tally is not None and (self._reporter is None or self._reporter.done()):
            self._reporter = asyncio.create_task(self._report())
        try:
            yield
        finally:
            self._rows -= 1
            if not self._rows:
                self._send()

    async def _report(self) -> None:
        while self._rows:
            await asyncio.sleep(COUNT_EVERY)
            self._send()

    def _send(self) -> None:
        if self._counts:
            self._tally.add.remote(self._counts)
            self._counts = {}


def _reborn() -> bool:
    """Whether this process is a later life of a Ray actor that died."""
    import ray

    if not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and context.was_current_actor_reconstructed


def judge_stage(
    dataset: "Dataset", config: Config, store: Store, tally: Any = None, unfinished: set[str] | None = None
) -> "Dataset":
    """Packed rows of kind sampled or failed → judged or failed.

    Answers that the ledger in `store` holds for `unfinished` prompts (none: for all) are not paid again.
    `tally` is None or the handle of an actor with the method ``add({counter: number})``.
    """
    from ray.data import ActorPoolStrategy
    from ray.util.annotations import RayDeprecationWarning

    judge = config.judge
    # The endpoint is settled here: the driver's environment need not be the actors'. The key is not.
    url = judge.base_url or os.environ.get("OPENAI_BASE_URL")
    config = config.model_copy(update={"judge": judge.model_copy(update={"base_url": url})})
    arguments = {
        "config": config,
        "store": store,
        "recorded": ledger.scan(store, unfinished),
        "tally": tally,
    }
    with warnings.catch_warnings():
        # Ray 2.60 deprecates remote arguments without a name of their own, and max_concurrency has none yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map(
            cast(Any, JudgeActor),
            fn_constructor_kwargs=arguments,
            compute=ActorPoolStrategy(size=judge.actors),
            num_cpus=judge.num_cpus,
            max_concurrency=judge.rows_in_flight,
        )
