"""One row judged: its candidates on four dimensions, everything independent at once.

Extracts, helpfulness, logicality and statements go out together; then verdicts and completeness ratings.
Chunks, index and extracts are made once for all candidates, and equal requests are one request.
"""

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from lr_ray.config import DIMENSIONS, Judge
from lr_ray.judge import answers, chunks, requests, retrieval
from lr_ray.judge.requests import Block
from lr_ray.judge.reward import faithfulness, reward, weighted
from lr_ray.llm.calls import Call, Unusable
from lr_ray.rows import Candidate, Extract, Judged, JudgedCandidate, Sampled, Statement, Usage

NO_STATEMENTS = "no factual statements"
NO_WEIGHT = "not judged: its weight is 0"

A = TypeVar("A", bound=BaseModel)
T = TypeVar("T")


class Asks(Protocol):
    """Where answers come from, as `lr_ray.llm.calls.Calls`."""

    usage: Usage
    first_call_at: float

    def ask(self, call: Call[A]) -> Awaitable[A]: ...


@dataclass(frozen=True)
class Score:
    """A dimension of one candidate: None because of `reason`. `statements` is faithfulness' evidence."""

    score: float | None
    reason: str = ""
    analysis: str = ""
    statements: tuple[Statement, ...] = ()


async def judge_row(
    row: Sampled, asks: Asks, settings: Judge, embed: retrieval.Embed | None = None
) -> Judged:
    """The row with scores, rewards and evidence of all its candidates.

    A dimension for which no attempt gave usable content is unscored. With `embed`, passages are found by
    the embeddings it gives; else by BM25.

    Raises:
        EndpointRefused, GaveUp: once everything else of the row has been asked, and so recorded.
    """
    judge = _Row(row, asks, settings)
    # Cutting and indexing a long context would hold up the calls of the other rows.
    await asyncio.to_thread(judge.prepare, embed)
    extracting = asyncio.ensure_future(judge.extract())
    judged = [judge.candidate(candidate, extracting) for candidate in row["candidates"]]
    candidates, (extracts, _) = await _both(_all(judged), extracting)
    return {
        "prompt_id": row["prompt_id"],
        "context": row["context"],
        "question": row["question"],
        "reference_answer": row["reference_answer"],
        "prompt": row["prompt"],
        "candidates": candidates,
        "extracts": extracts,
        "language": judge.language,
        "usage": asks.usage,
        "sampled_at": row["sampled_at"],
        "first_call_at": asks.first_call_at,
        "judged_at": time.time(),
    }


Extracts = tuple[list[Extract], str]  # and why some are missing, if some are


