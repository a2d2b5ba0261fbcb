"""What came out of the benchmarks: rows for the table of results, and what is missing, and why."""

from collections.abc import Iterable, Mapping
from typing import Any

from lr_ray.benchmark_runs import HELD_OUT, Side, answered
from lr_ray.benchmarks import facts, plain, table
from lr_ray.benchmarks.case import SECOND, Case
from lr_ray.benchmarks.grades import Graded
from lr_ray.benchmarks.intervals import Point, paired
from lr_ray.store import Store


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


def results(sides: list[Side], store: Store, every: Iterable[Case]) -> tuple[list[table.Row], dict[str, Any]]:
    """The rows of the results on all cases, and of each benchmark what was cut, is missing, and why."""
    config = sides[0].config
    by_label: dict[str, list[Case]] = {}
    for case in every:
        by_label.setdefault(case.benchmark, []).append(case)
    compared = table.by_benchmark(store.sub("evaluation", "wins").rows("graded", _COLUMNS))
    rows: list[table.Row] = []
    info: dict[str, Any] = {}
    grades: dict[str, list[list[Graded]]] = {}
    for benchmark in config.evaluation.benchmarks:
        label = benchmark.label
        cases = by_label[label]
        grades[label] = [_grades(side, cases) for side in sides]
        sets = {case.prompt_id: case.groups[0] for case in cases} if benchmark.kind == "longbench" else None
        before, after = grades[label]
        found = table.rows(benchmark.kind, label, before, after, sets)
        info[label] = {"kind": benchmark.kind, "cases": len(cases), **_info(sides, cases, grades[label])}
        if benchmark.facts or benchmark.kind == "facts":
            told, info[label]["unscored facts"] = fact_rows(
                {side.name: side.facts for side in sides}, label, {case.prompt_id for case in cases}
            )
            found += told
        if benchmark.win_rate:
            ids = {case.prompt_id for case in cases}
            duels = [row for row in compared.get(label, []) if row["prompt_id"] in ids]
            found += table.duels(label, duels)
            info[label]["comparisons"] = _duel_info(duels)
        rows += found
    if config.evaluation.win_rate:
        duels = compared.get(HELD_OUT, [])
        rows += table.duels(HELD_OUT, duels)
        info[HELD_OUT] = {"comparisons": _duel_info(duels)}
    kinds = {benchmark.kind: benchmark.label for benchmark in config.evaluation.benchmarks}
    if {"longbench_chat", "longbench"} <= kinds.keys():
        mean = table.authors_mean(grades[kinds["longbench_chat"]], grades[kinds["longbench"]])
        rows += [mean] if mean else []
    return rows, info


_COLUMNS = ["prompt_id", "benchmark", "unit", "groups", "grades"]


def _grades(side: Side, cases: list[Case]) -> list[Graded]:
    """The grades of the cases and their second turns, by the judge and by plain rules."""
    units = {case.prompt_id for case in cases}
    rules = {case.prompt_id: case for case in cases if case.grade in plain.WAYS}
    found: list[Any] = [row for row in side.there.rows("graded", _COLUMNS) if row["unit"] in units]
    for one, candidates in answered(side.there, set(rules)).items():
        found.append(plain.grade(rules[one], candidates))
    order = {case.prompt_id: number for number, case in enumerate(cases)}
    return sorted(found, key=lambda row: (order[row["unit"]], row["prompt_id"]))


def _info(sides: list[Side], cases: list[Case], grades: list[list[Graded]]) -> dict[str, Any]:
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


def _duel_info(duels: list[Graded]) -> dict[str, Any]:
    return {"unscored": table.unscored(duels), "the order decided": table.order_decided(duels)}


def fact_rows(
    stores: Mapping[str, Store], label: str | None, ids: set[str]
) -> tuple[list[table.Row], dict[str, Any]]:
    """Facts told and supported in the judged rows of both sides; no rows where faithfulness had no weight."""
    means: dict[str, Any] = {}
    unscored: dict[str, Any] = {}
    for side, store in stores.items():
        judged = store.rows("judged", ["prompt_id", "candidates"])
        means[side], unscored[side] = facts.means(row for row in judged if row["prompt_id"] in ids)
    before, after = means.values()
    rows = []
    for metric in (facts.COUNT, facts.SUPPORTED):
        if before[metric] or after[metric]:
            sides = [{one: Point(value) for one, value in side[metric].items()} for side in (before, after)]
            name = metric if label is None else f"{label}: {metric}"
            rows.append({"metric": name, "benchmark": label, "group": None, **paired(sides[0], sides[1])})
    return rows, unscored
