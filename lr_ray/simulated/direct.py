"""The simulated judge's answer to a direct pairwise call: plain rules over the two answers alone.

What a hurried reader does: how much of the question an answer takes up, how much of what it says is to be
found somewhere in the document, and how much it says. Where that is as good as even, the answer that is
read first wins. It does not check any claim against the place that speaks of it.
"""

import math
from typing import Any

from lr_ray.simulated.words import Keys, asserts, keys, overlap, sentences

LONGER = 0.08  # of a whole answer, a doubling of the text counts for
EVEN = 0.02  # difference below which the first answer is preferred
SEEN = 40_000  # characters of the document that are looked at
FULL_LENGTH = 400  # words of an answer beyond which more earn nothing


def direct(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """Which of the two answers is preferred; a tie only where nothing at all tells them apart."""
    question = keys(_one(blocks, "question"))
    # Not through the cache of `keys`, which is for sentences.
    known = keys.__wrapped__(_one(blocks, "document")[:SEEN] + " " + _one(blocks, "reference"))
    first, second = (_worth(_one(blocks, name), question, known) for name in ("first", "second"))
    why = f"The first answer is worth {first:.2f}, the second {second:.2f}."
    if first == second:
        return {"analysis": why, "winner": "tie"}
    return {"analysis": why, "winner": "first" if first > second - EVEN else "second"}


def _worth(text: str, question: Keys, known: Keys) -> float:
    said = [keys(sentence) for sentence in sentences(text) if asserts(sentence)]
    if not said:
        return 0.0
    stems = {stem: weight for view in said for stem, weight in view.weight.items()}
    words = frozenset().union(*(view.words for view in said))
    everything = Keys(stems, words, tuple(stems))
    taken = overlap(question, stems)
    found = overlap(everything, known.weight) if known.weight else 0.5
    long = math.log2(1 + min(FULL_LENGTH, len(text.split())))
    return 0.5 * taken + 0.3 * found + LONGER * long


def _one(blocks: dict[str, list[str]], tag: str) -> str:
    return blocks.get(tag, [""])[0]