class _Row:
    """The calls over one context and question."""

    def __init__(self, row: Sampled, asks: Asks, settings: Judge) -> None:
        self._row, self._asks, self._settings = row, asks, settings
        self._question = Block("question", row["question"])
        self._weighted = weighted(settings.weights)
        self.language = requests.language(row["context"])

    def prepare(self, embed: retrieval.Embed | None) -> None:
        """Cut the context, and index it where faithfulness counts."""
        settings, context = self._settings, self._row["context"]
        measure = chunks.measure(settings.tokenizer)
        self._chunks = chunks.split(context, settings.extract_chunk_tokens, measure)
        if "faithfulness" in self._weighted:
            passages = chunks.split(context, settings.retrieval.chunk_tokens, measure)
            self._index = retrieval.Meanings(passages, embed) if embed else retrieval.Words(passages)

    async def extract(self) -> Extracts:
        """What each chunk says about the question, in document order."""
        if "completeness" not in self._weighted:
            return [], NO_WEIGHT
        asked = [
            self._ask(
                "extract", [Block("document", chunk["text"]), self._question], answers.Facts, None, number
            )
            for number, chunk in enumerate(self._chunks)
        ]
        extracts: list[Extract] = []
        reasons: list[str] = []
        for chunk, facts in zip(self._chunks, await _all(map(_usable, asked)), strict=True):
            if isinstance(facts, _Missing):
                reasons.append(f"an extract of the document is missing: {facts.reason}")
            else:
                extracts.append({"position": chunk["position"], "facts": facts.facts})
        return extracts, reasons[0] if reasons else ""

    async def candidate(self, candidate: Candidate, extracting: Awaitable[Extracts]) -> JudgedCandidate:
        """The candidate with its scores and their evidence."""
        answer = Block("answer", candidate["text"])
        number = candidate["index"]
        ways: dict[str, Coroutine[Any, Any, Score]] = {
            "helpfulness": self._rate("helpfulness", [self._question, answer], number),
            "logicality": self._rate("logicality", [self._question, answer], number),
            "faithfulness": self._faithfulness(answer, number),
            "completeness": self._completeness(answer, number, extracting),
        }
        for name in DIMENSIONS:
            if name not in self._weighted:
                ways[name].close()
                ways[name] = _unweighted()
        scored = dict(zip(ways, await _all(ways.values()), strict=True))
        scores: Any = {name: scored[name].score for name in DIMENSIONS}
        analyses: Any = {name: scored[name].analysis for name in DIMENSIONS if name != "faithfulness"}
        return {
            "index": number,
            "text": candidate["text"],
            "finish_reason": candidate["finish_reason"],
            "reward": reward(scores, self._settings.weights),
            "scores": scores,
            "unscored": [
                {"dimension": name, "reason": scored[name].reason}
                for name in DIMENSIONS
                if scores[name] is None
            ],
            "statements": list(scored["faithfulness"].statements),
            "analyses": analyses,
        }

    async def _rate(self, kind: str, blocks: list[Block], number: int) -> Score:
        rating = await _usable(self._ask(kind, blocks, answers.Rating, number))
        if isinstance(rating, _Missing):
            return Score(None, rating.reason)
        return Score(float(rating.score), analysis=rating.analysis)

    async def _completeness(self, answer: Block, number: int, extracting: Awaitable[Extracts]) -> Score:
        extracts, missing = await extracting
        if missing:
            return Score(None, missing)
        facts = [
            Block("extract", "\n".join(extract["facts"]), extract["position"])
            for extract in extracts
            if extract["facts"]
        ]
        return await self._rate("completeness", [self._question, *facts, answer], number)

    async def _faithfulness(self, answer: Block, number: int) -> Score:
        split = await _usable(self._ask("statements", [self._question, answer], answers.Statements, number))
        if isinstance(split, _Missing):
            return Score(None, split.reason)
        # A claim made twice is one claim, or repeating a true one would raise the mean.
        texts = list(dict.fromkeys(split.statements))
        if not texts:
            fixed = self._settings.no_statements_score
            return Score(fixed, "" if fixed is not None else NO_STATEMENTS)
        statements = await _all(self._verify(text, number, i) for i, text in enumerate(texts))
        verdicts = [statement["verdict"] for statement in statements if statement["verdict"]]
        if len(verdicts) < len(statements):
            reason = next(s["unscored"] for s in statements if s["unscored"])
            return Score(None, f"a statement has no verdict: {reason}", statements=tuple(statements))
        return Score(faithfulness(verdicts), statements=tuple(statements))

    async def _verify(self, text: str, number: int, index: int) -> Statement:
        statement: Statement = {
            "text": text,
            "verdict": None,
            "analysis": "",
            "unscored": None,
            "passages": [],
        }
        found = await _usable(self._index.top(text, self._settings.retrieval.top_k))
        if isinstance(found, _Missing):
            return {**statement, "unscored": found.reason}
        blocks = [*(Block("passage", passage["text"]) for passage in found), Block("statement", text)]
        verdict = await _usable(self._ask("support", blocks, answers.Verdict, number, index))
        if isinstance(verdict, _Missing):
            return {**statement, "passages": found, "unscored": verdict.reason}
        return {**statement, "passages": found, "verdict": verdict.verdict, "analysis": verdict.analysis}

    def _ask(
        self, kind: str, blocks: list[Block], answer: type[A], number: int | None, index: int = 0
    ) -> Awaitable[A]:
        messages = requests.messages(kind, self.language, blocks)
        return self._asks.ask(Call(kind, messages, answers.SCHEMAS[kind], answer, number, index))


async def _unweighted() -> Score:
    return Score(None, NO_WEIGHT)


@dataclass(frozen=True)
class _Missing:
    """In place of something that no attempt gave, because of `reason`."""

    reason: str


async def _usable(asked: Awaitable[T]) -> T | _Missing:
    try:
        return await asked
    except Unusable as error:
        return _Missing(str(error))


async def _all(asked: Iterable[Awaitable[T]]) -> list[T]:
    """All results; a failure is raised when the others are done, so that what they pay for is kept."""
    results = await asyncio.gather(*asked, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results  # pyrefly: ignore


async def _both(first: Coroutine[Any, Any, T], second: Awaitable[Extracts]) -> tuple[T, Extracts]:
    one, two = await asyncio.gather(first, second, return_exceptions=True)
    for result in (one, two):
        if isinstance(result, BaseException):
            raise result
    return one, two  # pyrefly: ignore
