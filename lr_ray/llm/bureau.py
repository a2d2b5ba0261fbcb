"""The keeper of the limits: hears what each process sees, and deals out what the endpoint allows.

Pure: no Ray here. `Bureau` is one for all judge actors, or one in each process that works alone.
"""

import math
import uuid

from lr_ray.llm.lease import INF, LEASE_LASTS, Lease, Reply, Report, Seen
from lr_ray.llm.limits import Limits
from lr_ray.llm.spending import Spending

SILENT = 5.0  # seconds without a report, and a process's share goes to the others
HEADROOM = 1.3  # times its use is left to a process whose calls do not wait
TURN = 1.0  # seconds for which a process keeps one of too few places


class Bureau:
    """`ceiling` calls in flight in all, at `replicas` base URLs; `requests` and `tokens` a second in all.

    Until `inherits_until` processes may still go on under the leases of a bureau before this one.
    """

    def __init__(
        self,
        ceiling: int,
        replicas: int = 1,
        *,
        requests: float = INF,
        tokens: float = INF,
        spending: Spending | None = None,
        inherits_until: float = -INF,
    ) -> None:
        self.limits = [Limits(ceiling, requests / replicas, tokens / replicas) for _ in range(replicas)]
        self.spending = spending
        self._ceiling, self._id = ceiling, uuid.uuid4().hex
        self._heard: dict[str, float] = {}
        self._allowed: dict[str, float] = {}  # when each process was allowed money last
        self._windows: list[dict[str, int]] = [{} for _ in self.limits]
        self._of_all: dict[str, int] = {}  # places at all replicas together
        self._inherited: dict[str, list[Seen]] = {}
        self._inherits_until = inherits_until
        self._counted: dict[str, float] = {}

    def knows(self, name: str, now: float) -> bool:
        """Whether process `name` has reported and has not been silent since."""
        return now - self._heard.get(name, -INF) <= SILENT

    def report(self, name: str, report: Report, now: float) -> Reply:
        """Take the report of process `name` in at `now` (seconds of a steady clock), and deal its share."""
        self._heard[name] = now
        self._forget_silent(now)
        if report.keeper not in (None, self._id):
            self._inherit(name, report, now)
        for limits, seen in zip(self.limits, report.seen, strict=True):
            limits.hear(name, seen, now)
        leases = [self._lease(i, name, now) for i in range(len(self.limits))]
        return Reply(self._id, leases, self._together(name, now), *self._account(name, report, now))

    def credit(self, name: str, money: float) -> None:
        """Of what process `name` has spent, `money` is counted already; nothing where it was heard before."""
        self._counted.setdefault(name, money)

    def _account(self, name: str, report: Report, now: float) -> tuple[str | None, float | None]:
        """The reason to stop, and what `name` may spend."""
        if self.spending is None:
            return None, None
        # By the sum over the process's life: no report lost or sent to an earlier keeper is missing.
        report.account.money = report.spent - self._counted.get(name, 0.0)
        self._counted[name] = report.spent
        self.spending.add(report.account, now)
        # Whoever has not reported yet may go on under an allowance of the keeper before.
        most = max(0.0, report.allowed - report.spent) if now < self._inherits_until else INF
        if not most and self.spending.remaining is not None:
            return self.spending.stop, 0.0
        self._allowed[name] = now
        allowance = self.spending.allow(name, len(self._heard))
        return self.spending.stop, None if allowance is None else min(allowance, most)

    def _inherit(self, name: str, report: Report, now: float) -> None:
        """What processes hold from an earlier keeper is, in sum, what it had learned."""
        if not self._inherited:
            self._inherits_until = now + LEASE_LASTS
        self._inherited[name] = report.seen
        for i, limits in enumerate(self.limits):
            seen = [seen[i] for seen in self._inherited.values()]
            leases = [one.lease for one in seen]
            held = Lease(
                max(lease.epoch for lease in leases),
                sum(lease.requests for lease in leases),
                sum(lease.tokens for lease in leases),
                sum(lease.window for lease in leases),
            )
            limits.inherit(held, sum(one.in_flight for one in seen))

    def _forget_silent(self, now: float) -> None:
        for name in [name for name, at in self._heard.items() if now - at > SILENT]:
            del self._heard[name]
            for limits, windows in zip(self.limits, self._windows, strict=True):
                limits.forget(name)
                windows.pop(name, None)
            self._of_all.pop(name, None)
        if self.spending is not None:
            # It may spend what it was allowed for as long as its lease lasts.
            for name in [name for name, at in self._allowed.items() if now - at > LEASE_LASTS]:
                del self._allowed[name]
                self.spending.forget(name)

    def _lease(self, replica: int, name: str, now: float) -> Lease:
        limits = self.limits[replica]
        use = {one: limits.usage.of(one) for one in self._heard}
        free = {one: INF if process.hungry > 0.1 else HEADROOM for one, process in use.items()}
        wanted = {one: free[one] * max(process.requests, 1.0) for one, process in use.items()}
        requests = share(limits.requests.limit, wanted)[name]
        least = limits.tokens.limit / 100
        wanted = {one: free[one] * max(process.tokens, least) for one, process in use.items()}
        tokens = share(limits.tokens.limit, wanted)[name]
        most = min(limits.window.limit, self._ceiling)
        if now < self._inherits_until:
            # Whoever has not reported yet may go on under a lease of the keeper before.
            most = min(most, sum(seen[replica].lease.window for seen in self._inherited.values()))
        in_flight = {one: (process.in_flight, free[one]) for one, process in use.items()}
        window = _places(self._windows[replica], most, name, in_flight, now)
        pause = max(0.0, limits.paused_until - now)
        return Lease(limits.dealt(name), requests, tokens, window, pause, limits.noise.share > 0)

    def _together(self, name: str, now: float) -> float:
        """Calls in flight for `name` at all replicas together; where there is one, its window says it."""
        if len(self.limits) == 1:
            return INF
        use: dict[str, tuple[int, float]] = {}
        for one in self._heard:
            at = [limits.usage.of(one) for limits in self.limits]
            free = INF if any(process.hungry > 0.1 for process in at) else HEADROOM
            use[one] = sum(process.in_flight for process in at), free
        return _places(self._of_all, self._ceiling, name, use, now)


