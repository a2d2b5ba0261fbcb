"""What comes when: every example in its turn, mixes by ratio, equal work for the workers."""

import itertools

import numpy as np
import pytest

from lr_ray.training.batch import batch_at, micro_batches
from lr_ray.training.order import Order


def stream(order: Order, batches: int, size: int) -> list[int]:
    return list(itertools.chain.from_iterable(order.batch(step, size) for step in range(batches)))


def lengths(count: int, seed: int = 0) -> list[int]:
    """Tokens of prompts as LongReward's are spread: lognormal around 22k, at most 64k."""
    drawn = np.random.default_rng(seed).lognormal(np.log(22_000), 0.7, count)
    return [int(value) for value in np.minimum(drawn, 64_000)]


@pytest.mark.parametrize("bucket", [1, 3, 8])
def test_every_pass_has_every_example_once_in_its_own_order(bucket: int) -> None:
    order = Order(1000, 3, lengths=lengths(1000), bucket=bucket)
    found = stream(order, 250, 8)
    assert sorted(found[:1000]) == sorted(found[1000:]) == list(range(1000))
    assert found[:1000] != found[1000:]
    assert found != stream(Order(1000, 4, lengths=lengths(1000), bucket=bucket), 250, 8)


def test_a_resumed_run_goes_on_at_the_very_example() -> None:
    """A fresh order asked for one step in mid-epoch answers as the one that came there step by step."""
    make = {"extra": 40, "ratio": 0.2, "lengths": lengths(140), "bucket": 4}
    whole = Order(100, 5, **make)  # type: ignore[arg-type]
    batches = [whole.batch(step, 7) for step in range(60)]
    for step in (0, 17, 18, 35, 59):
        assert Order(100, 5, **make).batch(step, 7) == batches[step]  # type: ignore[arg-type]


def test_a_mix_has_its_ratio_in_every_epoch_and_goes_on_in_the_next() -> None:
    order = Order(80, 1, extra=50, ratio=0.2, lengths=lengths(130), bucket=4)
    assert order.epoch == 100
    epochs = [stream(order, 50, 10)[start : start + 100] for start in range(0, 500, 100)]
    for epoch in epochs:
        assert sorted(one for one in epoch if one < 80) == list(range(80))
        assert sum(one >= 80 for one in epoch) == 20
    # 50 short pairs in portions of 20: after 5 epochs each has come twice, and before that each once.
    short = [one for epoch in epochs for one in epoch if one >= 80]
    assert set(short[:40]) | set(short[40:60]) == set(range(80, 130))
    assert sorted(short) == sorted(2 * list(range(80, 130)))


def test_a_mix_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a ratio of 0\.5 beside 80 pairs takes 80 short ones.* has 50"):
        Order(80, 1, extra=50, ratio=0.5)


def test_without_buckets_and_mix_the_order_is_the_plain_one() -> None:
    order = Order(10, 3)
    assert [order.batch(step, 4) for step in range(5)] == [batch_at(step, 10, 4, 3) for step in range(5)]


def waiting(order: Order, tokens: list[int], workers: int, steps: int, *, rounds: bool) -> float:
    """Time that workers stand idle over the time they work, when they wait every round or every step."""
    idle = work = 0
    for step in range(steps):
        batch = order.batch(step, 16)
        parts = [micro_batches(batch, tokens, 1, workers, rank) for rank in range(workers)]
        assert sorted(index for part in parts for passes in part for index in passes) == sorted(batch)
        sums = np.array([[sum(tokens[i] for i in passes) for passes in part] for part in parts])
        if not rounds:
            sums = sums.sum(1, keepdims=True)
        idle += int((sums.max(0) * workers - sums.sum(0)).sum())
        work += int(sums.sum())
    return idle / work


def test_workers_hardly_wait_for_each_other() -> None:
    tokens = lengths(4096)
    plain, bucketed = Order(4096, 0), Order(4096, 0, lengths=tokens, bucket=8)
    before = {rounds: waiting(plain, tokens, 8, 256, rounds=rounds) for rounds in (True, False)}
    after = {rounds: waiting(bucketed, tokens, 8, 256, rounds=rounds) for rounds in (True, False)}
    assert before[True] > 0.4
    assert after[True] < 0.03
    assert after[False] < 0.02
    # Within a batch as it is, the order of the passes helps where workers wait at its end only.
    assert before[False] < 0.7 * before[True]


def test_a_batch_does_not_depend_on_the_workers() -> None:
    tokens = lengths(64)
    batch = Order(64, 0, lengths=tokens, bucket=8).batch(1, 16)
    for workers in (1, 2, 4, 8):
        parts = [micro_batches(batch, tokens, 2, workers, rank) for rank in range(workers)]
        assert len({len(part) for part in parts}) == 1
        assert sorted(i for part in parts for passes in part for i in passes) == sorted(batch)
