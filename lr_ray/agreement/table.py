"""`agreement.json` as lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lr_ray.agreement.cases import REWARD

GROUPS = 12  # shown; all are in agreement.json
NAME = 40  # characters of a group's name


def render(result: Mapping[str, Any]) -> str:
    """The figures with the paper's beside them, which are of other pairs and another judge."""
    return "\n".join(_lines(result))


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"agreement of {result['judge'] or 'the judge'} with {result['pairs']} labelled pairs on "
        f"{result['prompts']} prompts; at random it would be {_percent(result['chance'])}"
    )
    head = (
        "",
        "scored",
        "accuracy",
        "95% interval",
        "ties",
        "unscored",
        "LongReward ahead by",
        "the paper's",
    )
    yield from _table([head, *(_method(row, result["n"]) for row in result["methods"])])
    for name in ("contexts", "subsets"):
        if len(result[name]) > 1:
            rows = [(_shown(group["name"]), *_cells(group["methods"][REWARD])) for group in result[name]]
            shown = rows[:GROUPS]
            yield ""
            yield from _table([(f"by {name[:-1]}", *head[1:6]), *shown])
            if len(rows) > len(shown):
                yield f"… and {len(rows) - len(shown)} more in agreement.json"
    yield ""
    yield from _facts(result)


def _facts(result: Mapping[str, Any]) -> Iterator[str]:
    length = result["answer_length"]
    yield (
        f"length: of answers of unequal length the judge prefers the longer in "
        f"{_share(length['judge_prefers_longer'])}, the labels in {_share(length['label_prefers_longer'])}; "
        f"rank correlation of reward and length {_number(length['answers']['spearman'])}, "
        f"of their differences within pairs {_number(length['differences']['spearman'])}"
    )
    if "direct" in result:
        found = result["direct"]
        yield (
            f"direct calls: both orders agree in {_share(found['consistent'])}; "
            f"the answer shown first won {_share(found['first'])} of those decided"
        )
    if "repeats" in result:
        found = result["repeats"]
        yield (
            f"repeats: all {found['judgings']} judgings agree on {_share(found['same'])}; "
            f"two of them differ on {_percent(found['flips'])}"
        )
    if "settled" in result:
        found = result["settled"]
        yield f"close pairs rated again (judge.repeats): {found['turned']} of {found['n']} turned"
    for one in result["kappa"]:
        name = one["with"] if one["with"] != "other" else f"the choices in {result['other']}"
        yield (
            f"Cohen's kappa with {name}: {_number(one['kappa'])} "
            f"({_number(one['low'])} … {_number(one['high'])}) over {one['count']} pairs"
        )
    if result["unlabelled"]:
        yield f"{result['unlabelled']} rows have no label that tells their answers apart, and were left out"
    if result["failed"]:
        yield f"{result['failed']} rows failed; failed/ says why, and lr-ray retry-failed takes them up"
    paper = result["paper"]
    yield (
        f"the paper ({paper['pairs']} pairs labelled by people; {paper['source'].partition(': ')[2]}): "
        f"LongReward {_percent(paper['longreward'])}, "
        f"short-context reward model {_percent(paper['short-context reward model'])}, one direct call "
        f"{_percent(paper['direct'])}, without faithfulness or completeness "
        f"{_percent(paper['without faithfulness or completeness'])}"
    )


_PAPERS = {
    REWARD: "longreward",
    "direct": "direct",
    "without faithfulness": "without faithfulness or completeness",
    "without completeness": "without faithfulness or completeness",
}


def _method(row: Mapping[str, Any], scored: int) -> tuple[str, ...]:
    """The cells of a way of judging; LongReward has `scored` pairs."""
    from lr_ray.agreement.figures import PAPER

    ahead = row.get("longreward_ahead")
    by = ""
    if ahead and ahead["difference"] is not None:
        by = f"{100 * ahead['difference']:+.1f}"
        if ahead["low"] is not None:
            by += f" ({100 * ahead['low']:+.1f} … {100 * ahead['high']:+.1f})"
        if ahead["pairs"] < max(row["n"], scored):  # then it is no difference of the accuracies shown
            by += f" on {ahead['pairs']}"
    paper = _PAPERS.get(row["method"])
    return (row["method"], *_cells(row), by, _percent(PAPER[paper]) if paper else "")  # pyrefly: ignore


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    interval = "" if found["low"] is None else f"{_percent(found['low'])} … {_percent(found['high'])}"
    counts = (str(found["ties"]), str(found["unscored"]))
    return (str(found["n"]), _percent(found["accuracy"]), interval, *counts)


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        yield "  ".join(cells).rstrip()


def _shown(name: str) -> str:
    """A name from the data without what a terminal would obey."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in name[:NAME])


def _share(found: Mapping[str, Any]) -> str:
    if not found["n"]:
        return "none of 0"
    return f"{_percent(found['share'])} of {found['n']}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
