"""The judge as a stage of a Ray Data pipeline: sampled rows in, judged or failed rows out."""

from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from lr_ray import metrics, rows
from lr_ray.config import DIMENSIONS, Config
from lr_ray.judge import core, order, retrieval
from lr_ray.llm.asker import Asker, ask_stage
from lr_ray.llm.calls import Calls
from lr_ray.store import Store

if TYPE_CHECKING:
    from ray.data import Dataset


class JudgeActor(Asker):
    """Sampled rows → judged rows."""

    takes: ClassVar[rows.Kind] = "sampled"
    makes: ClassVar[rows.Kind] = "judged"
    stage: ClassVar[str] = "judge"

    def start(self) -> None:
        """Order and embeddings are shared by all rows of the actor."""
        self.turns: order.Turns = order.Turns(lambda: self.governor.limit)
        self._embedder = self.client(self.config.judge.retrieval.embedding_base_url)

    async def work(self, row: rows.Sampled, calls: Calls) -> rows.Judged:
        """The row with scores, rewards and evidence; see `core.judge_row`."""
        judged = await core.judge_row(row, calls, self.config.judge, self._embed(calls), self.turns)
        self.governor.account.row(_fruitless(judged))
        missing = _unscored(judged)
        self.tally.count("unscored", missing.total())
        for (dimension, reason), number in missing.items():
            self.tally.count((metrics.UNSCORED, dimension, reason), number)
        self._log(judged, missing)
        return judged

    def _log(self, judged: rows.Judged, missing: Counter[tuple[str, str]]) -> None:
        self.journal.info(
            "judged",
            prompt_id=judged["prompt_id"],
            seconds=judged["judged_at"] - judged["first_call_at"],
            rewards=[candidate["reward"] for candidate in judged["candidates"]],
            unscored={" ".join(key): number for key, number in missing.items()} or None,
            **judged["usage"],
        )

    def _embed(self, calls: Calls) -> retrieval.Embed | None:
        model = self.config.judge.retrieval.embedding_model
        return None if model is None else lambda texts: calls.embed(texts, model, self._embedder)


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


def judge_stage(
    dataset: "Dataset", config: Config, store: Store, tally: Any = None, load: rows.Load | None = None
) -> "Dataset":
    """Packed rows of kind sampled or failed → judged, failed or left; see `ask_stage`."""
    return ask_stage(dataset, JudgeActor, config, store, tally, load)
