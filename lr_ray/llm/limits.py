"""What an endpoint allows, learned from what it refuses: pure, with the time passed in.

Nobody says whether the endpoint limits requests a second, tokens a second or calls in flight, so a limit of
each is kept. Either the rates or the calls in flight are held, whichever explains the refusals.

- A refusal cuts, once a burst: what was begun before a cut cannot cut again.
- Rates are cut to what was admitted on average since the cut before. For a bucket that was empty at both
  ends this is the limit itself, whatever the bucket's size. Right after a cut, when the limit must have
  fallen, the share refused says how far. Calls in flight are cut to those admitted.
- From there a limit creeps, then takes off: its excess over the last known limit doubles again and again, so
  that a small probe comes first and a doubled limit is still found within seconds (after CUBIC, RFC 9438).
- A limit that is not used does not grow; of the two rates the one that is not the bottleneck floats to about
  twice what is used, where it is in nobody's way and is not blamed for a refusal.
"""

import math
from collections import deque
from collections.abc import Mapping

from lr_ray.llm.demand import Usage
from lr_ray.llm.dimension import Dimension
from lr_ray.llm.lease import INF, Lease, Seen
from lr_ray.llm.noise import Noise
from lr_ray.llm.told import Told

START = 16  # calls in flight before anything is known
TIGHT = 0.9  # of a rate must be in use for a refusal to be blamed on it
LEAST_RATE = 0.2  # a second
FRESH, EVIDENCE = 1.0, 25  # seconds an epoch is young; tries it needs by then before it cuts again
SHUT_AFTER = 8  # refusals and not one admitted
LONGEST_SHUT = 8.0  # seconds
REQUESTS_A_PROBE = 30  # probing is slower where fewer requests than this a second pay for its refusals
PAUSES_A_PROBE = 4  # and where a refusal costs a pause, in which places stay empty
SLOWEST = 8.0  # times
DRAINED = 0.75  # of the places that were allowed are in use, and no more: the others came free and stayed so
DOUBT, SWITCH, FELL = 0.3, 0.75, 0.2  # weight of the newest refusal; from here; a share that means a fall
KNOWN = 1.02  # times what was proven
FLOAT = 1.5  # times the rate in use is left while calls in flight are held
TRIAL = 20.0  # seconds in which these must prove to be what is limited; doubled while they do not
SAMPLE_EVERY, SAMPLES = 0.1, 50  # seconds; of calls in flight over their rate
CROWD = 1.1  # times the mean of the samples is unusual


