"""What the simulated judge's rules see of a text: its sentences, and the keys of each."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

STRONG = 2.0  # weight of a name, number or identifier; other words weigh 1

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
CJK = "\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{CJK}]+|\d+(?:[.,:]\d+)*|[^\W{CJK}]+(?:['’]s\b)?")
_STOP_WORDS = """
a an the and or but nor so if then than that this these those there here it its they them their he she
his her you your we our us i me my is are was were be been being am do does did done doing have has had
having will would shall should can could may might must of in on at by for from to with without into
onto over under as about after before between during until while because since though although not no
nor never what which who whom whose when where why how all any each both some such same other another
only also just very too more most less least many much few again once still even yet up down out off s t
"""
_STOP = set(_STOP_WORDS.split())
_OPENER = re.compile(
    r"^(?:(?:sure|hello|hi|hey|thanks|thank you|good question|great question|of course|certainly|sorry|"
    r"i am sorry|i'm sorry|i think|i believe|i hope|here (?:is|are)|in (?:short|summary)|to sum up|let me|"
    r"that is a|as an ai)\b|你好|您好|好的|当然|谢谢|抱歉|对不起|总之|以下是)",
    re.IGNORECASE,
)
UNKNOWN = re.compile(
    r"(?:do(?:es)? not|don't|doesn't|cannot|can't|unable to|hard to) "
    r"(?:know|say|tell|answer|mention|find|determine)"
    r"|not (?:enough|mentioned|stated|known)|unknown|无法(?:回答|得知|确定)|没有(?:提到|提及|说明)|不知道",
    re.IGNORECASE,
)


class Keys(NamedTuple):
    """What a sentence is about: stem → weight in order of appearance, and the words it was made of."""

    weight: dict[str, float]
    words: frozenset[str]
    order: tuple[str, ...]

    @property
    def total(self) -> float:
        return sum(self.weight.values())


@lru_cache(1 << 16)
def _stem(word: str) -> str:
    word = word.removesuffix("'s").removesuffix("’s")
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    for ending in ("ing", "ed", "ly"):
        if word.endswith(ending) and len(word) > len(ending) + 3:
            word = word[: -len(ending)]
            break
    if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word


def _is_strong(word: str, first: bool) -> bool:
    return (
        word[0].isdigit() or "_" in word or word[1:] != word[1:].lower() or (word[0].isupper() and not first)
    )


@lru_cache(1 << 15)
def keys(sentence: str) -> Keys:
    """The keys of a sentence; Chinese counts by pairs of characters."""
    weight: dict[str, float] = {}
    words: list[str] = []
    for word in _WORD.findall(sentence):
        low = word.lower()
        first = not words
        words.append(low)
        if "\u3400" <= word[0] <= "\u9fff":
            weight.update((word[i : i + 2], 1.0) for i in range(max(1, len(word) - 1)))
        elif low not in _STOP or (len(word) == 1 and word.isupper() and not first):
            stem = _stem(low)
            weight[stem] = max(weight.get(stem, 0), STRONG if _is_strong(word, first) else 1.0)
    return Keys(weight, frozenset(words), tuple(weight))


@lru_cache(1 << 12)
def sentences(text: str) -> tuple[str, ...]:
    """The sentences of a text that hold a letter."""
    parts = (part.strip() for part in _SENTENCE.split(text))
    return tuple(part for part in parts if re.search(r"[^\W\d_]", part))


def asserts(sentence: str) -> bool:
    """Whether a sentence claims something: no question, opener or confession of not knowing."""
    if sentence.endswith(("?", "？", ":", "：")) or _OPENER.match(sentence) or UNKNOWN.search(sentence):
        return False
    return len(keys(sentence).words) > 1 or bool(re.search(f"[{CJK}]{{3}}", sentence))


def overlap(part: Keys, whole: Iterable[str]) -> float:
    """How much of `part`, by weight, is among the stems of `whole`."""
    held = part.weight.keys() & whole
    return sum(part.weight[stem] for stem in held) / part.total if part.weight else 0.0