def _places(
    dealt: dict[str, int], most: float, name: str, use: dict[str, tuple[int, float]], now: float
) -> int:
    """Of `most` calls in flight those for `name`: its whole share, but no place that another still holds.

    `dealt` is what each process got last, and `use` its calls in flight, with how far they may grow.
    """
    most = max(1, int(most + 1e-9))
    wanted = {one: free * (in_flight + 1) for one, (in_flight, free) in use.items()}
    mine = whole(most, share(most, wanted), int(now / TURN))[name]
    held = sum(max(dealt.get(one, 0), n) for one, (n, _) in use.items() if one != name)
    dealt[name] = max(0, min(mine, most - held))
    return dealt[name]


def share(total: float, wanted: dict[str, float]) -> dict[str, float]:
    """`total` dealt out evenly, to nobody more than is wanted as long as another wants more.

    What nobody wants goes to all.
    """
    if total == INF:
        return dict.fromkeys(wanted, INF)
    got: dict[str, float] = {}
    for i, name in enumerate(sorted(wanted, key=wanted.__getitem__)):
        even = (total - sum(got.values())) / (len(wanted) - i)
        got[name] = min(wanted[name], even)
    rest = (total - sum(got.values())) / len(wanted)
    return {name: got[name] + max(0.0, rest) for name in wanted}


def whole(total: int, shares: dict[str, float], turn: int) -> dict[str, int]:
    """Shares as whole numbers of the same sum; who gets one of the few left over changes by `turn`."""
    got = {name: math.floor(part + 1e-9) for name, part in shares.items()}
    names = sorted(shares)
    left = total - sum(got.values())
    # Where everybody has a place already, taking turns would only shake.
    start = turn if total < len(names) else 0
    for i in range(left):
        got[names[(start + i) % len(names)]] += 1
    return got
