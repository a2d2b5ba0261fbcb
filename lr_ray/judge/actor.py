"""The judge as a stage of a Ray Data pipeline: sampled rows in, judged or failed rows out."""

import asyncio
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from lr_ray import journal, metrics, rows
from lr_ray.config import DIMENSIONS, Config, api_key
from lr_ray.judge import core, order, retrieval
from lr_ray.llm import shared, usage
from lr_ray.llm.calls import Calls
from lr_ray.llm.client import Client, GaveUp
from lr_ray.llm.governor import Governor
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.paid import Paid
from lr_ray.llm.spending import Stopped
from lr_ray.store import Store

if TYPE_CHECKING:
    from ray.data import Dataset

COUNT_EVERY = 1.0  # seconds between reports to the tally


class JudgeActor:
    """Judges `rows_in_flight` rows at once. Everything bound to an event loop is made by the first call."""

    def __init__(self, config: Config, store: Store, tally: Any = None, keeper: Any = None) -> None:
        self._config, self._store, self._keeper = config, store, keeper
        self._tally, self._journal = _Tally(tally), journal.of(config)
        self._beats: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._under_way: dict[str, asyncio.Future[rows.Packed]] = {}

    async def __call__(self, packed: rows.Packed) -> rows.Packed:
        """The judged row; a failed one passes through, and one whose calls gave up becomes one.

        When the run stops early, a row that is not done is "left".

        Raises:
            EndpointRefused: the endpoint refuses us for good.
        """
        if packed["kind"] != "sampled":
            assert packed["kind"] == "failed", f"cannot judge a {packed['kind']} row"
            return packed
        if self._started is None:
            self._start()
        # Ray hands a row out again when its actor could not be reached for a while. The actor may well be
        # at it still: then both get what that work brings, and nothing is paid twice.
        prompt_id = packed["prompt_id"]
        work = self._under_way.get(prompt_id)
        if work is None:
            work = asyncio.ensure_future(self._place(packed))
            self._under_way[prompt_id] = work
            work.add_done_callback(lambda _: self._under_way.pop(prompt_id))
        return await asyncio.shield(work)

    async def _place(self, packed: rows.Packed) -> rows.Packed:
        async with self._places:
            return await self._judge(packed["prompt_id"], cast(rows.Sampled, rows.unpack(packed)))

    def _start(self) -> None:
        judge = self._config.judge
        self._started = asyncio.get_running_loop().create_future()
        self._places = asyncio.Semaphore(judge.rows_in_flight)
        governor = shared.governor(judge, remote=self._keeper is not None)
        if self._keeper is not None:
            self._beats = asyncio.create_task(governor.beats(shared.asking(self._keeper)))
        self._tally.governor = governor
        self._turns = order.Turns(lambda: governor.limit)
        key = api_key(self._config)
        self._client = Client(judge, key, governor, journal=self._journal)
        self._embedder = Client(judge, key, governor, judge.retrieval.embedding_base_url, self._journal)
        self._ledger = Ledger(self._store)
        self._paid = Paid(self._store, judge.reuse, self._ledger.name)

    async def _judge(self, prompt_id: str, row: rows.Sampled) -> rows.Packed:
        judge, account = self._config.judge, self._client.governor.account
        if account.stop is not None:
            return rows.left(prompt_id, account.stop)
        with self._tally.row():
            replies, borrowed = await self._paid.replies(prompt_id)
            calls = Calls(prompt_id, self._client, self._ledger, replies, judge, self._tally.count, borrowed)
            try:
                judged = await core.judge_row(row, calls, judge, self._embed(calls), self._turns)
            except Stopped as stop:
                return rows.left(prompt_id, str(stop))
            except GaveUp as error:
                if account.stop is not None:
                    return rows.left(prompt_id, account.stop)
                account.row(str(error).partition(": ")[2])  # without the unit, the same for all rows
                self._tally.count("failed", 1)
                self._journal.warning("failed", prompt_id=prompt_id, stage="judge", reason=str(error))
                return rows.failed(prompt_id, "judge", str(error))
            account.row(_fruitless(judged))
            self._tally.count("judged", 1)
            missing = _unscored(judged)
            self._tally.count("unscored", missing.total())
            for (dimension, reason), number in missing.items():
                self._tally.count((metrics.UNSCORED, dimension, reason), number)
            self._log(judged, missing)
        return rows.pack("judged", judged)

    def _log(self, judged: rows.Judged, missing: Counter[tuple[str, str]]) -> None:
        self._journal.info(
            "judged",
            prompt_id=judged["prompt_id"],
            seconds=judged["judged_at"] - judged["first_call_at"],
            rewards=[candidate["reward"] for candidate in judged["candidates"]],
            unscored={" ".join(key): number for key, number in missing.items()} or None,
            **judged["usage"],
        )

    def _embed(self, calls: Calls) -> retrieval.Embed | None:
        model = self._config.judge.retrieval.embedding_model
        return None if model is None else lambda texts: calls.embed(texts, model, self._embedder)

    async def close(self) -> None:
        """Close connections and the ledger; for uses without Ray, which kills its actors."""
        if self._started is not None:
            if self._beats is not None:
                self._beats.cancel()
            await self._client.close()
            await self._embedder.close()
            self._ledger.close()


