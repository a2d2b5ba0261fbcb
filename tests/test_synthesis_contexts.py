"""Contexts of asked-for lengths out of documents, the same from the same seed."""

import random
from collections import Counter
from typing import Any

import pytest

from lr_ray.config import Synthesis
from lr_ray.judge.chunks import measure
from lr_ray.rows import Composed
from lr_ray.synthesis.contexts import Known, Plan, compose, plans, stretch

MEASURE = measure(None)
LENGTHS = [2048, 4096, 8192, 16384]


def text(number: int, tokens: int, language: str = "en") -> str:
    """A document whose sentences say which it is."""
    rng = random.Random(number)
    if language == "zh":
        sentences = [f"文件{number}的第{i}条说明了规定。" for i in range(tokens)]
        return "".join(sentences)[: tokens * 4 // 3]
    words: list[str] = []
    size = 0
    while size < tokens * 4:
        sentence = f"Document {number} says {rng.randrange(10**6)} in sentence {len(words)}."
        words.append(sentence + ("\n\n" if rng.random() < 0.2 else " "))
        size += len(words[-1])
    return "".join(words).strip()


def corpus(sizes: list[int], language: str = "en", first: int = 0) -> dict[str, tuple[Known, str]]:
    found = {}
    for number, tokens in enumerate(sizes, first):
        body = text(number, tokens, language)
        size = int(MEASURE.upto(body)[-1]) // MEASURE.unit
        found[f"doc-{number}"] = (Known(f"doc-{number}", f"{number:03}" * 8, language, size), body)
    return found


def composed(documents: dict[str, tuple[Known, str]], **settings: Any) -> list[tuple[Plan, Composed]]:
    asked = Synthesis(**settings)
    made = plans([known for known, _ in documents.values()], asked)
    return [(plan, compose(plan, lambda key: (key, documents[key][1]), MEASURE)) for plan in made]


MIXED = corpus([300, 800, 1500, 2500, 5000, 9000, 20000, 40000] * 10)


def test_lengths_are_met_and_mixed_as_asked() -> None:
    made = composed(MIXED, lengths=LENGTHS, contexts=80)
    assert Counter(row["target_tokens"] for _, row in made) == dict.fromkeys(LENGTHS, 20)
    for plan, row in made:
        assert row["tokens"] == -(-len(row["context"].encode()) // 4)
        # Left free: too little for another document (200 tokens), and the last stretch's beginning and end.
        free = 208 + min(2 * 600 // 4, plan.target // 16)
        assert plan.target - free <= row["tokens"] <= plan.target, (plan.target, row["tokens"])


def test_half_are_of_several_documents_and_none_crowds_out_the_others() -> None:
    made = composed(MIXED, lengths=LENGTHS, contexts=80)
    several = [row for _, row in made if len(row["parts"]) > 1]
    assert len(several) == 40
    assert not any(plan.wished for plan, _ in made)
    for row in several:
        assert sum(part["asked"] for part in row["parts"]) == 2
        assert len({part["name"] for part in row["parts"]}) == len(row["parts"]) >= 4
        for part in row["parts"]:
            # A quarter, in characters of a quarter token, and what stretches before it left free.
            assert part["end"] - part["start"] <= 1.1 * row["target_tokens"]
    places = Counter(i for row in several for i, part in enumerate(row["parts"]) if part["asked"])
    assert len(places) >= 4  # what is asked about stands anywhere


def test_parts_are_where_they_are_said_to_be() -> None:
    for plan, row in composed(MIXED, lengths=LENGTHS, contexts=40):
        heading = "[Document {}]\n\n" if len(row["parts"]) > 1 else ""
        rebuilt = "\n\n".join(
            heading.format(i) + row["context"][part["start"] : part["end"]]
            for i, part in enumerate(row["parts"], 1)
        )
        assert rebuilt == row["context"]
        for part, piece in zip(row["parts"], plan.pieces, strict=True):
            body = row["context"][part["start"] : part["end"]]
            assert part["name"] == piece.key
            assert body in MIXED[piece.key][1]
            assert body.startswith(f"Document {piece.key[4:]} says")
            assert body.endswith(".")


def test_the_same_documents_give_the_same_contexts_in_any_order_and_under_any_name() -> None:
    shuffled = list(MIXED.values())
    random.Random(1).shuffle(shuffled)
    renamed = {
        f"other-{known.digest}": (Known(f"other-{known.digest}", *_rest(known)), body)
        for known, body in shuffled
    }
    one, other = composed(MIXED, lengths=LENGTHS), composed(renamed, lengths=LENGTHS)
    assert [row["context"] for _, row in one] == [row["context"] for _, row in other]
    assert [row["prompt_id"] for _, row in one] == [row["prompt_id"] for _, row in other]
    reseeded = composed(MIXED, lengths=LENGTHS, seed=1)
    assert not {row["context"] for _, row in reseeded} & {row["context"] for _, row in one}


def _rest(known: Known) -> tuple[str, str, int]:
    return known.digest, known.language, known.tokens


def test_every_document_leads_one_context_before_any_leads_a_second() -> None:
    alike = corpus([3000] * 12)
    made = plans([known for known, _ in alike.values()], Synthesis(lengths=[2048], contexts=24))
    leads = [plan.prompt_id.split("-")[0] for plan in made]
    counts = Counter(leads)
    assert len(counts) == 12
    assert max(counts.values()) <= 3  # those of one document and those of several take turns on their own
    first = plans([known for known, _ in alike.values()], Synthesis(lengths=[2048]))
    assert len({plan.prompt_id.split("-")[0] for plan in first}) == 12


def test_a_long_document_asked_about_twice_gives_another_stretch() -> None:
    book = corpus([100_000])
    made = composed(book, lengths=[4096], contexts=6, multi_document=0)
    assert len({row["context"] for _, row in made}) == 6
    assert all(len(row["parts"]) == 1 and row["tokens"] > 3500 for _, row in made)


def test_short_documents_stand_together_where_one_alone_was_wished() -> None:
    made = composed(corpus([900] * 30), lengths=[8192], multi_document=0)
    assert all(plan.wished and len(row["parts"]) >= 8 for plan, row in made)


def test_too_few_documents_make_shorter_contexts() -> None:
    (_, row), (_, other) = composed(corpus([900, 700]), lengths=[16384], contexts=2)
    assert {len(row["parts"]), len(other["parts"])} == {2}
    assert row["tokens"] < 1700
    (plan, row), *_ = composed(corpus([900]), lengths=[16384], contexts=1)
    assert len(row["parts"]) == 1
    assert not plan.wished


def test_a_context_is_of_one_language() -> None:
    both = corpus([700] * 20) | corpus([700] * 20, "zh", first=20)
    made = composed(both, lengths=[4096])
    assert Counter(row["language"] for _, row in made) == {"en": 20, "zh": 20}
    for _, row in made:
        assert {both[part["name"]][0].language for part in row["parts"]} == {row["language"]}
        assert ("[文档 1]" in row["context"]) == (row["language"] == "zh" and len(row["parts"]) > 1)


@pytest.mark.parametrize(("keep", "gaps"), [("one", 20), ("all", 80)])
def test_the_share_of_questions_without_answer_is_exact(keep: str, gaps: int) -> None:
    made = plans(
        [known for known, _ in MIXED.values()],
        Synthesis(lengths=LENGTHS, unanswerable=0.25, keep=keep, questions=4),  # pyrefly: ignore
    )
    assert sum(plan.gaps for plan in made) == gaps
    assert max(plan.gaps for plan in made) <= (1 if keep == "one" else 4)


def test_a_stretch_begins_and_ends_well_and_fits() -> None:
    body = text(5, 5000)
    for at in (0.0, 0.3, 0.77, 1.0):
        cut = stretch(body, 1000, at, MEASURE)
        assert cut in body
        assert cut.startswith("Document 5 says")
        assert cut.endswith(".")
        assert 800 <= len(cut) // 4 <= 1000
    assert stretch(body, 6000, 0.5, MEASURE) == body
    wall = "x" * 40_000  # without any place to cut at
    assert len(stretch(wall, 1000, 0.5, MEASURE)) == 4000
    assert stretch("桥" * 9000, 999, 0.5, MEASURE) == "桥" * 1332


def test_plans_travel_as_json() -> None:
    for plan in plans([known for known, _ in MIXED.values()], Synthesis(lengths=LENGTHS, contexts=5)):
        assert Plan.of(plan.item()) == plan
