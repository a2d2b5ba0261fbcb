"""A context cut into chunks of so many tokens: without overlap, and without losing a character."""

import re
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lr_ray import models
from lr_ray.rows import Passage

BYTES_A_TOKEN = 4  # of the built-in rule

_ENDS = (re.compile(r"[.!?]\s+|[。！？]\s*|\n+"), re.compile(r"\s+"))  # of sentences, of words

Cumulative = npt.NDArray[np.int64]


class Measure(NamedTuple):
    """Tokens of a text: `upto(text)[i]` sums, in units of 1/`unit` token, over the first i characters."""

    upto: Callable[[str], Cumulative]
    unit: int


def built_in(text: str) -> Cumulative:
    """One token per four UTF-8 bytes, counted in bytes."""
    if text.isascii():
        return np.arange(len(text) + 1, dtype=np.int64)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])


def measure(tokenizer: str | None) -> Measure:
    """The measure of a Hugging Face tokenizer folder; none: the built-in rule."""
    return Measure(built_in, BYTES_A_TOKEN) if tokenizer is None else _of_tokenizer(tokenizer)


@cache
def _of_tokenizer(folder: str) -> Measure:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(
        models.local(folder, weights=False), trust_remote_code=False
    )
    if not tokenizer.is_fast:
        raise ValueError(f"judge.tokenizer: {folder} has no fast tokenizer, which knows where its tokens lie")

    def upto(text: str) -> Cumulative:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = np.array([start for start, _ in encoded["offset_mapping"]], np.int64)
        # Several tokens of one character start at the same place, and so are never parted.
        return np.concatenate([[0], np.cumsum(np.bincount(starts, minlength=len(text))[: len(text)])])

    return Measure(upto, 1)


def split(text: str, tokens: int, measured: Measure) -> list[Passage]:
    """Chunks of at most `tokens` tokens whose texts add up to `text`.

    A chunk ends where in its second half the last sentence ends, or else the last word.
    """
    upto, most = measured.upto(text), tokens * measured.unit
    chunks: list[Passage] = []
    start = 0
    while start < len(text):
        end = max(start + 1, int(np.searchsorted(upto, upto[start] + most, side="right")) - 1)
        if end < len(text):
            end = _good_end(text, start + (end - start) // 2, end)
        chunks.append({"position": start / len(text), "text": text[start:end]})
        start = end
    return chunks


def _good_end(text: str, least: int, end: int) -> int:
    """The last place after `least`, up to `end`, where a sentence ends; else a word; else `end`."""
    for boundary in _ENDS:
        ends = [match.end() for match in boundary.finditer(text, least, end)]
        if ends:
            return ends[-1]
    return end
