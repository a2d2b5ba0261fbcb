import asyncio
from typing import Any

import numpy as np
import pytest

from lr_ray.judge.retrieval import Meanings, Words, terms
from lr_ray.llm.calls import Unusable, Vectors
from lr_ray.rows import Passage


def passages(*texts: str) -> list[Passage]:
    return [{"position": i / len(texts), "text": text} for i, text in enumerate(texts)]


def texts(found: list[Passage]) -> list[str]:
    return [passage["text"] for passage in found]


def top(index: Any, statement: str, k: int) -> list[str]:
    return texts(asyncio.run(index.top([statement], k))[0])


DOCUMENT = passages("Rain fell all day.", "Mira keeps copper.", "The mill is old.", "Toben keeps salt.")


def test_the_best_passages_come_back_in_document_order() -> None:
    index = Words(DOCUMENT)
    assert top(index, "Toben keeps salt, not copper", 2) == [
        "Mira keeps copper.",
        "Toben keeps salt.",
    ]
    assert top(index, "old mill", 1) == ["The mill is old."]


@pytest.mark.parametrize("k", [4, 5, 100])
def test_fewer_passages_than_asked_for_are_all_of_them(k: int) -> None:
    assert top(Words(DOCUMENT), "salt", k) == texts(DOCUMENT)


def test_a_document_or_statement_without_words_still_gives_passages() -> None:
    silent = passages("...", "!!!", " ", "--")
    assert top(Words(silent), "salt", 2) == ["...", "!!!"]
    assert top(Words(DOCUMENT), "?!", 2) == texts(DOCUMENT)[:2]
    assert top(Words(DOCUMENT), "zebra", 2) == texts(DOCUMENT)[:2]


def test_chinese_is_found_without_spaces() -> None:
    chinese = passages("今天下了一整天的雨。", "米拉保管铜器。", "磨坊很旧。", "托本保管盐。")
    assert top(Words(chinese), "铜器由米拉保管", 1) == ["米拉保管铜器。"]
    assert terms("米拉 keeps 铜") == ["米拉", "keeps", "铜"]
    assert terms("保管铜器X2") == ["保管", "管铜", "铜器", "x2"]


def test_equal_scores_take_the_earlier_passage_every_time() -> None:
    same = passages(*["Mira keeps copper."] * 6)
    (found,) = asyncio.run(Words(same).top(["copper"], 3))
    assert [passage["position"] for passage in found] == [0, 1 / 6, 2 / 6]


def test_by_meaning_passages_are_embedded_once() -> None:
    asked: list[list[str]] = []

    async def embed(wanted: list[str]) -> Vectors:
        asked.append(wanted)
        known = {"Mira keeps copper.": [1.0, 0.0], "red metal": [0.9, 0.1]}
        return np.array([known.get(text, [0.0, 1.0]) for text in wanted], np.float32)

    index = Meanings(DOCUMENT, embed)

    async def twice() -> list[list[list[Passage]]]:
        return await asyncio.gather(index.top(["red metal", "salt"], 1), index.top(["red metal"], 1))

    one, two = asyncio.run(twice())
    assert [texts(found) for found in one] == [["Mira keeps copper."], ["Rain fell all day."]]
    assert [texts(found) for found in two] == [["Mira keeps copper."]]
    # The document once, and the statements of an answer together.
    assert sorted(map(len, asked)) == [1, 2, 4]


def test_vectors_of_two_widths_are_no_answer() -> None:
    async def embed(wanted: list[str]) -> Vectors:
        return np.ones((len(wanted), len(wanted)), np.float32)

    with pytest.raises(Unusable, match="several widths"):
        asyncio.run(Meanings(DOCUMENT, embed).top(["x"], 2))
