"""Which documents, or stretches of them, make which context: drawn by a seed, and put together.

`plan` knows the documents by their lengths alone; a context's text is put together where it is worked on.
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lr_ray.config import Synthesis
from lr_ray.judge.chunks import Measure
from lr_ray.rows import Composed, Part
from lr_ray.synthesis.documents import SHORTEST

ASKED = 2  # documents that the questions on a context of several are about
SHARE = 4  # a document takes at most this part of such a context, so that none crowds out the others
HEADING = 8  # tokens kept free for a document's heading
SNAP = 600  # characters at most, within which a stretch looks for a place to begin or end well
HEADINGS = {"en": "[Document {}]", "zh": "[文档 {}]"}

_PARAGRAPH, _SENTENCE = re.compile(r"\n\n+"), re.compile(r"[.!?][\"')]*\s+|[。！？][”」』]*|\n+")


@dataclass(frozen=True)
class Known:
    """What planning knows of a document; `key` finds its text."""

    key: str
    digest: str
    language: str
    tokens: int


@dataclass(frozen=True)
class Piece:
    """At most `tokens` tokens of the document `key`; `at` of what is left out stands before it."""

    key: str
    asked: bool
    tokens: int
    at: float


@dataclass(frozen=True)
class Plan:
    """A context to make. `wished`: it was to be one document, and none is long enough."""

    prompt_id: str
    language: str
    target: int
    gaps: int
    pieces: list[Piece]
    wished: bool = False

    def item(self) -> dict[str, Any]:
        """As JSON, for `of`."""
        return asdict(self)

    @classmethod
    def of(cls, item: dict[str, Any]) -> "Plan":
        """The plan that `item` was made of."""
        return cls(**(item | {"pieces": [Piece(**piece) for piece in item["pieces"]]}))


def plans(documents: Iterable[Known], settings: Synthesis) -> list[Plan]:
    """The contexts: every document leads one before any leads a second, as far as lengths allow.

    The same documents (in any order, under any name) and settings give the same plans.
    """
    known = sorted(documents, key=lambda one: one.digest)
    return _Deck(known, settings).plans() if known else []


class _Deck:
    """The documents as they are dealt out."""

    def __init__(self, known: list[Known], settings: Synthesis) -> None:
        self._settings, self._random = settings, random.Random(f"contexts {settings.seed}")
        self._known = known
        self._waiting = self._random.sample(known, len(known))
        self._asked: set[str] = set()
        self._of: dict[str, list[Known]] = {}
        for one in known:
            self._of.setdefault(one.language, []).append(one)

    def plans(self) -> list[Plan]:
        settings = self._settings
        count = settings.contexts or len(self._known)
        lengths = [settings.lengths[i % len(settings.lengths)] for i in range(count)]
        several = [i < round(settings.multi_document * count) for i in range(count)]
        self._random.shuffle(lengths)
        self._random.shuffle(several)
        gaps = self._gaps(count)
        # Long ones first: only few documents are long enough, and those must not be gone by then.
        one, long = sorted(i for i in range(count) if not several[i]), self._by_length()
        mains: dict[int, Known] = {}
        for i in sorted(one, key=lambda i: -lengths[i]):
            if main := self._long(lengths[i], long):
                mains[i] = main
        return [
            self._plan(number, lengths[number], gaps[number], mains.get(number), several[number])
            for number in range(count)
        ]

    def _gaps(self, count: int) -> list[int]:
        """How many questions of each context are to have no answer."""
        each = 1 if self._settings.keep == "one" else self._settings.questions
        gaps = [0] * count
        for slot in self._random.sample(
            range(count * each), round(self._settings.unanswerable * count * each)
        ):
            gaps[slot // each] += 1
        return gaps

    def _by_length(self) -> Callable[[int], list[Known]]:
        """Those that nobody asked about, of at least so many tokens; asked for ever fewer tokens."""
        waiting = sorted(self._waiting, key=lambda one: one.tokens)
        pool: list[Known] = []

        def long(tokens: int) -> list[Known]:
            while waiting and waiting[-1].tokens >= tokens:
                pool.append(waiting.pop())
            return pool

        return long

    def _long(self, tokens: int, long: Callable[[int], list[Known]]) -> Known | None:
        pool = long(tokens)
        if pool:
            place = self._random.randrange(len(pool))
            pool[place], pool[-1] = pool[-1], pool[place]
            main = pool.pop()
        else:
            enough = [one for one in self._known if one.tokens >= tokens]
            main = self._random.choice(enough) if enough else None
        if main:
            self._asked.add(main.key)
        return main

    def _next(self) -> Known:
        """The next document that nobody asked about; when there is none, all over again."""
        while self._waiting:
            one = self._waiting.pop()
            if one.key not in self._asked:
                self._asked.add(one.key)
                return one
        self._waiting, self._asked = self._random.sample(self._known, len(self._known)), set()
        return self._next()

    def _plan(self, number: int, target: int, gaps: int, main: Known | None, several: bool) -> Plan:
        alone = main is not None
        main = main or self._next()
        rng = random.Random(f"{self._settings.seed} {number} {main.digest}")
        pieces = [Piece(main.key, True, target - HEADING, rng.random())]
        if not alone and len(self._of[main.language]) > 1:
            pieces = self._several(main, target, rng)
        wished = not alone and not several and len(pieces) > 1
        prompt_id = f"{main.digest[:12]}-{number}"
        return Plan(prompt_id, main.language, target, gaps, pieces, wished)

    def _several(self, main: Known, target: int, rng: random.Random) -> list[Piece]:
        """`main` and a second document to ask about, and others until the context is full."""
        of = self._of[main.language]
        others = rng.sample(of, min(len(of), target // SHORTEST + 1))
        pieces: list[Piece] = []
        left = target
        for one in [main, *(other for other in others if other is not main)]:
            tokens = min(one.tokens, target // SHARE, left - HEADING)
            if tokens < SHORTEST:
                break
            pieces.append(Piece(one.key, len(pieces) < ASKED, tokens, rng.random()))
            left -= tokens + HEADING
        rng.shuffle(pieces)
        return pieces


def compose(plan: Plan, text_of: Callable[[str], tuple[str, str]], measure: Measure) -> Composed:
    """The context of `plan`; `text_of` gives a document's name and text."""
    context, parts = "", list[Part]()
    heading = HEADINGS[plan.language] if len(plan.pieces) > 1 else ""
    spare = 0  # tokens that stretches left free because they end well
    for number, piece in enumerate(plan.pieces, 1):
        name, text = text_of(piece.key)
        if context:
            context += "\n\n"
        if heading:
            context += heading.format(number) + "\n\n"
        start = len(context)
        body = stretch(text, piece.tokens + spare, piece.at, measure)
        spare += piece.tokens - _tokens(body, measure)
        context += body
        parts.append({"name": name, "asked": piece.asked, "start": start, "end": len(context)})
    return {
        "prompt_id": plan.prompt_id,
        "language": plan.language,
        "target_tokens": plan.target,
        "tokens": _tokens(context, measure),
        "context": context,
        "parts": parts,
        "gaps": plan.gaps,
    }


def _tokens(text: str, measure: Measure) -> int:
    return -(-int(measure.upto(text)[-1]) // measure.unit)


def stretch(text: str, tokens: int, at: float, measure: Measure) -> str:
    """At most `tokens` tokens of `text`, from a paragraph's or sentence's beginning to a sentence's end.

    `at` of what is left out, 0 to 1, stands before it.
    """
    upto, most = measure.upto(text), tokens * measure.unit
    if upto[-1] <= most:
        return text
    window = min(SNAP, tokens // 2)
    start = int(np.searchsorted(upto, at * (upto[-1] - most)))
    if start:
        start = _first(text, start, min(start + window, len(text)))
    end = max(start + 1, int(np.searchsorted(upto, upto[start] + most, side="right")) - 1)
    if end < len(text):
        end = _last(text, max(start + 1, end - window), end)
    return text[start:end].strip()


def _first(text: str, start: int, end: int) -> int:
    for boundary in (_PARAGRAPH, _SENTENCE):
        if found := boundary.search(text, start, end):
            return found.end()
    return start


def _last(text: str, start: int, end: int) -> int:
    for boundary in (_PARAGRAPH, _SENTENCE):
        if found := [match.end() for match in boundary.finditer(text, start, end)]:
            return found[-1]
    return end
