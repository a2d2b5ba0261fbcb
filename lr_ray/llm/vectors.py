"""Embeddings of a reply, checked, and packed for the ledger.

A vector that is empty, not finite or of no length has no direction: it would make any passage the nearest.
"""

import base64
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def packed(data: Any) -> list[str] | None:
    """The vectors of a reply's `data` in the order of their texts, each base64 of float16.

    None where they are not one usable vector for each of the first texts.
    """
    try:
        found = sorted(data, key=lambda item: item["index"])
        if [item["index"] for item in found] != list(range(len(found))):
            return None
        matrix = _units(np.stack([_vector(item["embedding"]) for item in found]))
    except (KeyError, TypeError, ValueError):
        return None
    return [base64.b64encode(row.tobytes()).decode() for row in matrix.astype(np.float16)]


def unpacked(texts: list[str]) -> Vectors:
    """What was `packed`, of unit length, shape (texts, width).

    Raises:
        ValueError: it holds something else than usable vectors of one width, as older records may.
    """
    return _units(np.stack([np.frombuffer(base64.b64decode(text), np.float16) for text in texts]))


def _vector(embedding: Any) -> Vectors:
    """One embedding, numbers or base64 of float32, as it came.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), np.float32)
    found = np.asarray(embedding)
    if found.dtype.kind not in "iuf":  # of a number over 64 bits too
        raise ValueError("not only numbers")
    with np.errstate(over="ignore"):  # is infinite then, and refused as that
        return found.astype(np.float32)


def _units(matrix: npt.NDArray[Any]) -> Vectors:
    """The rows at unit length.

    Raises:
        ValueError: there is one that has no direction.
    """
    with np.errstate(invalid="ignore"):
        wide = matrix.astype(np.float64)  # in which no square of a float32 is infinite or zero
        norms = np.linalg.norm(wide, axis=-1, keepdims=True)
    if matrix.ndim != 2 or not np.isfinite(norms).all() or not norms.all():
        raise ValueError("vectors without a direction")
    return (wide / norms).astype(np.float32)
