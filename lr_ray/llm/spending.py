"""When a run stops early: its budget is spent, or what it pays for is of no use.

Each process that makes calls keeps an `Account`: calls and rows write in it, its governor reads there whether
a call may begin, and now and then brings what is new to the run's one `Spending`, which answers with a
reason to stop and the money that this process may spend until it comes again. Pure: no Ray, no clock of its
own.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lr_ray.meter import money as in_words

TRIES, FEWEST_TRIES = 200, 50  # the last tries that are looked at; with fewer nothing is concluded
ROWS, FEWEST_ROWS = 50, 20
ROUNDING = 1e-9
UNTOLD = "the endpoint does not say what its answers use"
PATIENCE = 30.0  # seconds for which most tries may fail unpaid: an endpoint that restarts comes back


class Stopped(Exception):
    """No call may begin any more. The message is the cause, in one sentence."""


@dataclass
class Report:
    """What happened since the last report.

    Of finished tries `answered` were of use; `unusable` (paid) and `broken` (unpaid: time-outs, hang-ups,
    5xx) count the others by reason. Refusals for the rate (429) are none of these. `rows` counts rows by why
    they came to nothing, "" for those that did not. `money` is `estimated` where an endpoint does not say
    what its answers use.
    """

    money: float = 0.0
    answered: int = 0
    unusable: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    estimated: bool = False


class Account:
    """What one process spent and saw since its last report, and what it was told then."""

    def __init__(self) -> None:
        self._report = Report()
        self._allowance: float | None = None
        self.stop: str | None = None
        self.ended = asyncio.Event()  # there is a reason to stop
        self.estimated = False

    def paid(self, money: float, *, estimated: bool = False) -> None:
        """An answer cost `money`, or about that."""
        self._report.money += money
        self.estimated |= estimated
        self._report.estimated |= estimated
        if self._allowance is not None:
            self._allowance -= money

    def answered(self) -> None:
        """A try was answered, and the answer is of use."""
        self._report.answered += 1

    def unusable(self, reason: str) -> None:
        """A try was answered (or refused for good) with something that is of no use."""
        self._report.unusable[reason] += 1

    def broke(self, reason: str) -> None:
        """A try got no answer, and cost nothing."""
        self._report.broken[reason] += 1

    def row(self, reason: str = "") -> None:
        """A row is through; it came to nothing because of `reason`."""
        self._report.rows[reason] += 1

    @property
    def may_begin(self) -> bool:
        """Whether another call may begin before the next report.

        Raises:
            Stopped: none may, ever.
        """
        if self.stop is not None:
            raise Stopped(self.stop)
        return self._allowance is None or self._allowance > 0

    def take(self) -> Report:
        """The report; a new one is begun."""
        report, self._report = self._report, Report()
        return report

    def told(self, stop: str | None, allowance: float | None) -> None:
        """The answer to the report taken last. `allowance` is money; None: without limit."""
        self.stop = self.stop or stop
        if self.stop is not None:
            self.ended.set()
        # What was spent while the report was on its way is not in the answer yet.
        self._allowance = None if allowance is None else allowance - self._report.money


class Beside(Account):
    """`account` for a second governor of its process: it adds there and heeds it, and the first reports.

    `leased` says whether the first may begin calls now; where it may not, as on a host that is cut off, the
    second may not either.
    """

    def __init__(self, account: Account, leased: Callable[[], bool]) -> None:
        super().__init__()
        self._account, self.ended, self._leased = account, account.ended, leased

    def paid(self, money: float, *, estimated: bool = False) -> None:
        self._account.paid(money, estimated=estimated)

    def answered(self) -> None:
        self._account.answered()

    def unusable(self, reason: str) -> None:
        self._account.unusable(reason)

    def broke(self, reason: str) -> None:
        self._account.broke(reason)

    def row(self, reason: str = "") -> None:
        self._account.row(reason)

    @property
    def may_begin(self) -> bool:
        return self._account.may_begin and self._leased()

    def take(self) -> Report:
        return Report()

    def told(self, stop: str | None, allowance: float | None) -> None:
        pass


class Spending:
    """The run's one account: `already` was spent of `budget` before (None: no limit).

    More than `max_error_rate` of the last tries, or of the last rows for one reason, stops the run.
    """

    def __init__(
        self, budget: float | None = None, already: float = 0.0, max_error_rate: float = 0.5
    ) -> None:
        self._budget, self._rate = budget, max_error_rate
        self.spent, self._estimated = already, False
        self._allowances: dict[str, float] = {}
        self._tries = _Window(TRIES)
        self._rows = _Window(ROWS)
        self._failing_since: float | None = None
        self.stop: str | None = None
        self._judge_budget()

    @property
    def remaining(self) -> float | None:
        """Money left of the budget, 0 at least; None without one."""
        return None if self._budget is None else max(0.0, self._budget - self.spent)

    def add(self, report: Report, now: float) -> None:
        """Take a report in; `now` is in seconds of any steady clock."""
        self.spent += report.money
        self._estimated |= report.estimated
        tries = {("answered", ""): report.answered}
        tries |= {("unusable", reason): count for reason, count in report.unusable.items()}
        tries |= {("broken", reason): count for reason, count in report.broken.items()}
        self._tries.add(tries)
        self._rows.add({("row", reason): count for reason, count in report.rows.items()})
        self._judge_budget()
        self._judge_tries(report, now)
        self._judge_rows()

    def allow(self, holder: str, holders: int) -> float | None:
        """Money that `holder`, one of `holders` processes, may spend until it reports again.

        All allowances given and not yet reported on are at most what is left, but for what calls in flight
        took beyond an allowance.
        """
        if self.remaining is None:
            return None
        self._allowances.pop(holder, None)
        free = self.remaining - sum(self._allowances.values())
        self._allowances[holder] = max(0.0, min(self.remaining / max(1, holders), free))
        return self._allowances[holder]

    def forget(self, holder: str) -> None:
        """`holder` is gone; what it was allowed is free again."""
        self._allowances.pop(holder, None)

    def _judge_budget(self) -> None:
        if self._budget is not None and self.spent >= self._budget:
            spent, budget = in_words(self.spent), in_words(self._budget)
            about = f" as estimated from bytes, since {UNTOLD}" if self._estimated else ""
            self._stop(f"judge.budget is reached: {spent} of {budget} is spent{about}")

    def _judge_tries(self, report: Report, now: float) -> None:
        total, bad = self._tries.total, self._tries.total - self._tries.counts["answered", ""]
        if total < FEWEST_TRIES or bad / total <= self._rate + ROUNDING:
            self._failing_since = None
            return
        if self._failing_since is None:
            self._failing_since = now
        (kind, reason), count = max(self._failures().items(), key=lambda item: item[1])
        # Whoever got nothing pays nothing, so that a short outage can be waited for: it must go on now.
        lasting = now - self._failing_since >= PATIENCE and report.broken.total() > report.answered
        if kind == "unusable" or lasting:
            self._stop(f"{bad} of the last {total} tries failed, {count} of them because {reason}")

    def _failures(self) -> dict[tuple[str, str], int]:
        return {key: count for key, count in self._tries.counts.items() if key[0] != "answered"}

    def _judge_rows(self) -> None:
        total = self._rows.total
        bad = {reason: count for (_, reason), count in self._rows.counts.items() if reason}
        if total < FEWEST_ROWS or not bad:
            return
        reason, count = max(bad.items(), key=lambda item: item[1])
        if count / total > self._rate + ROUNDING:
            self._stop(f"{count} of the last {total} prompts came to nothing because {reason}")

    def _stop(self, why: str) -> None:
        self.stop = self.stop or why


class _Window:
    """Counts over the last `size` things; whole reports leave at its end."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._reports: deque[tuple[int, Mapping[tuple[str, str], int]]] = deque()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.total = 0

    def add(self, counts: Mapping[tuple[str, str], int]) -> None:
        number = sum(counts.values())
        if not number:
            return
        self._reports.append((number, counts))
        self.counts.update(counts)
        self.total += number
        while self.total - self._reports[0][0] >= self._size:
            oldest, left = self._reports.popleft()
            self.counts.subtract(left)
            self.total -= oldest
