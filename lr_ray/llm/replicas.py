"""One process's view of one replica: its share paced out call by call, and whether the replica is well."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from lr_ray.llm import told
from lr_ray.llm.lease import INF, Lease, Seen

SLACK = 0.1  # seconds of its rate that a late process may catch up on
FAILURES = 5  # in a row, and a replica is set aside
SLOWER = 4.0  # times the quickest replica's time to answer, and it is set aside too
SAMPLES = 20  # answers before a replica can be called slow
ASIDE, LONGEST_ASIDE = 1.0, 60.0  # seconds; doubled while trials fail
HEED_EVERY = 0.02  # seconds between looks at an answer's headers
SMOOTH = 0.1  # weight of the newest time to answer


@dataclass(slots=True)
class Health:
    """Of one replica: how long it takes, and whether it is set aside; `trial`: one call at a time shows."""

    latency: float = 0.0
    answers: int = 0
    failures: int = 0
    aside_until: float = -INF
    aside_for: float = ASIDE
    trial: bool = False

    def answered(self, seconds: float, quickest: float, now: float) -> None:
        """A call took `seconds`; `quickest` is the usual time of the quickest other replica (or inf)."""
        if now < self.aside_until:
            return  # it began before
        self.failures = 0
        weight = 1.0 if self.trial or not self.answers else SMOOTH
        self.latency += weight * (seconds - self.latency)
        self.answers += 1
        if self.latency > SLOWER * quickest and (self.trial or self.answers >= SAMPLES):
            self._set_aside(now)
        elif self.trial:
            self.trial, self.aside_for, self.answers = False, ASIDE, 1

    def broke(self, now: float) -> None:
        """A call failed in a way that says something of the replica."""
        self.failures += 1
        if now >= self.aside_until and (self.trial or self.failures >= FAILURES):
            self._set_aside(now)

    def _set_aside(self, now: float) -> None:
        self.aside_until, self.trial = now + self.aside_for, True
        self.aside_for = min(LONGEST_ASIDE, 2 * self.aside_for)

    def well(self, now: float, in_flight: int) -> bool:
        """Whether a call may go there."""
        return not self.trial or (now >= self.aside_until and not in_flight)


class Lane:
    """The lease for one replica, spent call by call. Times are seconds of the event loop's clock."""

    def __init__(self, lease: Lease, now: float) -> None:
        self.lease, self.health = lease, Health()
        self.in_flight = 0
        self.paused_until = self._asked_until = -INF
        self.braked_until = -INF
        self.mean_tokens = 0.0
        self._seen = Seen(lease.epoch)
        self._since = now
        self._next_request = self._next_tokens = self._heed_at = now

    def ready_at(self, now: float) -> float:
        """When the next call may begin: `now` or before, later, or inf when another must end first."""
        if self.in_flight >= self.lease.window:
            return INF
        return max(self._next_request, self._next_tokens, self.paused_until, self.braked_until)

    def grant(self, tokens: float, now: float) -> None:
        """A call of about `tokens` (0: like those before) begins."""
        lease, seen = self.lease, self._seen
        tokens = tokens or self.mean_tokens
        self.in_flight += 1
        seen.granted += 1
        seen.tokens += tokens
        self._next_request = max(self._next_request, now - SLACK) + 1 / lease.requests
        self._next_tokens = max(self._next_tokens, now - SLACK) + tokens / lease.tokens

    def answered(self, tokens: float, guess: float, headers: Mapping[str, str], now: float) -> None:
        """A call ended that used `tokens` (0: unknown) where `guess` was taken for it."""
        if tokens:
            if not guess:
                guess = self.mean_tokens
                self.mean_tokens += (tokens - guess) * (SMOOTH if guess else 1.0)
            self._next_tokens += (tokens - guess) / self.lease.tokens
            self._seen.tokens += tokens - guess
        if headers and now >= self._heed_at:
            self._heed(headers, now)

    def refused(
        self,
        epoch: int,
        tokens: float,
        after: float,
        retry_after: float | None,
        headers: Mapping[str, str],
        now: float,
    ) -> None:
        """A call begun under `epoch` was refused for its rate, `after` seconds after it began."""
        seen = self._seen
        if epoch == seen.epoch:
            seen.refused += 1
            seen.refused_tokens += tokens or self.mean_tokens
            seen.refused_after += after
        if headers:
            self._heed(headers, now)
        if retry_after:
            self._asked_until = max(self._asked_until, now + retry_after)
            if not self.lease.noisy:
                self.pause(retry_after, now)

    def _heed(self, headers: Mapping[str, str], now: float) -> None:
        self._heed_at = now + HEED_EVERY
        self._seen.told = told.mentions(headers) or self._seen.told

    def pause(self, wait: float, now: float) -> None:
        """No call begins for `wait` seconds."""
        self.paused_until = max(self.paused_until, now + wait)

    def take(self, hungry: float, now: float) -> Seen:
        """What was seen since the last time; calls had to wait in `hungry` seconds of it."""
        seen, self._seen = self._seen, Seen(self.lease.epoch)
        seen.elapsed, seen.hungry, self._since = now - self._since, hungry, now
        seen.in_flight, seen.lease = self.in_flight, self.lease
        seen.pause = max(0.0, self._asked_until - now)
        return seen

    def adopt(self, lease: Lease, now: float) -> None:
        """Go on under `lease`."""
        if lease.epoch != self.lease.epoch:
            # What began since the report began under the lease that is now history.
            self._seen, self._since = Seen(lease.epoch), now
            self._next_request = max(self._next_request, now)
            self._next_tokens = max(self._next_tokens, now)
        soonest = 1 / lease.requests
        if math.isfinite(soonest) and self._next_request - now > soonest:
            self._next_request = now + soonest
        if self._next_tokens > now and math.isfinite(self.lease.tokens):
            # A debt in tokens stays one in tokens, not in seconds; without a limit there is none.
            self._next_tokens = now + (self._next_tokens - now) * self.lease.tokens / lease.tokens
        self.lease, self.braked_until = lease, -INF
        if lease.pause > 0:
            self.pause(lease.pause, now)
