"""The verdicts on an answer's statements: one a call as in the paper, or several."""

import unicodedata
from collections.abc import Awaitable, Callable, Iterator
from typing import NamedTuple

from lr_ray.config import Judge
from lr_ray.judge.answers import Verdict
from lr_ray.judge.retrieval import Index
from lr_ray.judge.together import Missing, everything, usable
from lr_ray.rows import Passage, Statement

PASSAGES = 4  # times retrieval.top_k, at most, in a call with several statements

_QUOTES = str.maketrans("‘’‚“”„", "'''\"\"\"")


class Claim(NamedTuple):
    """A statement as the answer puts it, as the judge sees it, and where to look."""

    text: str
    shown: str
    passages: list[Passage]


Ask = Callable[[list[Passage], list[str], int], Awaitable[list[Verdict]]]
"""Verdicts on statements by passages; the number is that of the first statement in the answer."""


def same(text: str) -> str:
    """The form in which equal statements are equal texts.

    Kinds of white space, of quotation marks and of Unicode composition, and a closing full stop do not
    change what is claimed. Case and all other punctuation may: Polish and polish, 1.5 and 15.
    """
    plain = " ".join(unicodedata.normalize("NFC", text).translate(_QUOTES).split())
    return plain.rstrip(".。 ") or plain


async def verify(texts: list[str], index: Index, ask: Ask, settings: Judge) -> list[Statement]:
    """The statements in `texts`, each once, with their passages and verdicts.

    Where a call gave nothing usable, its statements have no verdict, for that reason.
    """
    # A claim made twice is one claim, or repeating a true one would raise the mean.
    first: dict[str, str] = {}
    for text in texts:
        first.setdefault(same(text), text)
    found = await usable(index.top(list(first), settings.retrieval.top_k))
    if isinstance(found, Missing):
        return [_statement(text, [], found.reason) for text in first.values()]
    claims = [Claim(text, shown, near) for (shown, text), near in zip(first.items(), found, strict=True)]
    groups = list(grouped(claims, settings.statements_per_call, PASSAGES * settings.retrieval.top_k))
    starts = [sum(map(len, groups[:number])) for number in range(len(groups))]
    asked = [_group(group, start, ask) for group, start in zip(groups, starts, strict=True)]
    return [statement for result in await everything(asked) for statement in result]


def grouped(claims: list[Claim], most: int, most_passages: int) -> Iterator[list[Claim]]:
    """Neighbours in the answer, at most `most` together and `most_passages` under them."""
    group: list[Claim] = []
    for claim in claims:
        if group and (len(group) == most or len(united([*group, claim])) > most_passages):
            yield group
            group = []
        group.append(claim)
    if group:
        yield group


def united(claims: list[Claim]) -> list[Passage]:
    """The passages of the claims, each once, in document order."""
    places = {passage["position"]: passage for claim in claims for passage in claim.passages}
    return [places[position] for position in sorted(places)]


async def _group(group: list[Claim], start: int, ask: Ask) -> list[Statement]:
    passages = united(group)
    verdicts = await usable(ask(passages, [claim.shown for claim in group], start))
    if isinstance(verdicts, Missing):
        return [_statement(claim.text, passages, verdicts.reason) for claim in group]
    return [
        _statement(claim.text, passages, None, verdict)
        for claim, verdict in zip(group, verdicts, strict=True)
    ]


def _statement(
    text: str, passages: list[Passage], unscored: str | None, verdict: Verdict | None = None
) -> Statement:
    return {
        "text": text,
        "verdict": verdict.verdict if verdict else None,
        "analysis": verdict.analysis if verdict else "",
        "unscored": unscored,
        "passages": passages,
    }
