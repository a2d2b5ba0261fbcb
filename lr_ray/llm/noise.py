"""Refusals that come whatever is asked: a cut needs evidence that less would be refused less.

Behind some gateways each call meets a backend of its own, and now and then one that is busy: a share of the
calls is refused at any rate. Limits that are cut for each of them are cut for ever, and nothing is won.

A limit refuses nothing while no more is asked than it has admitted before. So where refusals come then, cut
after cut, few of them for long or many far below what was admitted not long ago, they are supposed to be
noise, and cause no cut. The test is what comes of it: more is asked, and where with that more is refused,
there was a limit after all.
"""

import math
from collections import deque

CUTS, IDLE_CUTS = 5, 4  # of the last cuts so many came although nothing had grown: suspicious
FEW, LONG = 0.1, 5.0  # a share that is tried out where the cuts took so many seconds
FAR = 0.4  # of what was admitted: there any share is tried out
RECENT = 30.0  # seconds in which what was admitted comes to count for half
LEAST, MOST = 0.01, 0.5  # a share under or over it is no noise
TRIES = 10  # of which a share can be told
SURE = 3.0  # standard deviations beyond the share, and it is more than noise
MORE = 2.0  # times what was asked at first: it is noise
HOLD = 30.0  # seconds without suspicion after a false one; doubled each time
NEWEST, DOUBTFUL = 0.2, 0.05  # weight of the newest share


class Noise:
    """`share` of the tries is refused whatever is asked: 0 until it shows. Times are of any steady clock."""

    def __init__(self) -> None:
        self.share = 0.0
        self._cuts: deque[tuple[float, bool, int, float]] = deque(maxlen=CUTS)
        self._until = 0.0  # requests a second, for as long as it is not proven
        self._not_before, self._hold = -math.inf, HOLD
        self._admitted, self._at = 0.0, 0.0

    @property
    def least(self) -> float:
        """Requests a second that no limit is thought to refuse, by what was admitted not long ago."""
        return FAR * self._admitted

    def _idle(self, asked: float, grown: bool) -> bool:
        return not grown or asked <= self.least

    def explains(self, refused: int, tries: float, asked: float) -> bool:
        """Whether so many of `tries` refused are no more than noise, at `asked` requests a second."""
        if not self.share:
            return False
        share = MOST if asked <= self.least else self.share
        return refused <= 1 + share * tries + SURE * math.sqrt(share * (1 - share) * tries)

    def heard(self, refused: int, tries: float, asked: float, grown: bool) -> None:
        """It explained `refused`, at `asked` requests a second; `grown`: more than was known was allowed."""
        more = refused / tries - self.share
        # Where more is allowed than was known, a larger share may be the beginning of a limit.
        self.share += NEWEST * more if self._idle(asked, grown) else min(0.0, DOUBTFUL * more)
        if self.share < LEAST:
            self.share = 0.0
        if asked >= self._until:
            self._until = 0.0

    def cut(self, refused: int, tries: float, asked: float, grown: bool, now: float) -> bool:
        """A cut is due. Whether it would be of no use, as the last ones."""
        if self._until:
            # What was taken for noise grew with what was asked.
            self.share = self._until = 0.0
            self._not_before, self._hold = now + self._hold, 2 * self._hold
            self._cuts.clear()
        if self.share:
            return False  # a limit besides
        self._admitted *= 0.5 ** ((now - self._at) / RECENT)
        self._admitted, self._at = max(self._admitted, asked * (1 - min(1.0, refused / tries))), now
        self._cuts.append((now, self._idle(asked, grown), refused, tries))
        idle = [(refused, tries) for _, idle, refused, tries in self._cuts if idle]
        tries = sum(tries for _, tries in idle)
        share = sum(refused for refused, _ in idle) / max(1.0, tries)
        slowly = share <= FEW and now - self._cuts[0][0] >= LONG
        if now < self._not_before or len(idle) < IDLE_CUTS or tries < TRIES or share > MOST:
            return False
        if not slowly and asked > self.least:
            return False
        self.share, self._until = share, MORE * asked
        self._cuts.clear()
        return True
