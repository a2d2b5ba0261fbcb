"""One row judged: its candidates on four dimensions, everything independent at once.

Extracts, helpfulness, logicality and statements go out together; then verdicts and completeness ratings.
Chunks, index and extracts are made once for all candidates, and equal requests are one request.
"""

import asyncio
import functools
import time
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel

from lr_ray.config import DIMENSIONS, Judge
from lr_ray.judge import answers, chunks, repeats, requests, retrieval, support
from lr_ray.judge.order import Turn, Turns
from lr_ray.judge.requests import Block
from lr_ray.judge.reward import faithfulness, reward, weighted
from lr_ray.judge.together import Missing, both, everything, usable
from lr_ray.llm.calls import Call
from lr_ray.rows import Candidate, Extract, Judged, JudgedCandidate, Passage, Sampled, Statement, Usage

NO_STATEMENTS = "no factual statements"
NO_WEIGHT = "not judged: its weight is 0"

A = TypeVar("A", bound=BaseModel)


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
    row: Sampled,
    asks: Asks,
    settings: Judge,
    embed: retrieval.Embed | None = None,
    turns: Turns | None = None,
) -> Judged:
    """The row with scores, rewards and evidence of all its candidates.

    A dimension for which no attempt gave usable content is unscored. With `embed`, passages are found by
    the embeddings it gives; else by BM25. `turns` orders its calls among those of other rows.

    Raises:
        EndpointRefused, GaveUp: once everything else of the row has been asked, and so recorded.
    """
    with (turns or Turns()).row(row["context"]) as turn:
        judge = _Row(row, asks, settings, turn)
        # Cutting and indexing a long context would hold up the calls of the other rows.
        await asyncio.to_thread(judge.prepare, embed)
        extracting = asyncio.ensure_future(judge.extract())
        judged = [judge.candidate(candidate, extracting) for candidate in row["candidates"]]
        candidates, (extracts, _) = await both(everything(judged), extracting)
        candidates = await repeats.settle(candidates, functools.partial(judge.again, extracts), settings)
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

    def __init__(self, row: Sampled, asks: Asks, settings: Judge, turn: Turn) -> None:
        self._row, self._asks, self._settings, self._turn = row, asks, settings, turn
        self._question = Block("question", row["question"])
        self._weighted = weighted(settings.weights)
        self.language = requests.language(row["context"])

    def prepare(self, embed: retrieval.Embed | None) -> None:
        """Cut the context, and index it where faithfulness counts."""
        settings, context = self._settings, self._row["context"]
        measure = chunks.measure(settings.tokenizer)
        counted = measure.upto(context)  # once: a tokenizer takes its time
        measure = measure._replace(upto=lambda _: counted)
        self._chunks = chunks.split(context, settings.extract_chunk_tokens, measure)
        if "faithfulness" in self._weighted:
            passages = chunks.split(context, settings.retrieval.chunk_tokens, measure)
            self._index = retrieval.Meanings(passages, embed) if embed else retrieval.Words(passages)

    async def extract(self) -> Extracts:
        """What each chunk says about the question, in document order."""
        if "completeness" not in self._weighted:
            return [], NO_WEIGHT
        asked = []
        for number, chunk in enumerate(self._chunks):
            blocks = [Block("document", chunk["text"]), self._question]
            asked.append(self._ask("extract", blocks, answers.Facts, None, index=number))
        extracts: list[Extract] = []
        reasons: list[str] = []
        for chunk, facts in zip(self._chunks, await everything(map(usable, asked)), strict=True):
            if isinstance(facts, Missing):
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
        scored = dict(zip(ways, await everything(ways.values()), strict=True))
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
            "repeats": [],
        }

    async def again(
        self, extracts: list[Extract], kind: str, candidate: JudgedCandidate, sample: int
    ) -> float | None:
        """Sample number `sample` of a rating of a candidate; None where it is unusable."""
        answer = Block("answer", candidate["text"])
        facts = _shown(extracts) if kind == "completeness" else []
        score = await self._rate(kind, [self._question, *facts, answer], candidate["index"], sample)
        return score.score

    async def _rate(self, kind: str, blocks: list[Block], number: int, sample: int = 0) -> Score:
        rating = await usable(self._ask(kind, blocks, answers.Rating, number, sample=sample))
        if isinstance(rating, Missing):
            return Score(None, rating.reason)
        return Score(float(rating.score), analysis=rating.analysis)

    async def _completeness(self, answer: Block, number: int, extracting: Awaitable[Extracts]) -> Score:
        extracts, missing = await extracting
        if missing:
            return Score(None, missing)
        return await self._rate("completeness", [self._question, *_shown(extracts), answer], number)

    async def _faithfulness(self, answer: Block, number: int) -> Score:
        blocks = [self._question, answer]
        split = await usable(self._ask("statements", blocks, answers.Statements, number))
        if isinstance(split, Missing):
            return Score(None, split.reason)
        if not split.statements:
            fixed = self._settings.no_statements_score
            return Score(fixed, "" if fixed is not None else NO_STATEMENTS)
        ask = functools.partial(self._verdicts, number)
        statements = await support.verify(split.statements, self._index, ask, self._settings)
        verdicts = [statement["verdict"] for statement in statements if statement["verdict"]]
        if len(verdicts) < len(statements):
            reason = next(s["unscored"] for s in statements if s["unscored"])
            return Score(None, f"a statement has no verdict: {reason}", statements=tuple(statements))
        return Score(faithfulness(verdicts), statements=tuple(statements))

    async def _verdicts(
        self, number: int, passages: list[Passage], statements: list[str], index: int
    ) -> list[answers.Verdict]:
        found = [Block("passage", passage["text"]) for passage in passages]
        where = tuple(round(passage["position"] * len(self._row["context"])) for passage in passages)
        if len(statements) == 1:
            blocks = [*found, Block("statement", statements[0])]
            return [await self._ask("support", blocks, answers.Verdict, number, index, where)]
        blocks = found + [Block("statement", text, number=i) for i, text in enumerate(statements, 1)]
        answer = answers.Verdicts.of(len(statements))
        return list((await self._ask("support", blocks, answer, number, index, where)).verdicts)

    def _ask(
        self,
        kind: str,
        blocks: list[Block],
        answer: type[A],
        number: int | None,
        index: int = 0,
        where: tuple[int, ...] = (),
        sample: int = 0,
    ) -> Awaitable[A]:
        messages, schema = requests.messages(kind, self.language, blocks), answers.schema(kind, answer)
        call = Call(kind, messages, schema, answer, number, index or sample, sample=sample)
        shared = sum(len(block.text) for block in blocks[:-1])
        return self._turn.take(call, where, shared, self._asks.ask)


async def _unweighted() -> Score:
    return Score(None, NO_WEIGHT)


def _shown(extracts: list[Extract]) -> list[Block]:
    """The extracts that say something, as blocks."""
    return [Block("extract", "\n".join(e["facts"]), e["position"]) for e in extracts if e["facts"]]
