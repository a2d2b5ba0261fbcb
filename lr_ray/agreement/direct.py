"""The direct baseline: of every labelled couple the judge is asked outright, in both orders."""

import functools
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from lr_ray.agreement.inputs import Item, Label
from lr_ray.agreement.outcomes import Outcome
from lr_ray.asking import ask_rows
from lr_ray.config import Config
from lr_ray.data import Place, row_at
from lr_ray.judge.direct import prefer, prompts_hash
from lr_ray.judge.together import everything
from lr_ray.llm.asker import Asker
from lr_ray.llm.calls import Calls, Unusable
from lr_ray.llm.messages import language
from lr_ray.rows import Kind, Preferred, PreferredCall
from lr_ray.runtime import Watch
from lr_ray.store import Store

Said = dict[tuple[int, int], str | None]
"""Who won a call, by (first, second): "first", "second", "tie"; None: the call gave no answer."""


class Comparer(Asker):
    """Rows of `inputs` → the winner of every chosen answer against every rejected one, in both orders."""

    takes: ClassVar[Kind] = "sampled"
    makes: ClassVar[Kind] = "preferred"
    stage: ClassVar[str] = "direct"

    async def work(self, row: Any, calls: Calls) -> Preferred:
        """One call an order. The first goes ahead of the others, so that they find its document cached."""
        ask = functools.partial(self._call, row, calls)
        ahead, *others = orders(row["labels"])
        found = [await ask(*ahead), *(await everything(ask(*order) for order in others))]
        missing = [call["unscored"] for call in found if call["unscored"]]
        # As of the judge: the same reason on row after row stops the run.
        self.governor.account.row(missing[0] if len(missing) == len(found) else "")
        self.tally.count("unscored", len(missing))
        return {"prompt_id": row["prompt_id"], "calls": found}

    async def _call(self, row: Any, calls: Calls, first: int, second: int) -> PreferredCall:
        winner, analysis, unscored = None, "", None
        try:
            said = await prefer(
                calls,
                row["question"],
                row["candidates"][first],
                row["candidates"][second],
                lang=language(row["context"]),
                context=None if row["short"] else row["context"],
                candidate=first,
                index=second,
            )
            winner, analysis = said.winner, said.analysis
        except Unusable as error:
            unscored = str(error)
        return {
            "first": first,
            "second": second,
            "winner": winner,
            "analysis": analysis,
            "unscored": unscored,
        }


def orders(labels: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Which answers are compared, as (first, second): each labelled couple in both orders."""
    couples = {
        (min(chosen, rejected), max(chosen, rejected))
        for label in labels
        for chosen in label["chosen"]
        for rejected in label["rejected"]
    }
    return [order for low, high in sorted(couples) for order in ((low, high), (high, low))]


def folder(store: Store) -> Store:
    """Where the calls and their answers lie: under a name that changes with the prompts."""
    return store.sub(f"direct-{prompts_hash()[:8]}")


def compare(config: Config, store: Store, items: Iterable[Item], watch: Watch, *, retry: bool) -> int:
    """Ask about all items; how many failed for good."""
    places = [(item.prompt_id, [*item.pointer.prompt]) for item in items]
    there, name = folder(store), "direct comparisons"
    return ask_rows(config, there, places, Comparer, watch, load=_load, name=name, retry=retry)["failed"]


def _load(place: Any) -> Any:
    return row_at(Place(*place))


def said(store: Store) -> dict[str, Said]:
    """What was answered, by prompt id."""
    return {
        row["prompt_id"]: {(call["first"], call["second"]): call["winner"] for call in row["calls"]}
        for row in folder(store).rows("preferred")
    }


def winner(calls: Said, first: int, second: int) -> int | Literal["tie"] | None:
    """The index that won when `first` was shown first; None where the call gave nothing."""
    verdict = calls.get((first, second))
    if verdict is None or verdict == "tie":
        return verdict
    return first if verdict == "first" else second


def single(calls: Said, label: Label) -> Outcome:
    """The outcome of one call a couple, with the answers in the row's order, as chance gave it."""
    found = [(winner(calls, *sorted(couple)), couple[0]) for couple in couples(label)]
    return _joined([_outcome(won, chosen) for won, chosen in found])


def both(calls: Said, label: Label) -> Outcome:
    """The outcome of two calls a couple: right or wrong where both orders say so, else a tie."""
    found: list[Outcome] = []
    for chosen, rejected in couples(label):
        one = _outcome(winner(calls, chosen, rejected), chosen)
        other = _outcome(winner(calls, rejected, chosen), chosen)
        found.append("unscored" if "unscored" in (one, other) else one if one == other else "tie")
    return _joined(found)


def couples(label: Label) -> list[tuple[int, int]]:
    """Each chosen answer with each rejected one."""
    return [(chosen, rejected) for chosen in label.chosen for rejected in label.rejected]


def _outcome(won: int | Literal["tie"] | None, chosen: int) -> Outcome:
    if won is None:
        return "unscored"
    if won == "tie":
        return "tie"
    return "right" if won == chosen else "wrong"


def _joined(outcomes: list[Outcome]) -> Outcome:
    """Of all couples of a label: unscored goes before wrong, wrong before a tie, a tie before right."""
    order: tuple[Outcome, ...] = ("unscored", "wrong", "tie")
    return next((kind for kind in order if kind in outcomes), "right")
