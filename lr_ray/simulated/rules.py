"""The simulated judge's opinions: plain rules over the texts of one request.

Each rule looks at words alone: names, numbers and content words that two texts share. It knows neither the
task nor the truth, and imports nothing of ours; only the tags in a request say which text is which.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from lr_ray.simulated import direct, grading, synthesis
from lr_ray.simulated.words import UNKNOWN, Keys, asserts, keys, overlap, sentences

SHORT = 4  # keys; in a sentence this short each one matters
VERDICTS = ("none", "partial", "full")
SHORT_PARTIAL = 0.8  # of a short claim's keys
FULL, PARTIAL = 0.75, 0.55  # of a long claim's keys, half counted where they stand together
LONG_QUESTION, REPEATED = 8, 0.6  # keys; share of a long question's keys that a good answer says again
FACTS = 12  # most facts taken of a chunk

_BLOCK = re.compile(r"<([a-z]+) ([0-9a-f]{16})(?: at \d+%)?(?: \d+)?>\n(.*?)\n</\1 \2>", re.DOTALL)
_ABSOLUTES = {"always", "never", "regardless", "whenever", "guaranteed", "impossible", "certainly"}


def answer(name: str, text: str) -> dict[str, Any]:
    """The reply to a call of kind `name` whose user message is `text`.

    Raises:
        KeyError: no such kind of call.
    """
    blocks: dict[str, list[str]] = {}
    for tag, _, content in _BLOCK.findall(text):
        blocks.setdefault(tag, []).append(content)
    return KINDS[name](blocks)


def statements(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """The sentences of the answer that assert something."""
    found = [sentence for sentence in sentences(_one(blocks, "answer")) if asserts(sentence)]
    return {"statements": [sentence[:1900] for sentence in found[:250]]}


def support(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """How much of the statement, or of each of several, the passages say, in one place and altogether."""
    claims = blocks.get("statement", [""])
    if len(claims) == 1:
        return _support(claims[0], blocks)
    numbered = enumerate(claims, 1)
    return {"verdicts": [{"statement": number, **_support(claim, blocks)} for number, claim in numbered]}


def _support(statement: str, blocks: dict[str, list[str]]) -> dict[str, Any]:
    claim = keys(statement)
    best, seen = 0.0, Keys({}, frozenset(), ())
    everywhere: set[str] = set()
    for passage in blocks.get("passage", []):
        views = [keys(sentence) for sentence in sentences(passage)]
        everywhere.update(*(view.weight for view in views))
        if len(claim.weight) > SHORT:
            views += [Keys(a.weight | b.weight, a.words | b.words, ()) for a, b in pairwise(views)]
        for view in views:
            share = overlap(claim, view.weight)
            if share > best:
                best, seen = share, view
    verdict, why = _verdict(claim, seen, best, everywhere)
    return {"analysis": f"The closest passage holds {best:.0%} of the claim; {why}.", "verdict": verdict}


def _verdict(claim: Keys, seen: Keys, near: float, everywhere: set[str]) -> tuple[str, str]:
    if len(claim.weight) <= SHORT:
        # "Mira keeps copper": a missing key is a wrong person or a wrong thing.
        level = 2 if near == 1 else 1 if near >= SHORT_PARTIAL else 0
        return VERDICTS[level], "nothing is missing" if level == 2 else "a name or value is not there"
    # A long claim may rest on several places, but then its words alone prove less.
    share = (near + overlap(claim, everywhere)) / 2
    invented = [stem for stem in claim.weight if re.search(r"[\d_]", stem) and stem not in everywhere]
    sweeping = (claim.words & _ABSOLUTES) - seen.words
    level = 2 if share >= FULL else 1 if share >= PARTIAL else 0
    level -= bool(invented) + bool(sweeping)
    why = "nothing speaks against it"
    if invented:
        why = f"nothing mentions {', '.join(invented[:3])}"
    elif sweeping:
        why = f"nothing says {', '.join(sorted(sweeping))}"
    return VERDICTS[max(0, level)], why


def extract(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """The sentences of the chunk that speak of what the question names; its rare words count most."""
    question = keys(_one(blocks, "question"))
    strong = {stem for stem, weight in question.weight.items() if weight > 1}
    views = [(sentence, keys(sentence).weight.keys()) for sentence in sentences(_one(blocks, "document"))]
    spread = Counter(stem for _, stems in views for stem in stems & question.weight.keys())
    rarity = {stem: question.weight[stem] * math.log1p(len(views) / count) for stem, count in spread.items()}
    found: list[tuple[float, int, str]] = []
    for position, (sentence, stems) in enumerate(views):
        shared = stems & rarity.keys()
        # A short sentence is about the one it names; a long one may name it in passing.
        enough = 1 if shared & strong and len(stems) <= SHORT else 2 if shared & strong else SHORT
        if len(shared) >= enough and not sentence.startswith("#"):
            found.append((-sum(rarity[stem] for stem in shared), position, sentence))
    best = sorted(found)[:FACTS]
    return {"facts": [sentence[:1900] for _, _, sentence in sorted(best, key=lambda fact: fact[1])]}


def completeness(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """How many of the facts the answer states."""
    said = [keys(sentence) for sentence in sentences(_one(blocks, "answer"))]
    facts = [keys(fact) for extract in blocks.get("extract", []) for fact in extract.splitlines()]
    if not facts:
        unknown = bool(UNKNOWN.search(_one(blocks, "answer")))
        return _rating(10.0 if unknown else 0.0, "The document says nothing on this question.")
    question = keys(_one(blocks, "question")).weight
    told = sum(_told(fact, said, question) for fact in facts) / len(facts)
    return _rating(10 * told, f"{told:.0%} of the collected facts are told.")


def _told(fact: Keys, said: list[Keys], question: dict[str, float]) -> float:
    if len(fact.weight) <= SHORT:
        return float(any(overlap(fact, sentence.weight) == 1 for sentence in said))
    # Long facts are told in other words, and the question's own words tell nothing: of the others a little
    # is shared by chance, and two fifths are as good as all.
    new = Keys({k: w for k, w in fact.weight.items() if k not in question}, fact.words, ())
    best = max((overlap(new, sentence.weight) for sentence in said), default=0.0)
    return min(1.0, max(0.0, (best - 0.1) / 0.3))


def helpfulness(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """Does the answer take up what the question names, and say something new about it, and only that?"""
    question, text = keys(_one(blocks, "question")), _one(blocks, "answer")
    said = [keys(sentence) for sentence in sentences(text) if asserts(sentence)]
    everything = sentences(text)
    if not said:
        return _rating(1.0 if everything else 0.0, "The answer asserts nothing.")
    # Saying a question's words back is no answer: a sentence must add something to them.
    telling = [view for view in said if view.weight.keys() - question.weight.keys()]
    taken = set().union(*(view.weight.keys() & question.weight.keys() for view in telling))
    expected = 1.0 if len(question.weight) <= LONG_QUESTION else REPEATED
    need = min(1.0, overlap(question, taken) / expected)
    strong = {stem for stem, weight in question.weight.items() if weight > 1} or set(question.weight)
    to_the_point = sum(_touches(view, question, strong) for view in telling) / len(everything)
    score = 10 * (0.7 * need + 0.3 * to_the_point)
    return _rating(
        score, f"It takes up {need:.0%} of what is asked; {to_the_point:.0%} of it is to the point."
    )


def _touches(view: Keys, question: Keys, strong: set[str]) -> bool:
    shared = view.weight.keys() & question.weight.keys()
    return bool(shared & strong) or (len(question.weight) > LONG_QUESTION and bool(shared))


def logicality(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """Does the answer contradict or repeat itself, or break off into something that is no language?"""
    text = _one(blocks, "answer")
    said = [keys(sentence) for sentence in sentences(text)]
    if not said:
        return _rating(0.0, "There is nothing to follow.")
    claims: dict[tuple[str, ...], set[str]] = {}
    for view in said:
        if 2 <= len(view.order) <= SHORT:
            claims.setdefault(view.order[:-1], set()).add(view.order[-1])
    clashes = sum(len(values) - 1 for values in claims.values())
    repeats = len(said) - len({view.order for view in said})
    broken = sum(len(view.order) < 2 for view in said) + sum(
        a == b for a, b in pairwise(re.findall(r"\w+", text.lower()))
    )
    score = 10 - 4 * clashes - 2 * repeats - 2 * broken
    return _rating(
        score, f"It holds {clashes} contradictions, {repeats} repetitions and {broken} broken places."
    )


def _rating(score: float, why: str) -> dict[str, Any]:
    return {"analysis": why, "score": math.floor(max(0.0, min(10.0, score)) + 0.5)}


def _one(blocks: dict[str, list[str]], tag: str) -> str:
    return blocks.get(tag, [""])[0]


KINDS: dict[str, Callable[[dict[str, list[str]]], dict[str, Any]]] = {
    "helpfulness": helpfulness,
    "logicality": logicality,
    "statements": statements,
    "support": support,
    "extract": extract,
    "completeness": completeness,
    "direct": direct.direct,
    **grading.KINDS,
    **synthesis.KINDS,
}
