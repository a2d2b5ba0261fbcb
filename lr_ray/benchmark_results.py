"""What came out of the benchmarks: rows for the table of results, and what is missing, and why."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

from lr_ray.benchmark_runs import HELD_OUT, Side, answered
from lr_ray.benchmarks import facts, plain, table
from lr_ray.benchmarks.case import SECOND, Case
from lr_ray.benchmarks.grades import Graded
from lr_ray.benchmarks.intervals import Point, paired
from lr_ray.config import Config
from lr_ray.schemas import GRADED
from lr_ray.store import Store

RULES = "rules"
"""The folder of grades by plain rules."""


def failed(sides: Iterable[Side], store: Store) -> dict[str, int]:
    """How many rows of each side failed for good, and of the comparisons if there are any."""
    counts = {}
    for side in sides:
        lost = side.there.index("failed").keys() - side.there.index("graded").keys()
        counts[side.name] = len(lost) + len(
            side.facts.index("failed").keys() - side.facts.index("judged").keys()
        )
    wins = store.sub("evaluation", "wins")
    compared = len(wins.index("failed").keys() - wins.index("graded").keys())
    return counts | ({"comparisons": compared} if compared else {})


Facts = dict[str, dict[str, float]]
"""Metric → prompt id → mean over the prompt's answers."""


class Found(NamedTuple):
    """What was found of both sides, the model before first, by what a benchmark is called in the results;
    of the held-out prompts facts by None, comparisons of the two by `HELD_OUT`."""

    grades: dict[str, tuple[list[Graded], list[Graded]]]
    facts: dict[str | None, tuple[Facts, Facts]]
    duels: dict[str, list[Graded]]


def results(
    sides: list[Side], store: Store, every: Iterable[Case], held_out: Set[str]
) -> tuple[list[table.Row], dict[str, Any], dict[str, Any]]:
    """The rows of the results on all cases, of each benchmark what was cut, is missing, and why, and of the
    held-out prompts (`held_out` are their ids) facts without a verdict, by side and reason."""
    cases = list(every)
    found, unscored = gathered(sides, store, cases, held_out)
    info: dict[str, Any] = {}
    for benchmark in sides[0].config.evaluation.benchmarks:
        label = benchmark.label
        own = [case for case in cases if case.benchmark == label]
        of_kind = {"kind": benchmark.kind, "cases": len(own)}
        info[label] = {**of_kind, **_info(sides, own, found.grades[label])}
        if label in unscored:
            info[label]["unscored facts"] = unscored[label]
    for label, duels in found.duels.items():
        told = {"unscored": table.unscored(duels), "the order decided": table.order_decided(duels)}
        info.setdefault(label, {})["comparisons"] = told
    return rows(sides[0].config, found, cases), info, unscored.get(None, {})


def gathered(
    sides: list[Side], store: Store, cases: list[Case], held_out: Set[str]
) -> tuple[Found, dict[str | None, Any]]:
    """What the run directories hold of these cases and held-out prompts; and facts without a verdict, why."""
    evaluation = sides[0].config.evaluation
    compared = table.by_benchmark(store.sub("evaluation", "wins").rows("graded", _COLUMNS))
    found = Found({}, {}, {})
    unscored: dict[str | None, Any] = {}
    if held_out:
        stores = {side.name: side.held_out for side in sides}
        found.facts[None], unscored[None] = told_facts(stores, held_out)
    for benchmark in evaluation.benchmarks:
        label = benchmark.label
        own = [case for case in cases if case.benchmark == label]
        ids = {case.prompt_id for case in own}
        before, after = (_grades(side, own) for side in sides)
        found.grades[label] = before, after
        if benchmark.facts or benchmark.kind == "facts":
            stores = {side.name: side.facts for side in sides}
            found.facts[label], unscored[label] = told_facts(stores, ids)
        if benchmark.win_rate:
            found.duels[label] = [row for row in compared.get(label, []) if row["prompt_id"] in ids]
    if evaluation.win_rate:
        duels = compared.get(HELD_OUT, [])
        found.duels[HELD_OUT] = [row for row in duels if row["prompt_id"] in held_out]
    return found, unscored


