"""The rows between stages, as typed dicts; `schemas` has them as arrow knows them.

One row is one prompt from end to end; its candidates are nested in it. A score is ``None`` with a
reason in ``unscored``, never a made-up number.
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

import orjson


class Message(TypedDict):
    role: str
    content: str


class Prompt(TypedDict):
    """A prompt as read: `prompt` is the conversation the policy sees, ending with a user turn."""

    prompt_id: str
    context: str
    question: str
    reference_answer: str | None
    prompt: list[Message]


class Candidate(TypedDict):
    index: int
    text: str
    finish_reason: str | None


class Sampled(Prompt):
    """`prompt_tokens` and `cached_tokens` sum over the engine's requests; -1 where sampled elsewhere.

    `sampled_at` is in seconds since the epoch.
    """

    candidates: list[Candidate]
    prompt_tokens: int
    cached_tokens: int
    truncated: bool
    sampled_at: float


class Passage(TypedDict):
    """A slice of the context; `position` is its start as a share of the document, 0 to 1."""

    position: float
    text: str


class Statement(TypedDict):
    """`verdict` is full, partial or none; None with the reason in `unscored` when it has none."""

    text: str
    verdict: str | None
    analysis: str
    unscored: str | None
    passages: list[Passage]


class Extract(TypedDict):
    """What one chunk says about the question; `facts` is empty when it says nothing relevant."""

    position: float
    facts: list[str]


class Scores(TypedDict):
    helpfulness: float | None
    logicality: float | None
    faithfulness: float | None
    completeness: float | None


class Unscored(TypedDict):
    dimension: str
    reason: str


class Analyses(TypedDict):
    helpfulness: str
    logicality: str
    completeness: str


class Repeat(TypedDict):
    """The samples of a rating that was repeated, the first judging's before the others; `missing` of them
    were unusable. `variance` is the sample variance (n - 1); None of a single sample."""

    dimension: str
    scores: list[float]
    missing: int
    variance: float | None


class JudgedCandidate(Candidate):
    """`reward` is the weighted mean of `scores`; None while a dimension with weight is unscored.

    `repeats` holds the ratings that were repeated because best and worst of the prompt were close.
    """

    reward: float | None
    scores: Scores
    unscored: list[Unscored]
    statements: list[Statement]
    analyses: Analyses
    repeats: list[Repeat]


class PreferredCall(TypedDict):
    """A direct pairwise call on the answers of these indexes; `winner` is first, second or tie, or None with
    the reason in `unscored`."""

    first: int
    second: int
    winner: str | None
    analysis: str
    unscored: str | None


class Preferred(TypedDict):
    """The direct pairwise calls on the answers to one prompt."""

    prompt_id: str
    calls: list[PreferredCall]


class RewardedCandidate(TypedDict):
    """`reward` is on a scale of its maker's own; None with the reason in `unscored`."""

    index: int
    reward: float | None
    unscored: str | None


class Rewarded(TypedDict):
    """What another reward than LongReward's says of a judged row's candidates."""

    prompt_id: str
    candidates: list[RewardedCandidate]


class Usage(TypedDict):
    """What judging the row took: answers used, of which `reused` came from the ledger, and tokens paid."""

    calls: int
    reused: int
    retries: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


def no_usage() -> Usage:
    """The usage of a row of which nothing has been asked."""
    return {
        "calls": 0,
        "reused": 0,
        "retries": 0,
        "prompt_tokens": 0,
        "cached_tokens": 0,
        "completion_tokens": 0,
    }


class Judged(Prompt):
    candidates: list[JudgedCandidate]
    extracts: list[Extract]
    language: str
    usage: Usage
    sampled_at: float
    first_call_at: float
    judged_at: float


class Document(TypedDict):
    """A document as read; `dropped` says why it has no text. `digest` is of the text without white space."""

    prompt_id: str
    name: str
    digest: str
    language: str
    tokens: int
    text: str
    dropped: str | None


class Part(TypedDict):
    """A document, or a stretch of it, in a context: its characters `start` to `end` there.

    `asked`: the questions are about it; the others are there to be told from it.
    """

    name: str
    asked: bool
    start: int
    end: int


class Composed(TypedDict):
    """A context to write questions about; `gaps` of them are to have no answer in it."""

    prompt_id: str
    language: str
    target_tokens: int
    tokens: int
    context: str
    parts: list[Part]
    gaps: int


class Asked(TypedDict):
    """A question written about a context, and what became of it.

    `reference` is the writer's short answer (of a question without answer: what is missing), `answer` the
    one given with the context, None where none was asked for; `reason` is set where a check has no result.
    """

    number: int
    kind: str
    question: str
    reference: str
    answerable: bool
    answer: str | None
    outcome: str
    reason: str | None


class Synthesized(Composed):
    """A context with its questions; `unwritten` says why it has fewer than asked for."""

    questions: list[Asked]
    unwritten: str | None
    usage: Usage


Kind = Literal[
    "pointer",
    "prompt",
    "sampled",
    "judged",
    "failed",
    "left",
    "document",
    "context",
    "synthesized",
    "compared",
    "graded",
    "rewarded",
    "preferred",
]
"""Of a row in flow, mostly the folder it is kept in. A row is "left" when the run stopped early before the
row was done."""


class Packed(TypedDict):
    """What flows through Ray Data: a row of the named kind as JSON, so that no arrow schema is inferred
    from nested lists that happen to be empty. Build it with `pack`, open it with `unpack`."""

    prompt_id: str
    kind: Kind
    row: bytes


def pack(kind: Kind, row: Mapping[str, Any]) -> Packed:
    """The envelope of `row`, which must be JSON-able."""
    return {"prompt_id": row["prompt_id"], "kind": kind, "row": orjson.dumps(row)}


def unpack(packed: Packed) -> dict[str, Any]:
    """The row in the envelope."""
    return orjson.loads(packed["row"])


Load = Callable[[dict[str, Any]], Packed]
"""What a row of kind "pointer" says → the row it points to."""


async def opened(packed: Packed, load: Load | None) -> Packed:
    """The row that a pointer points to, loaded in a thread; any other row is what it is."""
    if packed["kind"] != "pointer":
        return packed
    assert load is not None, "nobody said how a pointer is loaded"
    return await asyncio.to_thread(load, unpack(packed))


def failed(prompt_id: str, stage: str, reason: str) -> Packed:
    """The envelope of a row that failed for good, because `reason`."""
    return pack("failed", {"prompt_id": prompt_id, "stage": stage, "reason": reason})


def left(prompt_id: str, reason: str) -> Packed:
    """The envelope of a row that was not done when the run stopped early, because `reason`."""
    return pack("left", {"prompt_id": prompt_id, "reason": reason})


class Pair(TypedDict):
    """TRL's conversational preference format plus what LongReward knows about both answers."""

    prompt_id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    score_chosen: float
    score_rejected: float
    scores_chosen: Scores
    scores_rejected: Scores
    index_chosen: int
    index_rejected: int
