"""Answers of two models to cases of the benchmarks, with the grades that a judge or plain rules gave them."""

import random
from typing import Any

from lr_ray.benchmark_results import RULES
from lr_ray.benchmarks.wins import FLIPPED
from lr_ray.report import sides
from lr_ray.store import Store

PICKED = 2
"""Cases of each benchmark."""
BENCHMARKS = 20
GRADES = 12  # of an answer that are shown


def gather(pair: sides.Pair, seed: int = 0) -> list[dict[str, Any]]:
    """Cases picked at random, the same for the same run and seed, with both models' first answers."""
    stores = dict(zip(sides.BEFORE_AFTER, pair.tried, strict=True))
    where = [store.index("sampled") for store in stores.values()]
    by_label: dict[str, list[str]] = {}
    for one in sorted(where[0].keys() & where[1].keys()):
        by_label.setdefault(one.partition("/")[0], []).append(one)
    picked: dict[str, str] = {}
    for label, ids in list(by_label.items())[:BENCHMARKS]:
        chance = random.Random(f"{seed} {label}")
        picked |= dict.fromkeys(chance.sample(ids, min(PICKED, len(ids))), label)
    found = {side: sides.rows(store, set(picked), "sampled") for side, store in stores.items()}
    grades = {side: _grades(store, set(picked)) for side, store in stores.items()}
    shown = []
    for one, label in picked.items():
        answers = [
            {
                "side": side,
                "text": rows[one]["candidates"][0]["text"] if rows[one]["candidates"] else "",
                "truncated": rows[one]["truncated"],
                "grades": grades[side].get(one, []),
            }
            for side, rows in found.items()
        ]
        shown.append({**found["after"][one], "label": label, "answers": answers})
    return shown


def _grades(store: Store, ids: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The grades of the first answers."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in (one for folder in ("graded", RULES) for one in store.rows(folder, ["prompt_id", "grades"])):
        if row["prompt_id"] in ids:
            of_first = [one for one in row["grades"] if one["index"] == 0 and one["metric"] != FLIPPED]
            found[row["prompt_id"]] = of_first[:GRADES]
    return found