def _fruitless(judged: rows.Judged) -> str:
    """Why no candidate has a score in some dimension that counts; empty where each has one somewhere."""
    for dimension in DIMENSIONS:
        reasons = [
            missing["reason"]
            for one in judged["candidates"]
            for missing in one["unscored"]
            if missing["dimension"] == dimension and missing["reason"] != core.NO_WEIGHT
        ]
        if len(reasons) == len(judged["candidates"]):
            return reasons[0]
    return ""


def _unscored(judged: rows.Judged) -> Counter[tuple[str, str]]:
    """The scores that are missing, by dimension and class of reason."""
    missing = (one for candidate in judged["candidates"] for one in candidate["unscored"])
    return Counter(
        (one["dimension"], metrics.reason(one["reason"]))
        for one in missing
        if one["reason"] != core.NO_WEIGHT
    )


class _Tally:
    """Adds up what an actor counts, and tells the run's tally at most once a second."""

    def __init__(self, tally: Any) -> None:
        self._tally = tally
        self._counts: dict[str | metrics.Key, float] = {}
        self._rows = 0
        self._waited = self._held = 0.0
        self.governor: Governor | None = None
        self._reporter: asyncio.Task[None] | None = None

    def count(self, name: str | metrics.Key, number: float) -> None:
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

    def _seconds(self) -> None:
        """Count how long calls waited for leave and held it since the last look."""
        if self.governor is not None:
            waited, held = self.governor.waited, self.governor.held
            self.count((metrics.SECONDS, "waited"), waited - self._waited)
            self.count((metrics.SECONDS, "held"), held - self._held)
            self._waited, self._held = waited, held

    def _send(self) -> None:
        self._seconds()
        if self._counts:
            self._tally.add.remote(self._counts)
            self._counts = {}


def judge_stage(dataset: "Dataset", config: Config, store: Store, tally: Any = None) -> "Dataset":
    """Packed rows of kind sampled or failed → judged or failed.

    Answers that the ledger in `store` holds, or that of a run in `judge.reuse`, are not paid again.
    `tally` is None or the handle of an actor with the method ``add({counter: number})``.

    Raises:
        ValueError: a run in `judge.reuse` holds no calls.
    """
    from ray.data import ActorPoolStrategy
    from ray.util.annotations import RayDeprecationWarning

    judge = config.judge
    # The endpoint is settled here: the driver's environment need not be the actors'. The key is not.
    url = judge.base_url or os.environ.get("OPENAI_BASE_URL")
    # A relative path means another folder there.
    reuse = [Store(run).absolute for run in judge.reuse]
    config = config.model_copy(update={"judge": judge.model_copy(update={"base_url": url, "reuse": reuse})})
    Paid(store, reuse).prepare()
    arguments = {
        "config": config,
        "store": store,
        "tally": tally,
        "keeper": shared.keeper(config, _spent(config)),
    }
    with warnings.catch_warnings():
        # Ray 2.60 deprecates remote arguments without a name of their own, and max_concurrency has none yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map(
            cast(Any, JudgeActor),
            fn_constructor_kwargs=arguments,
            compute=ActorPoolStrategy(size=judge.actors),
            num_cpus=judge.num_cpus,
            resources=dict(judge.resources),
            max_concurrency=judge.rows_in_flight,
        )


def _spent(config: Config) -> float:
    """Money that the run cost before, which only a budget asks for."""
    return usage.money(Store(config.run_dir), config.judge.prices) if config.judge.budget else 0.0
