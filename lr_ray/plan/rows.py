"""Rows that a forecast counts: a spread sample of the data, with answers or what stands for them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lr_ray import data
from lr_ray.config import Config, Judge
from lr_ray.judge import chunks, forecast
from lr_ray.llm.usage import Used
from lr_ray.plan.bounds import POINT, Supposed
from lr_ray.rows import Candidate
from lr_ray.store import Store

SAMPLE = 100  # prompts counted in full; the rest are taken to be alike
STATEMENTS, ANSWER_TOKENS = 10, 300  # of a candidate that is not there yet, as the paper's estimate has it

T = TypeVar("T")
More = Callable[[Any, set[int] | None], Mapping[str, Used]]
"""What a row takes beside its judging, by kind of call, with the blocks that a prefix cache holds."""


def nothing(row: Any, cached: set[int] | None) -> Mapping[str, Used]:
    """No calls beside the judging of `row`."""
    return {}


class Answers:
    """Rows to forecast. Who has no answers yet gets those of another prompt, or none at all made-up ones."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store
        self._sampled = store.index("sampled")
        lenders = spread(sorted(self._sampled), SAMPLE // 5)
        self._lent = [stored(store, "sampled", self._sampled[one])["candidates"] for one in lenders]
        self.made_up = self.borrowed = 0

    def of(self, pointer: data.Pointer, n: int | None = None, supposed: Supposed = POINT) -> Any:
        """The row at `pointer` with its candidates, or with `n` that stand for them."""
        found: Any = data.load(pointer, self._config.data.prompt_template)
        if n is None and pointer.candidates:
            return found
        if n is None and pointer.prompt_id in self._sampled:
            return stored(self._store, "sampled", self._sampled[pointer.prompt_id])
        answers = self._stand_in(n or self._config.sampling.n, supposed)
        return {**found, "candidates": answers, "sampled_at": 0.0}

    def _stand_in(self, n: int, supposed: Supposed) -> list[Candidate]:
        if self._lent:
            self.borrowed += 1
            return self._lent[self.borrowed % len(self._lent)][:n]
        self.made_up += 1
        tokens, statements = made_up(self._config, supposed.length)
        different = max(1, math.ceil(n * supposed.different))
        words = "word " * max(0, tokens * chunks.BYTES_A_TOKEN // statements // 5 - 2)
        points = [[f"Point {i} {j} {words.strip()}." for j in range(statements)] for i in range(different)]
        texts = [" ".join(points[i % different]) for i in range(n)]
        return [{"index": i, "text": text, "finish_reason": None} for i, text in enumerate(texts)]


@dataclass(frozen=True)
class Part:
    """`prompts` prompts to be judged with `n` answers each, or those that they have, of each of `models`.

    `more` is what a row takes beside that.
    """

    pointers: Sequence[data.Pointer]
    prompts: int
    n: int | None = None
    most: int = SAMPLE
    more: More = nothing
    models: int = 1

    def rows(self, answers: Answers, supposed: Supposed = POINT, most: int | None = None) -> list[Any]:
        """Those that are counted in full, `most` at most."""
        return [answers.of(one, self.n, supposed) for one in spread(self.pointers, most or self.most)]


def shared(row: Any, judged: Mapping[str, Used], settings: Judge) -> dict[str, Used]:
    """What of judging `row`, `judged` by kind of call, depends on no answer, so that one model's judging pays
    for all: the extracts, and the embeddings of passages."""
    found = {"extract": judged["extract"]} if "extract" in judged else {}
    if "embeddings" in judged:
        measure = chunks.measure(settings.tokenizer)
        passages = chunks.split(row["context"], settings.retrieval.chunk_tokens, measure)
        tokens = sum(round(float(measure.upto(one["text"])[-1]) / measure.unit) for one in passages)
        found["embeddings"] = Used(math.ceil(len(passages) / forecast.EMBEDDINGS_A_CALL), tokens)
    return found


def made_up(config: Config, length: float = 1.0) -> tuple[int, int]:
    """Tokens and statements of an answer that is not there yet, of `length` times the usual."""
    tokens = min(round(ANSWER_TOKENS * length), config.sampling.max_tokens)
    return tokens, max(1, round(STATEMENTS * tokens / ANSWER_TOKENS))


def spread(items: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of `items`, evenly."""
    return items[:: max(1, math.ceil(len(items) / most))]


def stored(store: Store, folder: str, place: tuple[str, int]) -> dict[str, Any]:
    """The row at `place` in a folder of the run directory."""
    name, number = place
    return store.table(folder, name).slice(number, 1).to_pylist()[0]
