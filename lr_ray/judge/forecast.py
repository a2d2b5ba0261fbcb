"""What judging a row would take, counted by judging it with answers that are assumed instead of paid for.

It is the judge itself (`core.judge_row`) that says which calls a row makes and what stands in them: chunks,
retrieved passages, equal answers and statements, everything as in the run. Only what a judge would say is
assumed here, and so is its length.
"""

import asyncio
import hashlib
import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel

from lr_ray.config import Judge
from lr_ray.judge import chunks, core
from lr_ray.judge.answers import ITEMS, TEXT_CHARS, Verdicts
from lr_ray.judge.chunks import Measure
from lr_ray.llm.calls import EMBEDDINGS_A_CALL, Call, Vectors
from lr_ray.llm.usage import Used
from lr_ray.rows import Sampled, no_usage

RATING_TOKENS = 120  # of an answer with analysis and score
VERDICT_TOKENS = 80  # of an analysis and verdict
FACTS_SHARE = 0.05  # of a chunk is said again by its extract

A = TypeVar("A", bound=BaseModel)

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_LETTER = re.compile(r"[^\W\d_]")


def of_row(row: Sampled, settings: Judge) -> dict[str, Used]:
    """Calls and tokens that judging `row` would take, by kind of call; nothing is asked of anybody."""
    asks = _Assumed(row, settings)
    embed = asks.embed if settings.retrieval.embedding_model else None
    asyncio.run(core.judge_row(row, asks, settings, embed))
    return dict(asks.used)


def sentences(text: str) -> list[str]:
    """The different sentences of an answer that may state something: an upper bound of its statements."""
    parts = (part.strip() for part in _SENTENCE.split(text))
    stated = (part for part in parts if _LETTER.search(part) and not part.endswith(("?", "？", ":", "：")))
    return list(dict.fromkeys(stated))


@dataclass(frozen=True)
class _Counter:
    """Tokens of a text by the run's measure."""

    measure: Measure

    def __call__(self, text: str) -> int:
        return round(float(self.measure.upto(text)[-1]) / self.measure.unit) if text else 0


class _Assumed:
    """In place of `llm.calls.Calls`: takes each different request down, and answers by assumption."""

    def __init__(self, row: Sampled, settings: Judge) -> None:
        self.usage, self.first_call_at = no_usage(), time.time()
        self.used: dict[str, Used] = defaultdict(Used)
        self._texts = {candidate["index"]: candidate["text"] for candidate in row["candidates"]}
        self._settings, self._tokens = settings, _Counter(chunks.measure(settings.tokenizer))
        self._fixed: dict[str, int] = {}
        self._asked: set[bytes] = set()

    async def ask(self, call: Call[A]) -> A:
        answer, tokens = self._answer(call)
        same = hashlib.sha256(orjson.dumps([call.name, call.messages, call.sample])).digest()
        if same not in self._asked:
            self._asked.add(same)
            self._take(call.name, self._prompt(call), tokens)
        return call.answer.model_validate(answer)

    async def embed(self, texts: list[str]) -> Vectors:
        for start in range(0, len(texts), EMBEDDINGS_A_CALL):
            self._take("embeddings", sum(map(self._tokens, texts[start : start + EMBEDDINGS_A_CALL])), 0)
        return np.ones((len(texts), 1), np.float32)

    def _take(self, kind: str, prompt: int, completion: int) -> None:
        one = self.used[kind]
        one.calls += 1
        one.prompt_tokens += prompt
        one.completion_tokens += completion

    def _prompt(self, call: Call[A]) -> int:
        fixed, *rest = (message["content"] for message in call.messages)
        if self._settings.structured_output == "prompt":
            fixed += orjson.dumps(call.schema).decode()
        if fixed not in self._fixed:
            self._fixed[fixed] = self._tokens(fixed)
        return self._fixed[fixed] + sum(map(self._tokens, rest))

    def _answer(self, call: Call[A]) -> tuple[dict[str, Any], int]:
        """What is assumed to be answered, and its tokens."""
        if call.name == "statements":
            assert call.candidate is not None
            stated = sentences(self._texts[call.candidate])[: ITEMS - 1]
            answer: dict[str, Any] = {"statements": [text[: TEXT_CHARS - 1] for text in stated]}
            return answer, self._json(answer)
        if call.name == "extract":
            text = call.messages[-1]["content"]
            answer = {"facts": [text[: max(1, round(len(text) * FACTS_SHARE))][: TEXT_CHARS - 1]]}
            return answer, self._json(answer)
        if call.name != "support":
            return {"analysis": "", "score": 5}, RATING_TOKENS
        verdict = {"analysis": "", "verdict": "full"}
        if not issubclass(call.answer, Verdicts):
            return verdict, VERDICT_TOKENS
        count = call.answer.count
        return {"verdicts": [{**verdict, "statement": i + 1} for i in range(count)]}, VERDICT_TOKENS * count

    def _json(self, answer: dict[str, Any]) -> int:
        return self._tokens(orjson.dumps(answer).decode())