def rows(config: Config, found: Found, cases: Sequence[Case]) -> list[table.Row]:
    """Means with intervals of what was found."""
    made = fact_rows(None, *found.facts[None]) if None in found.facts else []
    kinds = {benchmark.kind: benchmark.label for benchmark in config.evaluation.benchmarks}
    for benchmark in config.evaluation.benchmarks:
        label = benchmark.label
        longbench = benchmark.kind == "longbench"
        sets = {case.prompt_id: case.groups[0] for case in cases if case.benchmark == label and longbench}
        made += table.rows(benchmark.kind, label, *found.grades[label], sets if longbench else None)
        if label in found.facts:
            made += fact_rows(label, *found.facts[label])
        if label in found.duels:
            made += table.duels(label, found.duels[label])
    if HELD_OUT in found.duels:
        made += table.duels(HELD_OUT, found.duels[HELD_OUT])
    if {"longbench_chat", "longbench"} <= kinds.keys():
        chat, sets_of = (found.grades[kinds[kind]] for kind in ("longbench_chat", "longbench"))
        mean = table.authors_mean(chat, sets_of)
        made += [mean] if mean else []
    return made


_COLUMNS = ["prompt_id", "benchmark", "unit", "groups", "grades"]


def keep_rules(side: Side, cases: Iterable[Case]) -> None:
    """Write the grades by plain rules beside the answers, for whoever reads the run directory alone."""
    side.there.clear(RULES)
    found = list(_by_rules(side, cases))
    if found:
        side.there.write_rows(RULES, [dict(row) for row in found], GRADED)


def _by_rules(side: Side, cases: Iterable[Case]) -> Iterator[Graded]:
    rules = {case.prompt_id: case for case in cases if case.grade in plain.WAYS}
    for one, candidates in answered(side.there, set(rules)).items() if rules else ():
        yield plain.grade(rules[one], candidates)


def _grades(side: Side, cases: list[Case]) -> list[Graded]:
    """The grades of the cases and their second turns, by the judge and by plain rules."""
    units = {case.prompt_id for case in cases}
    found: list[Any] = [row for row in side.there.rows("graded", _COLUMNS) if row["unit"] in units]
    found += _by_rules(side, cases)
    order = {case.prompt_id: number for number, case in enumerate(cases)}
    return sorted(found, key=lambda row: (order[row["unit"]], row["prompt_id"]))


def _info(sides: list[Side], cases: list[Case], grades: Sequence[list[Graded]]) -> dict[str, Any]:
    ids = {case.prompt_id for case in cases}
    info: dict[str, Any] = {"truncated": {}, "failed": {}, "unscored": {}}
    for side, graded in zip(sides, grades, strict=True):
        cut = side.there.rows("sampled", ["prompt_id", "truncated"])
        info["truncated"][side.name] = sum(row["truncated"] for row in cut if row["prompt_id"] in ids)
        lost = side.there.index("failed").keys() - side.there.index("graded").keys()
        info["failed"][side.name] = sum(one.removesuffix(SECOND) in ids for one in lost)
        info["unscored"][side.name] = table.unscored(graded)
        decided = table.order_decided(graded)
        if decided:
            info.setdefault("the order decided", {})[side.name] = decided
        following = sum(case.follow_up is not None for case in cases)
        if following:
            turned = sum("turn 2" in row["groups"] for row in graded)
            info.setdefault("second turns not graded", {})[side.name] = following - turned
    return info


def told_facts(stores: Mapping[str, Store], ids: Set[str]) -> tuple[tuple[Facts, Facts], dict[str, Any]]:
    """Facts told and supported in the judged rows of both sides; and those without a verdict, by reason."""
    means: dict[str, Facts] = {}
    unscored: dict[str, Any] = {}
    for side, store in stores.items():
        judged = store.rows("judged", ["prompt_id", "candidates"])
        means[side], unscored[side] = facts.means(row for row in judged if row["prompt_id"] in ids)
    before, after = means.values()
    return (before, after), unscored


def fact_rows(label: str | None, before: Facts, after: Facts) -> list[table.Row]:
    """Facts told and supported, before against after; no rows where faithfulness had no weight."""
    made = []
    for metric in (facts.COUNT, facts.SUPPORTED):
        if before[metric] or after[metric]:
            sides = [{one: Point(value) for one, value in side[metric].items()} for side in (before, after)]
            name = metric if label is None else f"{label}: {metric}"
            made.append({"metric": name, "benchmark": label, "group": None, **paired(sides[0], sides[1])})
    return made
