"""What each kind of call must answer, bounded as the judge's answers are (`lr_ray.judge.answers`)."""

from functools import cache
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

ANALYSIS_CHARS = 2000
QUESTION_CHARS = 1000
REFERENCE_CHARS = 1000
ANSWER_CHARS = 8000


def _text(longest: int) -> Any:
    return StringConstraints(strip_whitespace=True, min_length=1, max_length=longest - 1)


Analysis = Annotated[str, StringConstraints(max_length=ANALYSIS_CHARS)]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Question(_Answer):
    """A question with its answer in short; of one without answer, what it asks for that is not there."""

    number: int
    question: Annotated[str, _text(QUESTION_CHARS)]
    answer: Annotated[str, _text(REFERENCE_CHARS)]


class Questions(_Answer):
    """`count` questions, in order; see `of`."""

    count: ClassVar[int] = 0
    questions: list[Question]

    @staticmethod
    @cache
    def of(count: int) -> "type[Questions]":
        """The answer to a call for `count` questions."""
        return cast(type[Questions], type(f"Questions{count}", (Questions,), {"count": count}))

    @field_validator("questions")
    @classmethod
    def _complete(cls, found: list[Question]) -> list[Question]:
        if [one.number for one in found] != list(range(1, cls.count + 1)):
            raise ValueError(f"not {cls.count} questions, in order")
        return found


class Unaided(_Answer):
    """An answer without the context; empty where it is not known."""

    known: bool
    answer: str = Field(max_length=ANSWER_CHARS - 1)


class Reading(_Answer):
    """An answer with the context, after the places that bear on it; where it has none, what says so."""

    analysis: Analysis
    answerable: bool
    answer: Annotated[str, _text(ANSWER_CHARS)]


class Agreement(_Answer):
    """Whether two answers to a question say the same where it matters."""

    analysis: Analysis
    same: Literal["yes", "no"]


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _string(longest: int) -> dict[str, Any]:
    return {"type": "string", "maxLength": longest}


SCHEMAS: dict[type[BaseModel], dict[str, Any]] = {
    Unaided: _object(known={"type": "boolean"}, answer=_string(ANSWER_CHARS)),
    Reading: _object(
        analysis=_string(ANALYSIS_CHARS), answerable={"type": "boolean"}, answer=_string(ANSWER_CHARS)
    ),
    Agreement: _object(analysis=_string(ANALYSIS_CHARS), same={"type": "string", "enum": ["yes", "no"]}),
}


def schema(answer: type[BaseModel]) -> dict[str, Any]:
    """The schema of a call whose answer is `answer`."""
    if not issubclass(answer, Questions):
        return SCHEMAS[answer]
    one = _object(
        number={"type": "integer", "minimum": 1, "maximum": answer.count},
        question=_string(QUESTION_CHARS),
        answer=_string(REFERENCE_CHARS),
    )
    count = answer.count
    return _object(questions={"type": "array", "items": one, "minItems": count, "maxItems": count})
