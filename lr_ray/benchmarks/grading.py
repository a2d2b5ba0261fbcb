"""Answers graded by a judge: messages, scales, and the actor that asks.

Scales are the authors': LongBench-Chat 1-10, question answering 1-3, summaries 1-5, and a turn of a
conversation 1-10. Where there are several references the best grade counts. A grade that no attempt gave is
missing with its reason; it is never made up.
"""

from collections.abc import Awaitable
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from lr_ray import rows
from lr_ray.benchmarks import wins
from lr_ray.benchmarks.case import Case
from lr_ray.benchmarks.grades import Given, given, graded
from lr_ray.judge.answers import ANALYSIS_CHARS, Analysis
from lr_ray.judge.together import Missing, everything, usable
from lr_ray.llm.asker import Asker
from lr_ray.llm.calls import Call, Calls
from lr_ray.llm.messages import Block, compose, language

PACKAGE = "lr_ray.benchmarks"


class _Grade(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    analysis: Analysis
    score: int


class _Ten(_Grade):
    score: int = Field(ge=1, le=10)


class _Five(_Grade):
    score: int = Field(ge=1, le=5)


class _Three(_Grade):
    score: int = Field(ge=1, le=3)


class Scale(NamedTuple):
    """What a grade is called, and how a score becomes a value of the results."""

    metric: str
    answer: type[_Grade]
    highest: int
    least: float
    step: float

    def value(self, score: int) -> float:
        """The value of a score."""
        return self.least + self.step * (score - 1)


SCALES = {
    # Reported as the sum over 50 cases divided by 5: a mean of 1 to 10 becomes 10 to 100.
    "chat": Scale("score", _Ten, 10, 10.0, 10.0),
    "answer": Scale("score", _Three, 3, 0.0, 50.0),
    "summary": Scale("score", _Five, 5, 0.0, 25.0),
    "turn": Scale("score, 1 to 10", _Ten, 10, 1.0, 1.0),
}


def references(case: Case) -> list[str | None]:
    """What an answer is held against, each in a call of its own; one call without any where there is none.

    A turn has one reference of its own; the others are those of later turns, and an empty one is none.
    """
    one = case.grade in ("turn", "chat")
    found = case.references[:1] if one else case.references
    return [text for text in found if text.strip()] or [None]


def messages(case: Case, lang: str, answer: str, reference: str | None) -> list[rows.Message]:
    """The request for a grade of `answer`; what all answers to the case share comes first."""
    blocks = [Block("earlier", text) for text in case.history]
    blocks.append(Block("question", case.question))
    if reference is not None:
        blocks.append(Block("reference", reference))
    for example in case.examples:
        blocks += [Block("example", example["answer"]), Block("score", example["score"])]
    return compose(PACKAGE, case.grade, lang, [*blocks, Block("answer", answer)])


def schema(scale: Scale) -> dict[str, Any]:
    """The schema of a grade on this scale."""
    return {
        "type": "object",
        "properties": {
            "analysis": {"type": "string", "maxLength": ANALYSIS_CHARS},
            "score": {"type": "integer", "minimum": 1, "maximum": scale.highest},
        },
        "required": ["analysis", "score"],
        "additionalProperties": False,
    }


class Grader(Asker):
    """Sampled rows that carry their `case` → graded rows."""

    takes: ClassVar[rows.Kind] = "sampled"
    makes: ClassVar[rows.Kind] = "graded"
    stage: ClassVar[str] = "grade"

    async def work(self, row: Any, calls: Calls) -> Any:
        """The row's answers with their grades."""
        case = Case(**row["case"])
        lang = language(row["context"])
        asked: list[Awaitable[list[Given]]] = [
            self._grade(case, lang, candidate["text"], candidate["index"], calls)
            for candidate in row["candidates"]
        ]
        if case.against is not None:
            asked += [
                wins.grades(calls, case.question, one["text"], case.against, lang=lang, index=one["index"])
                for one in row["candidates"]
            ]
        grades = [grade for several in await everything(asked) for grade in several]
        missing = sum(grade["value"] is None for grade in grades)
        self.governor.account.row(grades[0]["unscored"] or "" if missing == len(grades) else "")
        self.tally.count("unscored", missing)
        return graded(case, grades, calls.usage)

    async def _grade(self, case: Case, lang: str, answer: str, number: int, calls: Calls) -> list[Given]:
        scale = SCALES[case.grade]

        def ask(index: int, reference: str | None) -> Awaitable[_Grade]:
            asked = messages(case, lang, answer, reference)
            return calls.ask(Call(KINDS[case.grade], asked, schema(scale), scale.answer, number, index))

        found = await everything(
            usable(ask(index, reference)) for index, reference in enumerate(references(case))
        )
        best = best_of(found, scale.highest)
        if isinstance(best, Missing):
            return [given(number, scale.metric, best)]
        return [given(number, scale.metric, scale.value(best.score), analysis=best.analysis)]


def best_of(found: list[_Grade | Missing], highest: int) -> _Grade | Missing:
    """The best grade over references. With one missing it is known only where it is the highest there is."""
    grades = [grade for grade in found if not isinstance(grade, Missing)]
    best = max(grades, key=lambda grade: grade.score, default=None)
    missing = next((grade for grade in found if isinstance(grade, Missing)), None)
    if best is not None and (missing is None or best.score == highest):
        return best
    assert missing is not None
    return missing


KINDS = {grade: f"grade_{grade}" for grade in SCALES}
"""The name of each grade's calls and schemas."""
