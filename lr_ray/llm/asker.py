"""Rows whose work is calls to a chat endpoint, as a stage of a Ray Data pipeline.

An `Asker` is an async actor that works on many rows at once: what the ledger holds is replayed, each other
call is paid once, and a row ends as what its work makes of it, as failed with the reason, or as left when
the run stops early. What the work is, its subclasses say: the judge, synthesis, comparisons, grading.
"""

import asyncio
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lr_ray import journal, metrics, rows
from lr_ray.config import Config, api_key
from lr_ray.llm import shared, usage
from lr_ray.llm.calls import Calls
from lr_ray.llm.client import Client
from lr_ray.llm.failures import GaveUp
from lr_ray.llm.governor import Governor
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.paid import Paid
from lr_ray.llm.spending import Beside, Stopped
from lr_ray.store import Store

if TYPE_CHECKING:
    from ray.data import Dataset

COUNT_EVERY = 1.0  # seconds between reports to the tally


class Asker:
    """Works on `judge.rows_in_flight` rows at once. What is bound to an event loop is made by the first call.

    A subclass names the kind of rows it takes and makes and its `stage` in `failed/`, and gives `work`.
    """

    takes: ClassVar[rows.Kind]
    makes: ClassVar[rows.Kind]
    stage: ClassVar[str]

    def __init__(
        self,
        config: Config,
        store: Store,
        tally: Any = None,
        keeper: Any = None,
        load: rows.Load | None = None,
    ) -> None:
        self.config, self._load = config, load
        self._store, self._keeper = store, keeper
        self.tally, self.journal = _Tally(tally), journal.of(config)
        self._beats: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._under_way: dict[str, asyncio.Future[rows.Packed]] = {}

    async def work(self, row: Any, calls: Calls) -> Any:
        """What becomes of `row`, a row of the kind `makes`; asks through `calls`.

        Raises:
            GaveUp: the row fails for good, with this as its reason.
            Stopped: the run stops early; the row is left.
        """
        raise NotImplementedError

    def start(self) -> None:
        """Make what is bound to the event loop; called once, by the first row."""

    async def __call__(self, packed: rows.Packed) -> rows.Packed:
        """The row worked on; a failed one passes through, and one whose calls gave up becomes one.

        When the run stops early, a row that is not done is "left".

        Raises:
            EndpointRefused: the endpoint refuses us for good.
        """
        if packed["kind"] not in (self.takes, "pointer"):
            assert packed["kind"] == "failed", f"{self.stage} does not take a {packed['kind']} row"
            return packed
        if self._started is None:
            self._start()
        # Ray hands a row out again when its actor could not be reached for a while. The actor may well be
        # at it still: then both get what that work brings, and nothing is paid twice.
        prompt_id = packed["prompt_id"]
        under_way = self._under_way.get(prompt_id)
        if under_way is None:
            under_way = asyncio.ensure_future(self._place(packed))
            self._under_way[prompt_id] = under_way
            under_way.add_done_callback(lambda _: self._under_way.pop(prompt_id))
        return await asyncio.shield(under_way)

    async def _place(self, packed: rows.Packed) -> rows.Packed:
        async with self._places:
            packed = await rows.opened(packed, self._load)
            return await self._worked(packed["prompt_id"], rows.unpack(packed))

    def _start(self) -> None:
        judge = self.config.judge
        self._started = asyncio.get_running_loop().create_future()
        self._places = asyncio.Semaphore(judge.rows_in_flight)
        self.governor = shared.governor(judge, remote=self._keeper is not None)
        if self._keeper is not None:
            self._beats = asyncio.create_task(self.governor.beats(shared.asking(self._keeper)))
        self.tally.governor = self.governor
        self._clients: list[Client] = []
        self._client = self.client()
        self._ledger = Ledger(self._store)
        self._paid = Paid(self._store, judge.reuse)
        self.start()

    def client(self, base_url: str | None = None) -> Client:
        """A client of judge.base_url or another endpoint; closed with the actor.

        Another one's refusals say nothing of the judge's limits: it has its own, of as many calls in flight.
        """
        judge, governor = self.config.judge, self.governor
        if base_url not in (None, judge.base_url):
            governor = Governor(max(1, judge.concurrency // judge.actors))
            governor.account = Beside(self.governor.account, self.governor.leased)
        made = Client(judge, api_key(self.config), governor, base_url, self.journal)
        self._clients.append(made)
        return made

    async def _worked(self, prompt_id: str, row: Any) -> rows.Packed:
        judge, account = self.config.judge, self.governor.account
        if account.stop is not None:
            return rows.left(prompt_id, account.stop)
        with self.tally.row():
            replies, borrowed = await self._paid.replies(prompt_id)
            calls = Calls(prompt_id, self._client, self._ledger, replies, judge, self.tally.count, borrowed)
            try:
                made = await self.work(row, calls)
            except Stopped as stop:
                return rows.left(prompt_id, str(stop))
            except GaveUp as error:
                if account.stop is not None:
                    return rows.left(prompt_id, account.stop)
                account.row(str(error).partition(": ")[2])  # without the unit, the same for all rows
                self.tally.count("failed", 1)
                self.journal.warning("failed", prompt_id=prompt_id, stage=self.stage, reason=str(error))
                return rows.failed(prompt_id, self.stage, str(error))
            self.tally.count(self.makes, 1)
        return rows.pack(self.makes, made)

    async def close(self) -> None:
        """Close connections and the ledger; for uses without Ray, which kills its actors."""
        if self._started is not None:
            if self._beats is not None:
                self._beats.cancel()
            for client in self._clients:
                await client.close()
            self._ledger.close()


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


def ask_stage(
    dataset: "Dataset",
    asker: type[Asker],
    config: Config,
    store: Store,
    tally: Any = None,
    load: rows.Load | None = None,
) -> "Dataset":
    """Packed rows of the kind that `asker` takes, or failed → of the kind it makes, or failed, or left.

    With `load` rows may come as pointers, which the actors load.

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
        "load": load,
    }
    with warnings.catch_warnings():
        # Ray 2.60 deprecates remote arguments without a name of their own, and max_concurrency has none yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        return dataset.map(
            cast(Any, asker),
            fn_constructor_kwargs=arguments,
            compute=ActorPoolStrategy(size=judge.actors),
            num_cpus=judge.num_cpus,
            resources=dict(judge.resources),
            max_concurrency=judge.rows_in_flight,
        )


def _spent(config: Config) -> float:
    """Money that the run cost before, which only a budget asks for."""
    return usage.money(Store(config.run_dir), config.judge.prices) if config.judge.budget else 0.0