class Limits:
    """The limits of one replica for all processes together.

    `ceiling` is of calls in flight; `requests` and `tokens` a second are upper limits that the user knows.
    """

    def __init__(self, ceiling: float, requests: float = INF, tokens: float = INF) -> None:
        self.requests = Dimension(INF, requests)
        self.tokens = Dimension(INF, tokens)
        self.window = Dimension(INF, ceiling, dip=1.0)
        self.window.start(min(START, ceiling) / 2)
        self.usage = Usage()
        self.epoch = 0
        self.noise = Noise()
        self.paused_until = -INF
        self._told = Told()
        self._behind: set[str] = set()
        self._heard_at = self._sample_at = -INF
        self._refusal_delay = 0.0
        self._shut = 0
        self._pace = 1.0  # seconds of demand that count as one for growth
        self._by_window, self._ramped, self._doubts, self._crowding = True, True, 0.0, 0.0
        self._trials, self._trial_from, self._trial_at = 0, -INF, -INF
        self._crowds: deque[float] = deque(maxlen=SAMPLES)
        self._windows: deque[float] = deque([self.window.limit], maxlen=2)

    def hear(self, name: str, seen: Seen, now: float) -> None:
        """Take in what a process saw since it was last heard of; `now` in seconds of any steady clock."""
        self.usage.take(name, seen, self.epoch)
        self._grow(now)
        if seen.told:
            self._heed(seen.told)
        if seen.pause > 0 and not self.noise.share:
            self.paused_until = max(self.paused_until, now + seen.pause)
        if seen.refused:
            self._crowding = max(self._crowding, self._crowded())
            self._refusal_delay += DOUBT * (seen.refused_after / seen.refused - self._refusal_delay)
        if self._by_window and self.epoch:
            # No more than a guard: where places are what is limited, rates must not be.
            self.requests.set(max(START, FLOAT * self.usage.requests))
        if not self._behind and (self.usage.refused or self.noise.share):
            self._judge(now, seen.pause)

    def dealt(self, name: str) -> int:
        """The epoch for the lease that process `name` gets now.

        As long as others still go on under the limits of before, refusals say nothing of the new ones: an
        epoch that counts begins when all have them.
        """
        if self._behind:
            self._behind.discard(name)
            if not self._behind:
                self._begin()
        return self.epoch

    def forget(self, name: str) -> None:
        """A process is gone."""
        self.usage.processes.pop(name, None)
        self._behind.discard(name)

    def inherit(self, held: Lease, in_flight: int) -> None:
        """Go on from the sum of what processes hold, and have in flight, when what was learned is lost."""
        self.epoch = max(self.epoch, held.epoch + 1)
        self._by_window, self._ramped = in_flight >= TIGHT * held.window, False
        pairs = ((self.requests, held.requests), (self.tokens, held.tokens), (self.window, held.window))
        for dimension, limit in pairs:
            if 0 < limit < INF:
                dimension.set(limit)

    def _begin(self) -> None:
        self.epoch += 1
        self.usage.begin()

    def _grow(self, now: float) -> None:
        before, self._heard_at = self._heard_at, now
        if before == -INF or now < self.paused_until:
            return
        if now >= self._sample_at:
            self._sample_at = now + SAMPLE_EVERY
            self._crowds.append(self._crowd())
            self._windows.append(self.window.limit)
        usage = self.usage
        seconds = min(1.0, now - before) * usage.hungry / self._pace
        self.requests.grow(seconds, usage.requests)
        self.tokens.grow(seconds, usage.tokens)
        self.window.grow(seconds, usage.in_flight)

    def _heed(self, headers: Mapping[str, str]) -> None:
        for dimension, told in zip((self.requests, self.tokens), self._told.read(headers), strict=True):
            if told is not None:
                dimension.told(told)

    def _judge(self, now: float, pause: float) -> None:
        """Cut, where the epoch's refusals are evidence enough."""
        usage, age = self.usage, self.usage.age
        granted, refused = usage.granted, usage.refused
        # Of the newest tries it is not known yet.
        ripe = max(granted * max(0.0, 1 - self._refusal_delay / age) if age else 0.0, refused)
        young, shut = age < FRESH and self.epoch > 0, refused >= max(granted, SHUT_AFTER)
        few = not shut and (ripe < EVIDENCE or not usage.all_heard)
        if young and few and age < FRESH / 2 + self._refusal_delay:
            return
        if not shut and self._noisy(refused, ripe, now):
            return
        share = max(0.0, refused / ripe - self.noise.share) / (1 - self.noise.share)
        # Where few tries speak, the share they make certain.
        share = min(0.5, max(0.0, share - math.sqrt(share * (1 - share) / ripe)))
        self._close(shut, now)
        self.paused_until = max(self.paused_until, now + pause)
        self._doubt(share, young, now)
        if self._by_window:
            self._cut_window(share, young)
        else:
            self._cut_rates(share, young)
        self._remember(share, young)
        cost = pause * (PAUSES_A_PROBE if self._by_window else 1)
        self._pace = min(SLOWEST, max(1.0, REQUESTS_A_PROBE / max(usage.requests, LEAST_RATE), cost))
        self._begin()
        self._behind = set(usage.processes)

    def _noisy(self, refused: int, ripe: float, now: float) -> bool:
        """Whether a cut would be of no use: what is refused is refused whatever is asked."""
        noise, asked, grown = self.noise, self.usage.requests, self._grown
        if ripe and not noise.explains(refused, ripe, asked):
            if not noise.cut(refused, ripe, asked, grown, now):
                return False
            self._return()
        elif ripe < EVIDENCE or self.usage.age < FRESH:
            return True
        else:
            noise.heard(refused, ripe, asked, grown)
        self.usage.begin()
        return True

    def _return(self) -> None:
        """Take back the cuts that were of no use, so far as they are known to have been."""
        self._pace = 1.0
        back = self.noise.least * max(self.usage.age, FRESH) / max(self.usage.granted, 1)
        if back > 1:
            for limit in (self.requests, self.tokens, self.window):
                if limit.anchor < INF:
                    limit.set(back * limit.limit)

    @property
    def _grown(self) -> bool:
        """Whether more is allowed than was known to be admitted."""
        if self._by_window:
            return int(self.window.limit) > int(self.window.anchor)
        return any(rate.anchor < rate.limit < INF for rate in (self.requests, self.tokens))

    def _close(self, shut: bool, now: float) -> None:
        """An endpoint that admits nothing is left alone for a while, and then longer."""
        self._shut = self._shut + 1 if shut else 0
        if shut:
            self.paused_until = max(self.paused_until, now + min(LONGEST_SHUT, 2.0 ** (self._shut - 3)))

    def _cut_window(self, share: float, young: bool) -> None:
        # What is in flight was admitted, and was all that could be ...
        now = max(self.usage.in_flight, self.window.limit / 4)  # fewer may be in flight after a pause
        if self._ramped and not young:
            # ... but for those of a ramp whose refusal is still on its way,
            self.window.cut(min(now, self._windows[0]), 1.0, search=True)
        elif young and not self._ramped and now > DRAINED * self.window.limit:
            # ... or those that have still to drain, when places were taken away.
            self.window.cut(now * (1 - share), 1.0)
        else:
            self.window.cut(now, 1.0)

    def _rates(self) -> list[tuple[Dimension, float, float]]:
        """Each rate with what of it is used, and what was admitted in this epoch."""
        requests, tokens = (admitted / (1 - self.noise.share) for admitted in self.usage.admitted())
        return [(self.requests, self.usage.requests, requests), (self.tokens, self.usage.tokens, tokens)]

    def _cut_rates(self, share: float, young: bool) -> None:
        rates = self._rates()
        tight = max(used / rate.limit for rate, used, _ in rates)
        for rate, used, admitted in rates:
            if rate.limit == INF:
                if admitted > 0:  # else nobody knows the calls' tokens
                    rate.cut(admitted, LEAST_RATE)
            elif used / rate.limit >= min(TIGHT, tight):
                rate.lower(used, admitted, share, young, LEAST_RATE)

    def _remember(self, share: float, young: bool) -> None:
        for rate, _, admitted in self._rates():
            if not young:
                rate.proven = admitted
            elif share >= FELL:
                rate.proven = 0.0  # what was allowed before is not any more

    def _doubt(self, share: float, young: bool, now: float) -> None:
        """Whether calls in flight or rates are what the endpoint limits.

        Where calls in flight are, none is refused while there are no more of them than were admitted before
        (unless the limit fell, and then many are), and one is refused whenever there are more than usual.
        """
        weight = DOUBT
        if self._by_window:
            # Places end a ramp at once; when many are refused after one, something else had hidden it.
            hidden = young and self._ramped and share >= FELL
            sign = float(hidden or int(self.window.limit) <= int(self.window.anchor))
            weight = 2 * DOUBT if hidden else DOUBT if share < FELL else 0.0
            self._ramped = self._ramped if young else self.window.ramping
        else:
            known = all(rate.limit <= KNOWN * rate.proven for rate, *_ in self._rates())
            sign = max(float(young and known and share < FELL), self._crowding)
        self._crowding = 0.0
        self._doubts += weight * (sign - self._doubts)
        if self._doubts >= SWITCH and (self._by_window or now >= self._trial_at):
            self._switch(now)

    def _switch(self, now: float) -> None:
        self._doubts, self._by_window = 0.0, not self._by_window
        if self._by_window:
            self._trial_from, self._ramped = now, False
            self.tokens.release()
            return
        self._trials = self._trials + 1 if now - self._trial_from < TRIAL else 0
        self._trial_at = now + TRIAL * 2.0**self._trials
        self.window.start(self.window.limit)
        for rate, *_ in self._rates():
            if 0 < rate.proven < INF:
                rate.set(rate.proven)

    def _crowded(self) -> float:
        """Whether more are in flight than such a rate usually brings: from 0, no, to 1, more than ever."""
        now = self._crowd()
        if not self._crowds or now <= CROWD * sum(self._crowds) / len(self._crowds):
            return 0.0
        return max(0.0, 2 * sum(n < now for n in self._crowds) / len(self._crowds) - 1)

    def _crowd(self) -> float:
        return self.usage.in_flight / max(self.usage.requests, LEAST_RATE)
