"""Near-duplicates among many, against a comparison of all with all."""

import random

import pytest

from lr_ray.synthesis.filters import alike, duplicates, triples

WORDS = [f"word{i}" for i in range(400)]


def brute(texts: list[str], share: float) -> set[int]:
    sets = [triples(text) for text in texts]
    dropped: set[int] = set()
    for i in range(len(texts)):
        if any(alike(sets[i], sets[j]) >= share for j in range(i) if j not in dropped):
            dropped.add(i)
    return dropped


@pytest.mark.parametrize("share", [0.7, 0.8, 0.95])
def test_duplicates_are_those_of_a_comparison_of_all_with_all(share: float) -> None:
    rng = random.Random(3)
    texts: list[str] = []
    for _ in range(150):
        words = rng.choices(WORDS, k=rng.randrange(8, 40))
        texts.append(" ".join(words))
        for _ in range(rng.randrange(3)):
            changed = list(words)
            for _ in range(rng.randrange(3)):
                changed[rng.randrange(len(changed))] = rng.choice(WORDS)
            texts.append(" ".join(changed))
    rng.shuffle(texts)
    expected = brute(texts, share)
    assert expected
    assert len(expected) < len(texts) / 2
    assert duplicates(texts, share) == expected


def test_the_measure_by_hand() -> None:
    # 4 triples and 4 triples, 3 of them shared: 3 / 5.
    assert alike(triples("a b c d e f"), triples("A, b c d e g!")) == pytest.approx(3 / 5)
    assert alike(triples("何时建成了桥"), triples("何时建成了路")) == pytest.approx(3 / 5)
    assert alike(triples("why"), triples("Why?")) == 1.0
    assert alike(triples(""), triples("why")) == 0.0


def test_the_first_stays() -> None:
    texts = [
        "What did Mira keep in the mill?",
        "Who paid?",
        "what did mira keep in the mill",
        "Who paid for it?",
    ]
    assert duplicates(texts, 0.7) == {2}
    assert duplicates([], 0.7) == set()
