"""The passages of a context that a statement is checked against.

BM25 by bm25s, or cosine similarity of embeddings as in the paper; the best passages go back into document
order, as the authors do.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np

from lr_ray.llm.calls import Unusable, Vectors
from lr_ray.rows import Passage

Embed = Callable[[list[str]], Awaitable[Vectors]]

_CJK = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u3040-\u30ff\uac00-\ud7af"
_TERM = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")


def terms(text: str) -> list[str]:
    """Lower-case words, and pairs of neighbours where characters stand without spaces between words."""
    found: list[str] = []
    for run in _TERM.findall(text.lower()):
        if _IS_CJK.match(run) and len(run) > 1:
            found += [run[i : i + 2] for i in range(len(run) - 1)]
        else:
            found.append(run)
    return found


class Words:
    """A BM25 index over passages."""

    def __init__(self, passages: list[Passage]) -> None:
        self._passages = passages
        corpus = [terms(passage["text"]) for passage in passages]
        self._index: Any = None
        if any(corpus):
            from bm25s import BM25

            self._index = BM25()
            self._index.index(corpus, show_progress=False)

    async def top(self, statements: list[str], k: int) -> list[list[Passage]]:
        """The k best passages for each statement, in document order; all when there are fewer."""
        return [self._top(statement, k) for statement in statements]

    def _top(self, statement: str, k: int) -> list[Passage]:
        wanted = list(dict.fromkeys(terms(statement)))
        if len(self._passages) <= k or self._index is None or not wanted:
            return self._passages[:k]
        return _best(self._passages, self._index.get_scores(wanted), k)


class Meanings:
    """Passages by cosine similarity; they are embedded when the first statement asks."""

    def __init__(self, passages: list[Passage], embed: Embed) -> None:
        self._passages, self._embed = passages, embed
        self._vectors: asyncio.Future[Vectors] | None = None

    async def top(self, statements: list[str], k: int) -> list[list[Passage]]:
        """The k best passages for each statement, in document order; all when there are fewer.

        The statements are embedded by one request.

        Raises:
            Unusable: the embedding endpoint's reply does not fit.
        """
        if len(self._passages) <= k:
            return [self._passages] * len(statements)
        if self._vectors is None:
            texts = [passage["text"] for passage in self._passages]
            self._vectors = asyncio.ensure_future(self._embed(texts))
        vectors, queries = await asyncio.gather(self._vectors, self._embed(statements))
        if vectors.shape[1] != queries.shape[1]:
            raise Unusable("the embedding endpoint mixes vectors of several widths")
        return [_best(self._passages, vectors @ query, k) for query in queries]


Index = Words | Meanings


def _best(passages: list[Passage], scores: Any, k: int) -> list[Passage]:
    # Stable: of equal passages the earlier wins, so that a repeated run asks the same.
    order = np.argsort(-np.asarray(scores), kind="stable")[:k]
    return [passages[i] for i in sorted(order)]
