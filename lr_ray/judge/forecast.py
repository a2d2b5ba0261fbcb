"""What judging a row would take, counted by judging it with answers that are assumed instead of paid for.

It is the judge itself (`core.judge_row`) that says which calls a row makes and what stands in them: chunks,
retrieved passages, equal answers and statements, everything as in the run. Only what a judge would say is
assumed here, and so is its length: that of the examples in its own prompt, which models imitate.
"""

import asyncio
import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel

from lr_ray.config import Judge
from lr_ray.judge import chunks, core, direct
from lr_ray.judge.answers import ITEMS, TEXT_CHARS, Verdicts
from lr_ray.judge.chunks import Measure
from lr_ray.llm.calls import EMBEDDINGS_A_CALL, Call, Vectors
from lr_ray.llm.messages import language
from lr_ray.llm.usage import Used
from lr_ray.rows import Sampled, no_usage

FACTS_SHARE = 0.05  # of a chunk is said again by its extract
CACHE_BLOCK = 512  # characters, about 128 tokens: the coarsest step in which endpoints count cached tokens

A = TypeVar("A", bound=BaseModel)

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
_LETTER = re.compile(r"[^\W\d_]")
_EXAMPLE = re.compile(r"^\{.*\}$", re.MULTILINE)


def of_row(row: Sampled, settings: Judge, cached: set[int] | None = None) -> dict[str, Used]:
    """Calls and tokens that judging `row` would take, by kind of call; nothing is asked of anybody.

    With `cached`, the blocks that a prefix cache without limit holds, cached tokens are counted, and what
    the row brings is added; else none are.
    """
    asks = _Assumed(row, settings, cached)
    embed = asks.embed if settings.retrieval.embedding_model else None
    asyncio.run(core.judge_row(row, asks, settings, embed))
    return dict(asks.used)


def of_couples(
    row: Sampled,
    couples: Iterable[tuple[str, str]],
    settings: Judge,
    cached: set[int] | None = None,
    *,
    context: bool,
) -> Used:
    """Calls and tokens that asking outright about each couple of answers to `row`, in its order, would take.

    With `context` the document is shown; `cached` is as in `of_row`.
    """
    asks, lang = _Assumed(row, settings, cached), language(row["context"])
    shown = row["context"] if context else None

    async def ask() -> None:
        for first, second in couples:
            await direct.prefer(asks, row["question"], first, second, lang=lang, context=shown)

    asyncio.run(ask())
    return asks.used[direct.KIND]


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

    def __init__(self, row: Sampled, settings: Judge, cached: set[int] | None) -> None:
        self.usage, self.first_call_at = no_usage(), time.time()
        self.used: dict[str, Used] = defaultdict(Used)
        self._texts = {candidate["index"]: candidate["text"] for candidate in row["candidates"]}
        self._settings, self._tokens = settings, _Counter(chunks.measure(settings.tokenizer))
        self._fixed: dict[str, int] = {}
        self._said: dict[str, float] = {}
        self._asked: set[bytes] = set()
        self._cached = cached

    async def ask(self, call: Call[A]) -> A:
        answer, tokens = self._answer(call)
        same = hashlib.sha256(orjson.dumps([call.name, call.messages, call.sample])).digest()
        if same not in self._asked:
            self._asked.add(same)
            prompt = self._prompt(call)
            self._take(call.name, prompt, tokens, round(prompt * self._hit(call)))
        return call.answer.model_validate(answer)

    async def embed(self, texts: list[str]) -> Vectors:
        for start in range(0, len(texts), EMBEDDINGS_A_CALL):
            self._take("embeddings", sum(map(self._tokens, texts[start : start + EMBEDDINGS_A_CALL])), 0)
        return np.ones((len(texts), 1), np.float32)

    def _take(self, kind: str, prompt: int, completion: int, cached: int = 0) -> None:
        self.used[kind].add(Used(1, prompt, cached, completion))

    def _hit(self, call: Call[A]) -> float:
        """The share of the prompt that calls before it have brought into the cache."""
        if self._cached is None:
            return 0.0
        text, block, hit = "\0".join(message["content"] for message in call.messages), 0, 0
        for end in range(CACHE_BLOCK, len(text) + 1, CACHE_BLOCK):
            block = hash((block, text[end - CACHE_BLOCK : end]))
            if block in self._cached:
                hit = end
            self._cached.add(block)
        return hit / len(text)

    def _example(self, call: Call[A]) -> float:
        """Mean tokens of the answers (of a verdict, where several are asked for) in the prompt's examples."""
        fixed = call.messages[0]["content"]
        if fixed not in self._said:
            # The line that shows the form alone has an ellipsis in its place.
            examples = [text for text in _EXAMPLE.findall(fixed) if "…" not in text]
            assert examples, f"the prompt of {call.name} has no example of an answer"
            self._said[fixed] = fmean(
                self._tokens(text) / len(json.loads(text).get("verdicts", "1")) for text in examples
            )
        return self._said[fixed]

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
        if call.name == direct.KIND:
            return {"analysis": "", "winner": "tie"}, round(self._example(call))
        if call.name != "support":
            return {"analysis": "", "score": 5}, round(self._example(call))
        verdict = {"analysis": "", "verdict": "full"}
        if not issubclass(call.answer, Verdicts):
            return verdict, round(self._example(call))
        count = call.answer.count
        verdicts = [{**verdict, "statement": i + 1} for i in range(count)]
        return {"verdicts": verdicts}, round(self._example(call) * count)

    def _json(self, answer: dict[str, Any]) -> int:
        return self._tokens(orjson.dumps(answer).decode())
