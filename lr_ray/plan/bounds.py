"""How far a forecast may be off while nobody has heard the judge, or seen an answer: its two ends.

Each is a supposition that can be said in a sentence, not a confidence interval; the first answers that are
paid replace it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from lr_ray.llm.usage import Used


@dataclass(frozen=True)
class Supposed:
    """Times what the forecast supposes: the length of what a judge writes, the statements of a sentence, the
    length of an answer. Of n answers a share is `different`, and the endpoint's cache `hits`, or never."""

    said: float = 1.0
    stated: float = 1.0
    length: float = 1.0
    different: float = 1.0
    hits: bool = True

    @property
    def judge_known(self) -> "Supposed":
        """The same where judged prompts have told what the judge does."""
        return dataclasses.replace(self, said=1.0, stated=1.0, hits=True)


POINT = Supposed()
# A judge that writes one sentence where the examples in its prompt have three, or six; every other sentence
# states something, or every other one two things; answers of a hundred tokens, half of them repeated, or of
# a thousand.
LOW = Supposed(said=1 / 3, stated=1 / 2, length=1 / 3, different=1 / 2)
HIGH = Supposed(said=2, stated=3 / 2, length=3, hits=False)


def end(
    kinds: Mapping[str, Used], supposed: Supposed, heard: Mapping[str, Used], prompts: int
) -> dict[str, Used]:
    """The forecast `kinds` of `prompts` prompts at an end; how much the judge writes in `heard` is known.

    Lengths of answers change the calls themselves, and must be counted anew. A prompt is one, however many
    models answer it: they share its extracts.
    """
    found = {}
    for kind, one in kinds.items():
        calls = supposed.stated if kind == "support" else 1.0
        said = supposed.stated if kind == "statements" else supposed.said
        prompt = one.prompt_tokens * calls
        if kind == "completeness" and "extract" in kinds and "extract" not in heard:
            # Each extract of a prompt stands in each of its ratings.
            prompt += (supposed.said - 1) * kinds["extract"].completion_tokens * one.calls / prompts
        cached = one.cached_tokens * calls if supposed.hits or kind in heard else 0.0
        written = one.completion_tokens * calls * (1.0 if kind in heard else said)
        found[kind] = Used(one.calls * calls, prompt, min(cached, prompt), written)
    return found


def scaled(kinds: Mapping[str, Used], few: Mapping[str, Used], point: Mapping[str, Used]) -> dict[str, Used]:
    """`kinds` if their rows differed as `few` differ from `point`, which are forecasts of the same rows."""
    found = {}
    for kind, one in kinds.items():
        there, usual = vars(few.get(kind, Used())), vars(point[kind])
        found[kind] = Used(**{k: n * there[k] / usual[k] if usual[k] else n for k, n in vars(one).items()})
    return found


def total(*parts: Mapping[str, Used]) -> Used:
    """All kinds together."""
    every = Used()
    for part in parts:
        for one in part.values():
            every.add(one)
    return every
