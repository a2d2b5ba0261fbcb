"""The rows of `rows` that are kept in the run directory, as arrow schemas."""

import pyarrow as pa

from lr_ray.rows import Analyses, Scores, Usage

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_PROMPT = [
    ("prompt_id", pa.string()),
    ("context", pa.string()),
    ("question", pa.string()),
    ("reference_answer", pa.string()),
    ("prompt", _MESSAGES),
]
_CANDIDATE = [("index", pa.int32()), ("text", pa.string()), ("finish_reason", pa.string())]
_SCORES = pa.struct([(name, pa.float64()) for name in Scores.__annotations__])
_PASSAGES = pa.list_(pa.struct([("position", pa.float64()), ("text", pa.string())]))
_STATEMENT = pa.struct(
    [
        ("text", pa.string()),
        ("verdict", pa.string()),
        ("analysis", pa.string()),
        ("unscored", pa.string()),
        ("passages", _PASSAGES),
    ]
)
_REPEAT = pa.struct(
    [
        ("dimension", pa.string()),
        ("scores", pa.list_(pa.float64())),
        ("missing", pa.int32()),
        ("variance", pa.float64()),
    ]
)
_JUDGED_CANDIDATE = pa.struct(
    [
        *_CANDIDATE,
        ("reward", pa.float64()),
        ("scores", _SCORES),
        ("unscored", pa.list_(pa.struct([("dimension", pa.string()), ("reason", pa.string())]))),
        ("statements", pa.list_(_STATEMENT)),
        ("analyses", pa.struct([(name, pa.string()) for name in Analyses.__annotations__])),
        ("repeats", pa.list_(_REPEAT)),
    ]
)

SAMPLED = pa.schema(
    [
        *_PROMPT,
        ("candidates", pa.list_(pa.struct(_CANDIDATE))),
        ("prompt_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("truncated", pa.bool_()),
        ("sampled_at", pa.float64()),
    ]
)
JUDGED = pa.schema(
    [
        *_PROMPT,
        ("candidates", pa.list_(_JUDGED_CANDIDATE)),
        ("extracts", pa.list_(pa.struct([("position", pa.float64()), ("facts", pa.list_(pa.string()))]))),
        ("language", pa.string()),
        ("usage", pa.struct([(name, pa.int64()) for name in Usage.__annotations__])),
        ("sampled_at", pa.float64()),
        ("first_call_at", pa.float64()),
        ("judged_at", pa.float64()),
    ]
)
FAILED = pa.schema([("prompt_id", pa.string()), ("stage", pa.string()), ("reason", pa.string())])
_REWARDED_CANDIDATE = pa.struct([("index", pa.int32()), ("reward", pa.float64()), ("unscored", pa.string())])
REWARDED = pa.schema([("prompt_id", pa.string()), ("candidates", pa.list_(_REWARDED_CANDIDATE))])
_GRADE = pa.struct(
    [
        ("index", pa.int32()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("unscored", pa.string()),
        ("weight", pa.float64()),
        ("length", pa.float64()),
        ("analysis", pa.string()),
    ]
)
GRADED = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("benchmark", pa.string()),
        ("unit", pa.string()),
        ("groups", pa.list_(pa.string())),
        ("grades", pa.list_(_GRADE)),
        ("usage", pa.struct([(name, pa.int64()) for name in Usage.__annotations__])),
        ("graded_at", pa.float64()),
    ]
)
_PREFERRED_CALL = pa.struct(
    [
        *((name, pa.int32()) for name in ("first", "second")),
        *((name, pa.string()) for name in ("winner", "analysis", "unscored")),
    ]
)
PREFERRED = pa.schema([("prompt_id", pa.string()), ("calls", pa.list_(_PREFERRED_CALL))])
PAIRS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", _MESSAGES),
        ("chosen", _MESSAGES),
        ("rejected", _MESSAGES),
        ("score_chosen", pa.float64()),
        ("score_rejected", pa.float64()),
        ("scores_chosen", _SCORES),
        ("scores_rejected", _SCORES),
        ("index_chosen", pa.int32()),
        ("index_rejected", pa.int32()),
    ]
)

DOCUMENT = pa.schema(
    [
        *((name, pa.string()) for name in ("prompt_id", "name", "digest", "language", "text", "dropped")),
        ("tokens", pa.int64()),
    ]
)
_PART = [("name", pa.string()), ("asked", pa.bool_()), ("start", pa.int64()), ("end", pa.int64())]
_ASKED = pa.struct(
    [
        ("number", pa.int32()),
        *((name, pa.string()) for name in ("kind", "question", "reference")),
        ("answerable", pa.bool_()),
        *((name, pa.string()) for name in ("answer", "outcome", "reason")),
    ]
)
SYNTHESIZED = pa.schema(
    [
        *((name, pa.string()) for name in ("prompt_id", "language", "context")),
        *((name, pa.int64()) for name in ("target_tokens", "tokens", "gaps")),
        ("parts", pa.list_(pa.struct(_PART))),
        ("questions", pa.list_(_ASKED)),
        ("unwritten", pa.string()),
        ("usage", pa.struct([(name, pa.int64()) for name in Usage.__annotations__])),
    ]
)

SCHEMAS = {
    "sampled": SAMPLED,
    "judged": JUDGED,
    "rewarded": REWARDED,
    "graded": GRADED,
    "failed": FAILED,
    "preferred": PREFERRED,
    "document": DOCUMENT,
    "synthesized": SYNTHESIZED,
}
"""Of the kinds of rows that are kept, each in the folder of its name."""
