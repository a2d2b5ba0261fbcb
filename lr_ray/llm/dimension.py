"""One limit of an endpoint, as far as it is known: how it grows while nothing is refused, and is cut."""

import math

from lr_ray.llm.lease import INF
from lr_ray.llm.told import Said

DIP = 0.985  # of the measured limit right after a cut: room for a bucket to fill, and for noise
TOLD = 0.99  # of a limit that the endpoint names is used
CREEP = 2.0  # seconds from the dip to the measured limit
STEP, DOUBLING = 0.01, 0.7  # then an excess of 1% that doubles every so many seconds
USED = 0.5  # of a limit must be in use for it to grow
RAMP = 1.1  # a limit this much over what was admitted lately was on its way up
RAMP_CUT = 0.7  # of a ramp remains: it was seen late
SEARCH = CREEP + 3 * DOUBLING  # the age at which a limit goes on after a ramp: 7% up, and quicker soon


class Dimension:
    """One limit: the `anchor` (inf: nothing known) and the seconds it was used since, which raise it.

    `most` is never exceeded; `proven` is what was admitted on average in the last epoch that was not young.
    """

    def __init__(self, anchor: float, most: float, dip: float = DIP) -> None:
        self.anchor, self.most, self.dip = anchor, most, dip
        self.age = 0.0
        self.proven = INF
        self._known = most

    @property
    def limit(self) -> float:
        if self.anchor == INF:
            return self.most
        return min(self.most, self.anchor * self._climb())

    @property
    def ramping(self) -> bool:
        """Whether it is far over what was known when it was cut last."""
        return self.limit > RAMP * self.anchor

    def _climb(self) -> float:
        if self.age < CREEP:
            return self.dip + (1 - self.dip) * self.age / CREEP
        return 1 + STEP * (2.0 ** min(20.0, (self.age - CREEP) / DOUBLING) - 1)

    def grow(self, seconds: float, used: float) -> None:
        """It was in demand for `seconds`, with `used` of it in use."""
        if self.anchor != INF and self.limit < self.most and used >= USED * self.limit:
            self.age += seconds

    def cut(self, anchor: float, least: float, *, search: bool = False) -> None:
        """Start again from `anchor`, not above the present limit; quickly, to `search` what a ramp passed."""
        self.anchor, self.age = max(least, min(self.limit, anchor)), 0.0
        if search:
            self.age = SEARCH
            self.anchor /= self._climb()

    def lower(self, used: float, admitted: float, share: float, young: bool, least: float) -> None:
        """Cut a rate, `used` lately and `admitted` on average in the epoch, by the `share` refused in it."""
        now = min(self.limit, max(used, admitted))
        if young:
            # Over what was proven, that is a floor: a bucket that had filled hid how far a ramp went.
            self.cut(max(now * (1 - share), self.proven if now > RAMP * self.proven else 0.0), least)
        elif now <= RAMP * admitted:
            self.cut(admitted, least)
        else:
            self.cut(max(admitted, RAMP_CUT * now), least, search=True)

    def set(self, anchor: float) -> None:
        """Hold at `anchor`, and grow from there."""
        self.anchor, self.age = anchor, CREEP

    def start(self, anchor: float) -> None:
        """Begin at twice `anchor`, and double from there."""
        self.anchor, self.age = anchor, CREEP + DOUBLING * math.log2(1 + 1 / STEP)

    def release(self) -> None:
        """Nothing is known of it."""
        self.anchor, self.age = INF, 0.0

    def told(self, said: Said) -> None:
        """The endpoint names its limit: go there, and not beyond; or, for now, only not beyond."""
        self.most = min(self._known, said.rate * TOLD)
        if not said.for_now:
            self.set(said.rate)
