"""The page of labelled pairs: those the judge got wrong and right, with their answers."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lr_ray.labelled import FOLDER, OUTCOMES
from lr_ray.report import shapes
from lr_ray.report.sides import nearest, rows
from lr_ray.store import Store

KEY = "agreement"
FURTHEST = 4
"""Pairs that are wrong by most."""
PICKED = 8
"""Wrong ones picked at random; of ties and right ones half as many each."""
ANSWERS = 4  # of a pair that are shown
FAR, WRONG, TIE, RIGHT = "wrong by most", "wrong", "a tie", "right"
_KINDS = {"wrong": WRONG, "tie": TIE, "right": RIGHT}


@dataclass
class Labelled:
    """`apart` counts whole differences of rewards, better answer minus worse, from -10 to 10."""

    apart: list[int] = field(default_factory=lambda: [0] * 21)
    counts: dict[str, int] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


def gather(store: Store, seed: int = 0) -> Labelled:
    """How far apart the rewards are, and pairs picked at random: the same for the same run and seed.

    Raises:
        ValueError: a line of the outcomes is not what it should be; names it.
    """
    found = Labelled()
    kinds: dict[str, list[tuple[float, int, shapes.Outcome]]] = {}
    for number, case in enumerate(_cases(store)):
        apart = _apart(case)
        if apart is None:
            continue
        found.apart[10 + min(max(nearest(apart), -10), 10)] += 1
        kinds.setdefault(case.outcomes.get("longreward", ""), []).append((apart, number, case))
    found.counts = {_KINDS[kind]: len(cases) for kind, cases in kinds.items() if kind in _KINDS}
    chance = random.Random(seed)
    picked: list[tuple[str, float, shapes.Outcome]] = []
    furthest = sorted(kinds.get("wrong", []))[:FURTHEST]
    picked += [(FAR, apart, case) for apart, _, case in furthest]
    taken = {number for _, number, _ in furthest}
    for kind, most in (("wrong", PICKED), ("tie", PICKED // 2), ("right", PICKED // 2)):
        left = [one for one in kinds.get(kind, []) if one[1] not in taken]
        some = sorted(chance.sample(left, min(most, len(left))), key=lambda one: one[1])
        picked += [(_KINDS[kind], apart, case) for apart, _, case in some]
    found.rows = list(_shown(store, picked))
    return found


def _cases(store: Store) -> Iterator[shapes.Outcome]:
    content = store.read(FOLDER, OUTCOMES) or b""
    for number, line in enumerate(content.splitlines(), 1):
        where = f"{store.url}/{FOLDER}/{OUTCOMES}: line {number}"
        case = shapes.parsed(line, shapes.Outcome, where)
        places = range(len(case.rewards))
        if not case.chosen or not case.rejected or {*case.chosen, *case.rejected} - set(places):
            raise ValueError(f"{where}: names answers that it has no rewards of")
        yield case


def _apart(case: shapes.Outcome) -> float | None:
    """The closest two of a better and a worse answer; None where one has no reward."""
    better = [case.rewards[index] for index in case.chosen]
    worse = [case.rewards[index] for index in case.rejected]
    known = [value for value in better if value is not None], [value for value in worse if value is not None]
    if len(known[0]) < len(better) or len(known[1]) < len(worse):
        return None
    return min(known[0]) - max(known[1])


def _shown(store: Store, picked: list[tuple[str, float, shapes.Outcome]]) -> Iterator[dict[str, Any]]:
    there = store.sub(FOLDER)
    ids = {case.prompt_id for _, _, case in picked}
    judged = {**rows(there.sub("short"), ids), **rows(there, ids)}
    for why, apart, case in picked:
        row = judged.get(case.prompt_id)
        if row is None:
            continue
        of = {candidate["index"]: candidate for candidate in row["candidates"]}
        sides = (("better", case.chosen), ("worse", case.rejected))
        answers = [(side, of[index]) for side, indexes in sides for index in indexes[:ANSWERS] if index in of]
        more = len(case.chosen) + len(case.rejected) - len(answers)
        yield {**row, "why": why, "apart": apart, "subset": case.subset, "answers": answers, "more": more}
