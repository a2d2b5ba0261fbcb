"""A reply's embeddings become vectors with a direction, or nothing."""

import base64
from typing import Any

import numpy as np
import pytest

from lr_ray.llm.replies import Bad, parsed, read_vectors, slim
from lr_ray.llm.vectors import packed, unpacked


def item(index: Any, embedding: Any) -> dict[str, Any]:
    return {"index": index, "embedding": embedding}


def encoded(*numbers: float) -> str:
    return base64.b64encode(np.array(numbers, np.float32).tobytes()).decode()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([3.0, 4.0], [0, 2]),
        (encoded(3, 4), encoded(0, 2)),
        # Neither what float16 cannot hold is lost, nor what would make a square of float32 infinite or zero.
        ([3e30, 4e30], [0.0, 1e38]),
        (encoded(3e-30, 4e-30), [0.0, 1e-45]),
    ],
)
def test_vectors_come_back_in_order_and_of_unit_length(first: Any, second: Any) -> None:
    reply = slim({"data": [item(1, second), item(0, first)], "usage": {"prompt_tokens": 3}})
    found = read_vectors(reply, 2)
    assert found.dtype == np.float32
    assert found == pytest.approx(np.array([[0.6, 0.8], [0.0, 1.0]]), abs=1e-3)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "x",
        {"index": 0},
        [],
        [item(0, None)],
        [item(0, [])],
        [item(0, 1.0)],
        [item(0, [None, None])],
        [item(0, [1.0, None])],
        [item(0, ["1.0", "2.0"])],
        [item(0, [True, False])],
        [item(0, [[1.0, 2.0], [3.0, 4.0]])],
        [item(0, [0.0, 0.0])],
        [item(0, [float("nan"), 1.0])],
        [item(0, [float("inf"), 1.0])],
        [item(0, [1e39, 1.0])],
        [item(0, [10**400])],
        [item(0, [1.5, 10**400])],
        [item(0, encoded(float("nan"), 1.0))],
        [item(0, encoded(float("-inf"), 1.0))],
        [item(0, encoded(0.0, 0.0))],
        [item(0, "")],
        [item(0, "AAA")],
        [item(0, "####")],
        [item(0, [1.0, 2.0]), item(1, [1.0])],
        [item(0, [1.0]), item(0, [2.0])],
        [item(1, [1.0]), item(2, [2.0])],
        [item("a", [1.0]), item(1, [1.0])],
        [item(float("nan"), [1.0])],
        [{"embedding": [1.0]}],
    ],
    ids=repr,
)
def test_what_has_no_direction_is_no_vector(data: Any) -> None:
    assert packed(data) is None
    with pytest.raises(Bad, match="did not give one usable vector a text") as caught:
        read_vectors(slim({"data": data}), 1)
    assert caught.value.kind == "invalid"


def test_numbers_of_the_lenient_parser_are_no_vectors_either() -> None:
    for number in (b"1e400", b"1" + b"0" * 400, b"NaN", b"-Infinity"):
        assert slim(parsed(b'{"data":[{"index":0,"embedding":[%s, 1]}]}' % number))["vectors"] is None


def test_one_vector_too_few_or_too_many() -> None:
    reply = slim({"data": [item(0, [1.0]), item(1, [1.0])]})
    assert read_vectors(reply, 2).shape == (2, 1)
    for number in (1, 3):
        with pytest.raises(Bad, match="one usable vector a text"):
            read_vectors(reply, number)


@pytest.mark.parametrize(
    "kept", [[[1e30, 1.0]], [[float("nan"), 1.0]], [[0.0, 0.0]], [[1.0], [1.0, 2.0]], [[]]]
)
def test_what_a_ledger_holds_is_checked_too(kept: list[list[float]]) -> None:
    with np.errstate(over="ignore"):
        texts = [base64.b64encode(np.array(one).astype(np.float16).tobytes()).decode() for one in kept]
    with pytest.raises(Bad, match="one usable vector a text"):
        read_vectors({"vectors": texts}, len(texts))


def test_what_a_ledger_holds_is_brought_to_unit_length() -> None:
    text = base64.b64encode(np.array([3.0, 4.0], np.float16).tobytes()).decode()
    assert unpacked([text]) == pytest.approx(np.array([[0.6, 0.8]]))
