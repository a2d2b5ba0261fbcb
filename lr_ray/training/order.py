"""Which examples an optimizer step sees: shuffled, mixed from two sets, neighbours in length together.

A pure function of the numbers of examples, their lengths, a seed and the step: a resumed run goes on at
the very example, and no batch depends on the number of workers.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

_WINDOW = 512  # examples that are sorted by length together; what lies further apart never meets
_MAIN, _EXTRA, _GROUPS = range(3)
Part = Callable[[int], np.ndarray]


class Order:
    """The order of examples 0 … main - 1 and, mixed in, of the `extra` examples numbered after them.

    A pass ("epoch") has every main example once and as many extra ones as make `ratio` of the pass; the
    extra ones have an order and passes of their own, so that the next epoch goes on with others.

    Args:
        main: examples of the main set, at least one.
        seed: changes every order.
        extra: examples of the second set.
        ratio: share of an epoch that comes from the second set, 0 to below 1.
        lengths: tokens of each example, main and extra; needed for `bucket`.
        bucket: neighbours in length that stand together in the order; 1: length does not matter.

    Raises:
        ValueError: the second set is too small for its share.
    """

    def __init__(
        self,
        main: int,
        seed: int,
        *,
        extra: int = 0,
        ratio: float = 0.0,
        lengths: Sequence[int] = (),
        bucket: int = 1,
    ) -> None:
        assert main > 0
        assert bucket == 1 or len(lengths) == main + extra
        self._main, self._extra, self._seed = main, extra, seed
        self._lengths, self._bucket = np.asarray(lengths), bucket
        self._mixed = round(main * ratio / (1 - ratio))
        if self._mixed > extra:
            raise ValueError(
                f"training.mix: a ratio of {ratio:g} beside {main} pairs takes {self._mixed} short ones, "
                f"training.mix.data has {extra}; lower training.mix.ratio"
            )
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    @property
    def epoch(self) -> int:
        """Examples of a pass."""
        return self._main + self._mixed

    def batch(self, step: int, size: int) -> list[int]:
        """The examples of optimizer step `step` (from 0); a batch may span two epochs."""
        return self._stretch(self._epoch, self.epoch, step * size, (step + 1) * size)

    def _make_epoch(self, number: int) -> np.ndarray:
        taken = self._stretch(self._pass, self._extra, number * self._mixed, (number + 1) * self._mixed)
        pool = np.concatenate([np.arange(self._main), np.asarray(taken, dtype=np.int64)])
        order = pool[self._random(_MAIN, number).permutation(len(pool))]
        if self._bucket == 1:
            return order
        random = self._random(_GROUPS, number)
        groups: list[np.ndarray] = []
        for start in range(0, len(order), _WINDOW):
            window = order[start : start + _WINDOW]
            ranked = window[np.argsort(self._lengths[window], kind="stable")]
            cut = [ranked[at : at + self._bucket] for at in range(0, len(ranked), self._bucket)]
            groups += [cut[place] for place in random.permutation(len(cut))]
        return np.concatenate(groups)

    def _pass(self, number: int) -> np.ndarray:
        return self._main + self._random(_EXTRA, number).permutation(self._extra)

    def _random(self, purpose: int, number: int) -> np.random.Generator:
        key = (self._seed, number) if purpose == _MAIN else (self._seed, number, purpose)
        return np.random.default_rng(key)

    @staticmethod
    def _stretch(part: Part, length: int, first: int, last: int) -> list[int]:
        """Places `first` to `last` of the parts one after another, each `length` long."""
        if first == last:
            return []
        found: list[int] = []
        for number in range(first // length, -(-last // length)):
            start = number * length
            found.extend(part(number)[max(0, first - start) : last - start].tolist())
        return found
