"""Near-duplicate questions: shared triples of words, found among many by MinHash.

A text's triples are of lower-case words, and of characters where it is Chinese. Candidates are found by
locality-sensitive hashing (Broder 1997; bands as in Leskovec et al., Mining of Massive Datasets, ch. 3),
and each is then compared in full, so that none is taken for a duplicate by chance.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

HASHES, BAND = 256, 4  # 64 bands: pairs as alike as 0.7 all meet in one but 3 in 10^8, as 0.5 all but 2%

_WORD = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]|[^\\W\u3400-\u4dbf\u4e00-\u9fff]+")


def triples(text: str) -> frozenset[tuple[str, ...]]:
    """The triples of neighbouring words; of a shorter text all its words as one."""
    words = _WORD.findall(text.lower())
    return frozenset(tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2)))


def alike(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Jaccard's index of two sets, 0 to 1."""
    return len(one & other) / len(one | other)


def duplicates(texts: Sequence[str], share: float) -> set[int]:
    """Places of the texts that share at least `share` of all triples with an earlier one that is kept."""
    sets = [triples(text) for text in texts]
    seen: dict[bytes, list[int]] = {}
    dropped: set[int] = set()
    factors = np.random.default_rng(0).integers(0, 1 << 63, (2, HASHES), dtype=np.uint64)
    for place, found in enumerate(sets):
        bands = _bands(found, factors)
        near = {other for band in bands for other in seen.get(band, ())}
        if any(alike(found, sets[other]) >= share for other in near):
            dropped.add(place)
            continue
        for band in bands:
            seen.setdefault(band, []).append(place)
    return dropped


def _bands(found: Iterable[tuple[str, ...]], factors: np.ndarray) -> list[bytes]:
    digests = (hashlib.blake2b(" ".join(one).encode("utf-8", "replace"), digest_size=4) for one in found)
    values = np.array([int.from_bytes(one.digest(), "big") for one in digests], np.uint64)
    # Multiply-shift: the high half of a product modulo 2^64 is a hash of its own for each odd factor.
    hashed = (values[:, None] * (factors[0] | np.uint64(1)) + factors[1]) >> np.uint64(32)
    least = hashed.min(axis=0).astype(np.uint32)
    return [bytes([i]) + least[i * BAND : (i + 1) * BAND].tobytes() for i in range(HASHES // BAND)]
