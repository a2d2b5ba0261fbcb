"""One context: questions written about it, and each one checked until enough are kept.

A writer sees the documents that are asked about. A question is then asked without the context (known
anyway?) and with all of it (is there an answer, and the writer's?); the answer given with the context is
the one that is kept. What falls through a check is kept with its reason, and so is what was not needed.
"""

import random
from collections.abc import Awaitable
from typing import Protocol, TypeVar

from pydantic import BaseModel

from lr_ray.config import Synthesis
from lr_ray.judge.together import everything
from lr_ray.llm.calls import Call, Unusable
from lr_ray.llm.messages import Block, compose
from lr_ray.rows import Asked, Composed, Synthesized, Usage
from lr_ray.synthesis import answers
from lr_ray.synthesis.filters import alike, triples

PACKAGE = "lr_ray.synthesis"
NO_ANSWER = "unanswerable"  # the kind of questions that are to have none

KEPT = "kept"
SPARE = "spare"
"""Not looked at: another question of the context was kept."""
DROPPED = {
    "duplicate": "nearly the same as another question",
    "context_free": "answered as well without the context",
    "unanswerable": "without an answer in the context",
    "disputed": "answered otherwise by who has the whole context",
    "answerable": "to have no answer, but has one",
    "unchecked": "a check has no result",
}
"""Outcomes of questions that are not kept, in words."""

A = TypeVar("A", bound=BaseModel)


class Asks(Protocol):
    """Where answers come from, as `lr_ray.llm.calls.Calls`."""

    usage: Usage

    def ask(self, call: Call[A]) -> Awaitable[A]: ...


async def synthesize(row: Composed, asks: Asks, settings: Synthesis, turn: int = 0) -> Synthesized:
    """The context with its questions and what became of each; rows of a smaller `turn` go first.

    Raises:
        EndpointRefused, GaveUp: see `lr_ray.llm.client`.
        Stopped: the run stops early.
    """
    context = _Context(row, asks, settings, turn)
    questions, unwritten = await context.write()
    _without_duplicates(questions, settings.duplicate)
    await context.check(questions)
    return {**row, "questions": questions, "unwritten": unwritten, "usage": asks.usage}


def _without_duplicates(questions: list[Asked], share: float) -> None:
    seen: list[frozenset[tuple[str, ...]]] = []
    for one in questions:
        found = triples(one["question"])
        if any(alike(found, other) >= share for other in seen):
            one["outcome"] = "duplicate"
        else:
            seen.append(found)


class _Context:
    """The calls over one context."""

    def __init__(self, row: Composed, asks: Asks, settings: Synthesis, turn: int) -> None:
        self._row, self._asks, self._settings, self._turn = row, asks, settings, turn
        self._random = random.Random(f"{settings.seed} {row['prompt_id']}")
        text = row["context"]
        asked = [part for part in row["parts"] if part["asked"]]
        self._asked = [Block("document", text[part["start"] : part["end"]]) for part in asked]
        self._whole = Block("document", text)

    async def write(self) -> tuple[list[Asked], str | None]:
        """The questions, not looked at yet; and why some were not written, if so."""
        count, gaps = self._settings.questions, self._row["gaps"]
        if self._settings.keep == "one":
            gaps = count if gaps else 0
        kinds = self._kinds(count - gaps)
        tasks = [self._written("questions", kinds), self._written("gaps", [NO_ANSWER] * gaps)]
        written = await everything(tasks)
        questions = [one for found, _ in written for one in found]
        for number, one in enumerate(questions):
            one["number"] = number
        return questions, next((reason for _, reason in written if reason), None)

    def _kinds(self, count: int) -> list[str]:
        """`count` kinds in turn, from one at random."""
        kinds = self._settings.kinds
        first = self._random.randrange(len(kinds))
        return [kinds[(first + i) % len(kinds)] for i in range(count)]

    async def _written(self, call: str, kinds: list[str]) -> tuple[list[Asked], str | None]:
        if not kinds:
            return [], None
        wanted = Block("wanted", "\n".join(f"{i}. {kind}" for i, kind in enumerate(kinds, 1)))
        try:
            found = await self._ask(call, [*self._asked, wanted], answers.Questions.of(len(kinds)))
        except Unusable as error:
            return [], f"{call}: {error}"
        return [_asked(kind, one) for kind, one in zip(kinds, found.questions, strict=True)], None

    async def check(self, questions: list[Asked]) -> None:
        """Say of each question what becomes of it."""
        left = [one for one in questions if one["outcome"] == SPARE]
        self._random.shuffle(left)
        if self._settings.keep == "one":
            for one in left:
                if await self._passes(one):
                    return
        elif left:
            # The first alone: once it is answered, the context is in the prefix cache for the others.
            await self._passes(left[0])
            await everything(map(self._passes, left[1:]))

    async def _passes(self, one: Asked) -> bool:
        try:
            one["outcome"] = await self._outcome(one)
        except Unusable as error:
            one["outcome"], one["reason"] = "unchecked", str(error)
        return one["outcome"] == KEPT

    async def _outcome(self, one: Asked) -> str:
        question, index = Block("question", one["question"]), one["number"]
        if one["answerable"] and self._settings.closed_book:
            unaided = await self._ask("unaided", [question], answers.Unaided, index)
            if unaided.known and unaided.answer.strip() and await self._same(one, unaided.answer):
                return "context_free"
        reading = await self._ask("reading", [self._whole, question], answers.Reading, index)
        one["answer"] = reading.answer
        if not one["answerable"]:
            return "answerable" if reading.answerable else KEPT
        if not reading.answerable:
            return "unanswerable"
        return KEPT if await self._same(one, reading.answer) else "disputed"

    async def _same(self, one: Asked, answer: str) -> bool:
        blocks = [
            Block("question", one["question"]),
            Block("reference", one["reference"]),
            Block("answer", answer),
        ]
        return (await self._ask("same", blocks, answers.Agreement, one["number"])).same == "yes"

    async def _ask(self, kind: str, blocks: list[Block], answer: type[A], index: int = 0) -> A:
        messages = compose(PACKAGE, kind, self._row["language"], blocks)
        call = Call(kind, messages, answers.schema(answer), answer, index=index, order=(self._turn,))
        return await self._asks.ask(call)


def _asked(kind: str, one: answers.Question) -> Asked:
    return {
        "number": 0,
        "kind": kind,
        "question": one.question,
        "reference": one.answer,
        "answerable": kind != NO_ANSWER,
        "answer": None,
        "outcome": SPARE,
        "reason": None,
    }
