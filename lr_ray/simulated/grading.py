"""The simulated judge's grades of answers against references: plain rules over shared words."""

import math
from typing import Any

from lr_ray.simulated.words import asserts, keys, overlap, sentences

ALL, SOME = 0.8, 0.3  # of a reference's words that a right answer shares, and a partly right one


def graded(blocks: dict[str, list[str]], highest: int) -> dict[str, Any]:
    """How much of the reference the answer says; without one, how much of the question it takes up."""
    answer = _one(blocks, "answer")
    wanted = keys(_one(blocks, "reference") or _one(blocks, "question"))
    said = {stem for sentence in sentences(answer) for stem in keys(sentence).weight}
    share = overlap(wanted, said)
    if not _one(blocks, "reference") and not any(map(asserts, sentences(answer))):
        share = 0.0  # who only asks back answers nothing
    score = 1 + math.floor((highest - 1) * min(1.0, share / ALL) + 0.5)
    return {"analysis": f"The answer shares {share:.0%} of the words.", "score": score}


def answer(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """1, 2 or 3: nothing, a part or all of the reference is said."""
    said = {stem for sentence in sentences(_one(blocks, "answer")) for stem in keys(sentence).weight}
    share = overlap(keys(_one(blocks, "reference")), said)
    score = 1 + (share >= SOME) + (share >= ALL)
    return {"analysis": f"The answer shares {share:.0%} of the reference.", "score": score}


def chat(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """1 to 10 by the words shared with the reference."""
    return graded(blocks, 10)


def summary(blocks: dict[str, list[str]]) -> dict[str, Any]:
    """1 to 5 by the words shared with the reference."""
    return graded(blocks, 5)


def _one(blocks: dict[str, list[str]], tag: str) -> str:
    return blocks.get(tag, [""])[0]


KINDS = {"grade_chat": chat, "grade_answer": answer, "grade_summary": summary, "grade_turn": chat}
