"""What each kind of call must answer: the schema an endpoint enforces, and our own strict check.

Every text and list is bounded, since an endpoint that enforces a schema writes until a bound stops it.
Our check allows one less than the schema does: an answer that reaches a bound may have been cut there,
and is refused rather than taken for whole.
"""

from functools import cache
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

ANALYSIS_CHARS = 4000
TEXT_CHARS = 2000  # of a statement or a fact
ITEMS = 256  # statements of an answer, facts of a chunk

Analysis = Annotated[str, StringConstraints(max_length=ANALYSIS_CHARS)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=TEXT_CHARS - 1)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Rating(_Answer):
    """A score of 0 to 10, after its analysis."""

    analysis: Analysis
    score: int = Field(ge=0, le=10)


class Statements(_Answer):
    """The factual statements of an answer."""

    statements: list[Text] = Field(max_length=ITEMS - 1)


class Verdict(_Answer):
    """How far passages support a statement, after the analysis."""

    analysis: Analysis
    verdict: Literal["full", "partial", "none"]


class Numbered(Verdict):
    """The verdict on the statement of that number."""

    statement: int


class Verdicts(_Answer):
    """The verdicts on `count` statements, in order; see `of`."""

    count: ClassVar[int] = 0
    verdicts: list[Numbered]

    @staticmethod
    @cache
    def of(count: int) -> "type[Verdicts]":
        """The answer to a call with `count` statements."""
        return cast(type[Verdicts], type(f"Verdicts{count}", (Verdicts,), {"count": count}))

    @field_validator("verdicts")
    @classmethod
    def _complete(cls, found: list[Numbered]) -> list[Numbered]:
        if [verdict.statement for verdict in found] != list(range(1, cls.count + 1)):
            raise ValueError(f"not one verdict for each of {cls.count} statements, in order")
        return found


class Facts(_Answer):
    """What a chunk says about the question; empty when it says nothing."""

    facts: list[Text] = Field(max_length=ITEMS - 1)


class Preference(_Answer):
    """Which of two answers is better, after the analysis."""

    analysis: Analysis
    winner: Literal["first", "second", "tie"]


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_ANALYSIS = {"type": "string", "maxLength": ANALYSIS_CHARS}
_TEXTS = {"type": "array", "items": {"type": "string", "maxLength": TEXT_CHARS}, "maxItems": ITEMS}
_RATING = _object(analysis=_ANALYSIS, score={"type": "integer", "minimum": 0, "maximum": 10})

_VERDICT = {"analysis": _ANALYSIS, "verdict": {"type": "string", "enum": ["full", "partial", "none"]}}

SCHEMAS: dict[str, dict[str, Any]] = {
    "helpfulness": _RATING,
    "logicality": _RATING,
    "statements": _object(statements=_TEXTS),
    "support": _object(**_VERDICT),
    "extract": _object(facts=_TEXTS),
    "completeness": _RATING,
}


PREFERENCE = _object(analysis=_ANALYSIS, winner={"type": "string", "enum": ["first", "second", "tie"]})
"""Of a direct pairwise call, which is no part of judging a row."""


def schema(kind: str, answer: type[BaseModel]) -> dict[str, Any]:
    """The schema of a call of `kind` whose answer is `answer`."""
    return _several(answer.count) if issubclass(answer, Verdicts) else SCHEMAS[kind]


def _several(count: int) -> dict[str, Any]:
    numbered = _object(statement={"type": "integer", "minimum": 1, "maximum": count}, **_VERDICT)
    return _object(verdicts={"type": "array", "items": numbered, "minItems": count, "maxItems": count})
