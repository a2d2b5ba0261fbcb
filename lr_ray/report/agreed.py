"""What `lr-ray agreement` found: how often the judge prefers the answer that the label does."""

from collections.abc import Iterator, Sequence
from typing import Any

from lr_ray import meter
from lr_ray.report import words
from lr_ray.report.forest import MOST, Mark, forest, gaps
from lr_ray.report.shapes import Accuracy, Agreement, Group, Method, Share

REWARD = "longreward"
GROUPS = 100  # rows of a table; all are in agreement.json


def section(found: Agreement, apart: Sequence[int], page: str | None) -> dict[str, Any]:
    """What the section shows.

    Args:
        apart: how often each whole difference of rewards, better answer minus worse, from -10 to 10 came.
        page: the link to labelled pairs with their answers.
    """
    return {
        "found": found,
        "page": page,
        "share": words.share(found.accuracy),
        "ends": words.share_ends(found.low, found.high),
        "methods": [_method(row, found.n) for row in found.methods[:GROUPS]],
        "plot": _plot([(row.method, row) for row in found.methods], "Agreement by way of judging", found),
        "groups": [
            _groups(found, title, members)
            for title, members in (("Length of context", found.contexts), ("Subset", found.subsets))
            if len(members) > 1
        ],
        "apart": gaps(apart, "Reward of the better answer minus the worse", "points", ("wrong", "right"))
        if any(apart)
        else None,
        "facts": list(_facts(found)),
        "paper": (words.share(found.paper.longreward), found.paper.pairs) if found.paper else None,
    }


def _plot(rows: Sequence[tuple[str, Accuracy]], title: str, found: Agreement) -> Any:
    def percent(value: float | None) -> float | None:
        return None if value is None else 100 * value

    marks = [
        Mark(name, percent(row.accuracy), percent(row.low), percent(row.high)) for name, row in rows[:MOST]
    ]
    if all(mark.middle is None for mark in marks):
        return None
    axis = f"judged right; at random {words.share(found.chance)}"
    return forest(
        marks, title, axis, lambda value: f"{value:.0f}%", neutral=100 * found.chance, span=(0.0, 100.0)
    )


def _method(row: Method, scored: int) -> dict[str, Any]:
    """The cells of a way of judging; LongReward has `scored` pairs."""
    ahead = row.longreward_ahead
    if ahead is None or ahead.difference is None:
        return {"name": row.method, **_cells(row), "ahead": "", "ahead_ends": ""}
    low, high = (None if edge is None else 100 * edge for edge in (ahead.low, ahead.high))
    ends = words.ends(low, high, 1)
    if ahead.pairs is not None and ahead.pairs < max(row.n, scored):
        ends += f" on {meter.number(ahead.pairs, 'pair')}"  # else it is the difference of what is shown
    by = {"ahead": words.signed(100 * ahead.difference, 1), "ahead_ends": ends}
    return {"name": row.method, **_cells(row), **by}


def _cells(row: Accuracy) -> dict[str, Any]:
    return {
        "n": words.whole(row.n),
        "accuracy": words.share(row.accuracy),
        "ends": words.share_ends(row.low, row.high),
        "wrong": words.whole(row.wrong),
        "ties": words.whole(row.ties),
        "unscored": words.whole(row.unscored),
    }


def _groups(found: Agreement, title: str, groups: list[Group]) -> dict[str, Any]:
    of = [(group, group.methods[REWARD]) for group in groups if REWARD in group.methods]
    names = list(dict.fromkeys(name for group in groups for name in group.methods))[:20]
    return {
        "title": title,
        "plot": _plot([(group.name, row) for group, row in of], f"Agreement by {title.lower()}", found),
        "undrawn": max(0, len(of) - MOST),
        "rows": [
            {"name": group.name, "pairs": words.whole(group.pairs), **_cells(row)}
            for group, row in of[:GROUPS]
        ],
        "methods": names,
        "every": [
            {
                "name": group.name,
                "cells": [
                    words.share(group.methods[name].accuracy) if name in group.methods else ""
                    for name in names
                ],
            }
            for group in groups[:GROUPS]
        ],
        "more": max(0, len(of) - GROUPS),
    }


def _facts(found: Agreement) -> Iterator[tuple[str, str, str, str]]:
    """(what, figure, 95% interval, of how many)."""
    length = found.answer_length
    yield _share("judge prefers the longer answer", length.judge_prefers_longer, "couples")
    yield _share("labels prefer the longer answer", length.label_prefers_longer, "couples")
    for what, of, kind in (
        ("all answers", length.answers, "answers"),
        ("differences within pairs", length.differences, "couples"),
    ):
        yield (
            f"rank correlation of reward and length, {what}",
            words.number(of.spearman),
            words.ends(of.low, of.high, 2),
            f"{words.whole(of.count)} {kind}",
        )
    if found.repeats is not None:
        same = f"all {found.repeats.judgings} judgings of a pair agree"
        yield _share(same, found.repeats.same, "pairs")
        yield ("two judgings of a pair differ", words.share(found.repeats.flips), "", "")
    if found.direct is not None:
        yield _share("direct calls: both orders agree", found.direct.consistent, "couples")
        yield _share("direct calls: the answer shown first won", found.direct.first, "decided calls")
    if found.settled is not None:
        turned = words.whole(found.settled.turned)
        yield "close pairs that further ratings turned", turned, "", f"{words.whole(found.settled.n)} pairs"
    for one in found.kappa[:20]:
        other = found.other or "the other run" if one.other == "other" else one.other
        interval = words.ends(one.low, one.high, 2)
        yield (
            f"Cohen's kappa with {other}",
            words.number(one.kappa),
            interval,
            f"{words.whole(one.count)} pairs",
        )


def _share(what: str, found: Share, of: str) -> tuple[str, str, str, str]:
    ends = words.share_ends(found.low, found.high)
    return what, words.share(found.share), ends, f"{words.whole(found.n)} {of}"


def sentence(found: Agreement) -> str:
    """The result in one sentence."""
    if found.accuracy is None:
        return f"None of {meter.number(found.pairs, 'labelled pair')} was scored."
    interval = words.share_ends(found.low, found.high)
    of = meter.number(found.n, "labelled pair")
    return f"The judge agrees with {words.share(found.accuracy)} of {of} (95% interval {interval})."
