"""What each kind of call must answer: the schema an endpoint enforces, and our own strict check.

Every text and list is bounded, since an endpoint that enforces a schema writes until a bound stops it.
Our check allows one less than the schema does: an answer that reaches a bound may have been cut there,
and is refused rather than taken for whole.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

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


class Facts(_Answer):
    """What a chunk says about the question; empty when it says nothing."""

    facts: list[Text] = Field(max_length=ITEMS - 1)


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

SCHEMAS: dict[str, dict[str, Any]] = {
    "helpfulness": _RATING,
    "logicality": _RATING,
    "statements": _object(statements=_TEXTS),
    "support": _object(analysis=_ANALYSIS, verdict={"type": "string", "enum": ["full", "partial", "none"]}),
    "extract": _object(facts=_TEXTS),
    "completeness": _RATING,
}
