"""What the ledger says was paid, added up by kind of call."""

from collections.abc import Iterator
from dataclasses import dataclass

from lr_ray import metrics
from lr_ray.config import Prices
from lr_ray.llm.records import FOLDER, SUFFIX, lines, merged_away, parse
from lr_ray.meter import cost
from lr_ray.store import Store


@dataclass
class Used:
    """Answers of one kind of call, and their tokens; `cached_tokens` are part of `prompt_tokens`."""

    calls: float = 0
    prompt_tokens: float = 0
    cached_tokens: float = 0
    completion_tokens: float = 0

    def add(self, other: "Used", times: float = 1) -> None:
        """Add `other`, `times` over."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + times * value)


def by_kind(store: Store, prompts: set[str] | None = None) -> dict[str, Used]:
    """What the run directory's own ledger holds for `prompts` (none: for all), a few MB of it in memory.

    Answers taken over from another run are calls without tokens.
    """
    used: dict[str, Used] = {}
    twice = merged_away(store)
    for segment in store.files(FOLDER, SUFFIX):
        if segment in twice:
            continue
        for line in lines(store, segment):
            record = parse(line)
            if record is None or (prompts is not None and record["prompt_id"] not in prompts):
                continue
            kind, reply = metrics.kind(record["unit"]), record["reply"]
            tokens = (reply[name] for name in ("prompt_tokens", "cached_tokens", "completion_tokens"))
            used.setdefault(kind, Used()).add(Used(1, *tokens))
    return used


def money(store: Store, prices: Prices) -> float:
    """What all answers recorded in the run directory cost, and those of its parts; 0 without prices."""
    kinds = (one for ledger in ledgers(store) for one in by_kind(ledger).values())
    return sum(cost(vars(one), prices) or 0.0 for one in kinds)


def ledgers(store: Store) -> Iterator[Store]:
    """The run directory and those inside it that pay for themselves."""
    yield store
    yield store.sub("agreement")
    for group in ("evaluation", "rewards", "agreement"):
        yield from (store.sub(group, name) for name in store.folders(group))
    for name in store.folders("compare"):
        yield from ledgers(store.sub("compare", name))
