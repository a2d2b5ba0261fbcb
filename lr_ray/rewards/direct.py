"""One direct pairwise call a prompt: the judge is asked outright which of two candidates is better."""

import functools
import random
from typing import Any, ClassVar

from lr_ray.asking import ask_rows
from lr_ray.config import Config
from lr_ray.judge.direct import prefer, prompts_hash
from lr_ray.llm.asker import Asker
from lr_ray.llm.calls import Calls, Unusable
from lr_ray.llm.messages import language
from lr_ray.rewards.places import judged, load
from lr_ray.rows import Judged, Kind, Rewarded, RewardedCandidate
from lr_ray.runtime import Watch
from lr_ray.store import Store

NOT_ASKED = "not compared"
TIE = 0.5
ASKED_WITH = "prompts.sha256"


class Comparer(Asker):
    """Judged rows → 1 for the candidate that was preferred, 0 for the other, or 0.5 for both."""

    takes: ClassVar[Kind] = "judged"
    makes: ClassVar[Kind] = "rewarded"
    stage: ClassVar[str] = "direct"

    async def work(self, row: Judged, calls: Calls) -> Rewarded:
        """One call about two candidates drawn at random, in an order drawn at random; none between equals."""
        drawn = draw(row, self.config.rewards.seed)
        if drawn is None:  # equal answers are a tie without a judge
            return _rewarded(row, dict.fromkeys(range(len(row["candidates"])), TIE), None)
        texts = [row["candidates"][place]["text"] for place in drawn]
        context = row["context"] if self.config.rewards.direct.context else None
        lang = language(row["context"])
        try:
            said = await prefer(calls, row["question"], *texts, lang=lang, context=context)
        except Unusable as error:
            return _rewarded(row, {}, str(error))
        given = {"first": (1.0, 0.0), "second": (0.0, 1.0), "tie": (TIE, TIE)}[said.winner]
        return _rewarded(row, dict(zip(drawn, given, strict=True)), NOT_ASKED)


def draw(row: Judged, seed: int) -> tuple[int, int] | None:
    """Places of two candidates with different texts in the order to be shown; None: there are no two."""
    texts = [one["text"].strip() for one in row["candidates"]]
    places = [place for place, text in enumerate(texts) if text]
    random.Random(f"{seed} direct {row['prompt_id']}").shuffle(places)
    other = next((place for place in places if texts[place] != texts[places[0]]), None)
    return None if other is None else (places[0], other)


def _rewarded(row: Judged, given: dict[int, float], reason: str | None) -> Rewarded:
    """The rewards `given` by place; `reason` is why the others have none."""
    candidates: list[RewardedCandidate] = [
        {"index": one["index"], "reward": given.get(at), "unscored": None if at in given else reason}
        for at, one in enumerate(row["candidates"])
    ]
    return {"prompt_id": row["prompt_id"], "candidates": candidates}


def check(config: Config, there: Store) -> None:
    """Refuse an endpoint that cannot be asked, and answers in `there` to other prompts.

    Raises:
        ValueError: in one sentence.
    """
    from lr_ray.llm import client

    if there.read(ASKED_WITH) not in (None, prompts_hash().encode()) and there.files(Comparer.makes):
        raise ValueError(
            f"{there.url} was asked with the prompts of another version of lr-ray: use another run_dir, "
            "or that version"
        )
    client.check(_with_endpoint(config))


def compare(config: Config, store: Store, there: Store, watch: Watch, *, retry: bool = False) -> int:
    """Ask about every judged row of `store`, into `there`; rows that failed for good."""
    there.write(prompts_hash().encode(), ASKED_WITH)
    items = ((one, place) for one, place in judged(store).items())
    loading: Any = functools.partial(load, store=store)
    config = _with_endpoint(config)
    name = "direct comparisons"
    return ask_rows(config, there, items, Comparer, watch, load=loading, name=name, retry=retry)["failed"]


def _with_endpoint(config: Config) -> Config:
    """The config whose judge is who compares."""
    given = config.rewards.direct.model_dump(include={"model", "base_url"}, exclude_none=True)
    return config.model_copy(update={"judge": config.judge.model_copy(update=given)})
