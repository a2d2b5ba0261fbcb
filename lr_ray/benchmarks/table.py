"""From graded rows to the rows of the results: means of each benchmark and group, and what is missing."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lr_ray.benchmarks import intervals, wins
from lr_ray.benchmarks.grades import Given, Graded
from lr_ray.benchmarks.intervals import Point
from lr_ray.benchmarks.longbench import SETS

Row = dict[str, Any]
AUTHORS_MEAN = "mean of LongBench-Chat and LongBench's three classes"
CLASSES = 4  # that mean's: LongBench-Chat is one of them
HIDDEN = (wins.WIN, wins.FLIPPED)


def points(rows: Iterable[Graded], metric: str) -> dict[str, Point]:
    """Unit → the mean of its scored grades in `metric`; a unit without any is not there."""
    found: dict[str, list[Given]] = {}
    for row in rows:
        scored = [g for g in row["grades"] if g["metric"] == metric and g["value"] is not None]
        if scored:
            found.setdefault(row["unit"], []).extend(scored)
    return {unit: _mean(grades) for unit, grades in found.items()}


def _mean(grades: list[Given]) -> Point:
    weight = sum(grade["weight"] for grade in grades)
    value = sum(grade["weight"] * (grade["value"] or 0.0) for grade in grades) / weight
    lengths = [grade["length"] for grade in grades if grade["length"] is not None]
    # Things a prompt is about, not answers to it: a second answer adds none.
    about = max(grade["weight"] for grade in grades)
    return Point(value, about, sum(lengths) / len(lengths) if lengths else 0.0)


def rows(
    kind: str,
    label: str,
    before: Sequence[Graded],
    after: Sequence[Graded],
    sets: Mapping[str, str] | None = None,
) -> list[Row]:
    """The rows of one benchmark: the whole, then each group of cases.

    `sets` has the data set of each of LongBench's cases, also of those without any grade (none: there are
    no such cases).
    """
    sides = (before, after)
    names = _names(sides)
    if kind == "longbench":
        return _longbench(label, sides, sets or {row["unit"]: row["groups"][0] for s in sides for row in s})
    groups = [None, *_groups(sides)]
    table = [_row(label, group, name, sides) for name in names for group in groups]
    if any(g["metric"] == wins.WIN for row in before for g in row["grades"]):
        table += _against(label, sides)
    return table


def _names(sides: Iterable[Sequence[Graded]]) -> list[str]:
    named = (g["metric"] for side in sides for row in side for g in row["grades"])
    return [name for name in dict.fromkeys(named) if name not in HIDDEN]


def _groups(sides: Iterable[Sequence[Graded]]) -> list[str]:
    """The groups that are not all there is, in order of appearance."""
    found = Counter(group for side in sides for row in side for group in row["groups"])
    total = sum(len(side) for side in sides)
    return [group for group, count in found.items() if count < total]


def _row(label: str, group: str | None, name: str, sides: Sequence[Sequence[Graded]]) -> Row:
    kept = [[row for row in side if group is None or group in row["groups"]] for side in sides]
    # Turns are told apart: one that has a grade on one side only would be compared with the other turn.
    one, two = ({row["prompt_id"] for row in rows if points([row], name)} for rows in kept)
    before, after = (points((r for r in rows if r["prompt_id"] in one & two), name) for rows in kept)
    return _named(label, group, name, intervals.paired(before, after))


def _named(label: str, group: str | None, name: str, comparison: Any) -> Row:
    of = label if group is None else f"{label}, {group}"
    return {"metric": f"{of}: {name}", "benchmark": label, "group": group, **comparison}


def _longbench(label: str, sides: Sequence[Sequence[Graded]], sets: Mapping[str, str]) -> list[Row]:
    """Macro means over the sets of each class and of all, then each set."""
    before, after = (points(side, "score") for side in sides)
    table = [_named(label, None, "score", intervals.paired(before, after, sets))]
    for name in dict.fromkeys(SETS[one] for one in sets.values()):
        members = {unit: one for unit, one in sets.items() if SETS[one] == name}
        kept = [{unit: point for unit, point in side.items() if unit in members} for side in (before, after)]
        table.append(_named(label, name, "score", intervals.paired(kept[0], kept[1], members)))
    return table + [_row(label, one, "score", sides) for one in SETS if one in sets.values()]


def _against(label: str, sides: Sequence[Sequence[Graded]]) -> list[Row]:
    """Win rates of both models against the answers of the file."""
    before, after = (points(side, wins.WIN) for side in sides)
    name = "win rate against the file's answers"
    return [
        _named(label, None, name, intervals.paired(before, after)),
        _named(label, None, f"{name}, length-controlled", intervals.controlled(before, after)),
    ]


def duels(label: str, compared: Sequence[Graded]) -> list[Row]:
    """The win rate of the model after against the one before, as it is and length-controlled."""
    found = points(compared, wins.WIN)
    return [
        _named(label, None, "win rate", intervals.duel(found, control=False)),
        _named(label, None, "win rate, length-controlled", intervals.duel(found, control=True)),
    ]


def authors_mean(chat: Sequence[Sequence[Graded]], sets: Sequence[Sequence[Graded]]) -> Row | None:
    """The mean of the four columns of the paper's table, unknown where one is; None without all 12 sets."""
    of = {row["unit"]: row["groups"][0] for side in sets for row in side}
    if set(of.values()) != set(SETS):
        return None
    of |= {row["unit"]: "chat" for side in chat for row in side}
    before, after = (points([*one, *two], "score") for one, two in zip(chat, sets, strict=True))
    classes = Counter(SETS.values())
    shares = {name: 1 / CLASSES / classes[SETS[name]] for name in SETS} | {"chat": 1 / CLASSES}
    row = _named("", None, "", intervals.shared(before, after, of, shares))
    return row | {"metric": AUTHORS_MEAN, "benchmark": None}


def unscored(rows: Iterable[Graded]) -> dict[str, dict[str, int]]:
    """Metric → reason → how many grades are missing for it."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        for grade in row["grades"]:
            if grade["value"] is None:
                counted = found.setdefault(grade["metric"], {})
                reason = grade["unscored"] or ""
                counted[reason] = counted.get(reason, 0) + 1
    return found


def order_decided(rows: Iterable[Graded]) -> dict[str, float]:
    """Of how many comparisons only the order decided; nothing where nothing was compared."""
    found = [point.value for point in points(rows, wins.FLIPPED).values()]
    return {"share": sum(found) / len(found) / 100, "comparisons": len(found)} if found else {}


def by_benchmark(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Graded]]:
    """The graded rows of each benchmark."""
    found: dict[str, list[Graded]] = {}
    for row in rows:
        found.setdefault(row["benchmark"], []).append(row)  # type: ignore[arg-type]
    return found
