"""The shared limit when its keeper, a process, or a report is lost; and its budget."""

import asyncio
import functools
from contextlib import suppress

import pytest

from lr_ray.llm.bureau import Bureau
from lr_ray.llm.governor import Governor
from lr_ray.llm.lease import LEASE_LASTS, Lease, Reply, Report, Seen
from lr_ray.llm.spending import Report as Spent
from lr_ray.llm.spending import Spending, Stopped
from tests.virtual import Endpoint, Load, Shared, run


def test_the_death_of_the_keeper_costs_nothing() -> None:
    endpoint = Endpoint("requests", lambda _: 100, lambda _: 0.2)
    load = Load(endpoint, 4, 50)
    shared = Shared(512)
    load.ask = shared.ask

    async def work() -> None:
        loaded = asyncio.create_task(load.go(60))
        await asyncio.sleep(30)
        shared.there = False
        await asyncio.sleep(5)
        shared.anew()
        await loaded

    run(work)
    for since, until in ((30, 35), (35, 37), (36, 46)):
        used = sum(since <= at < until for at, _ in endpoint.used) / (until - since)
        assert 90 <= used <= 105, (since, used)
    refused = sum(30 <= at < 60 for at in endpoint.refused)
    assert refused <= 0.025 * 3000


def test_a_new_keeper_gives_nobody_what_others_may_still_hold() -> None:
    bureau, ceiling = Bureau(10), 10
    held = {"a": 4, "b": 6}
    keeper = dict.fromkeys(held, "the one before")

    def hungry(name: str, now: float) -> None:
        lease = Lease(window=held[name])
        seen = Seen(elapsed=0.2, granted=20, in_flight=held[name], hungry=0.2, lease=lease)
        reply = bureau.report(name, Report([seen], Spent(), keeper=keeper[name]), now)
        held[name], keeper[name] = reply.leases[0].window, reply.keeper

    for tick in range(int(5 / 0.2)):
        hungry("a", tick * 0.2)
        assert held["a"] <= 4
    for tick in range(int(3 / 0.2)):
        for name in held:
            hungry(name, 5 + tick * 0.2)
            assert sum(held.values()) <= ceiling
    # When its lease must have ended, a process that is silent leaves its places to the others.
    for tick in range(int(LEASE_LASTS / 0.2)):
        hungry("a", 8 + tick * 0.2)
    assert held["a"] > 6


def test_a_silent_process_leaves_its_share_to_the_others() -> None:
    bureau = Bureau(32)
    reports = {}
    for name in ("a", "b"):
        governor = Governor(32, remote=True)

        async def start(governor: Governor = governor) -> Report:
            permit = governor.permit()
            return permit._governor._report(0.0)

        reports[name] = run(start)
    report = reports["a"]
    report.seen[0].hungry = report.seen[0].elapsed = 1.0
    other = reports["b"]
    other.seen[0].hungry = other.seen[0].elapsed = 1.0
    windows = []
    for now in (0.0, 0.25, 0.5):
        windows = [bureau.report("a", report, now), bureau.report("b", other, now)]
    assert abs(windows[0].leases[0].window - windows[1].leases[0].window) <= 1
    alone = bureau.report("a", report, 20.0).leases[0].window
    assert alone >= sum(reply.leases[0].window for reply in windows)


def test_the_budget_stops_all_processes_and_money_is_counted_once_over_lost_reports() -> None:
    shared = Shared(8, Spending(budget=10.0))

    async def work() -> tuple[float, int]:
        governors = [Governor(8, remote=True) for _ in range(3)]
        beats = [
            asyncio.create_task(governor.beats(functools.partial(shared.ask, str(n))))
            for n, governor in enumerate(governors)
        ]
        spent = stopped = 0.0

        async def calls(governor: Governor) -> None:
            nonlocal spent, stopped
            try:
                while True:
                    async with governor.permit() as permit:
                        await asyncio.sleep(0.05)
                        permit.succeeded(10)
                        governor.account.paid(0.02)
                        spent += 0.02
            except Stopped as reason:
                stopped += "judge.budget is reached" in str(reason)

        callers = [asyncio.create_task(calls(one)) for one in governors for _ in range(4)]
        await asyncio.sleep(2)
        shared.there = False
        await asyncio.sleep(1)
        shared.there = True
        await asyncio.gather(*callers)
        for beat in beats:
            beat.cancel()
        return spent, int(stopped)

    spent, stopped = run(work)
    assert stopped == 12
    assert 9.9 <= spent <= 10.0 + 12 * 0.02 + 1e-6


def test_an_account_stop_reaches_calls_that_wait() -> None:
    async def work() -> None:
        governor = Governor(1)
        async with governor.permit():
            waiting = asyncio.create_task(governor.permit().__aenter__())
            await asyncio.sleep(0.1)
            governor.account.told("enough", None)
            with pytest.raises(Stopped, match="enough"):
                await asyncio.wait_for(waiting, 1)

    run(work)


def test_spending_counts_a_process_by_its_life_not_by_its_reports() -> None:
    spending = Spending(budget=100.0)
    bureau = Bureau(8, spending=spending)
    for now, spent in ((0.0, 1.0), (1.0, 3.0), (2.0, 3.0)):
        bureau.report("a", _report(spent), now)
    assert spending.spent == pytest.approx(3.0)


def test_a_silent_process_keeps_its_allowance_for_as_long_as_it_may_spend_it() -> None:
    bureau = Bureau(16, spending=Spending(budget=100.0))
    for now in (0.0, 0.1):
        allowed = [bureau.report(name, Report([Seen()], Spent()), now).allowance for name in "ab"]
    assert allowed == [50.0, 50.0]
    for tick in range(1, 60):
        now = 0.1 + 0.2 * tick
        allowance = bureau.report("b", Report([Seen()], Spent()), now).allowance
        assert allowance == (50.0 if now <= 0.1 + LEASE_LASTS else 100.0), now


def test_a_new_keeper_allows_nobody_money_that_others_may_still_spend() -> None:
    # Of 100 a dead process spent 60 and b, which may spend 5 more, 30: but 2 of these are not recorded yet.
    bureau = Bureau(16, spending=Spending(100.0, already=88.0), inherits_until=LEASE_LASTS)
    bureau.credit("b", 28.0)

    def allowance(name: str, now: float, *, spent: float = 0.0, allowed: float = 0.0) -> float | None:
        keeper = "the one before" if now < 1 and allowed else bureau._id
        return bureau.report(name, Report([Seen()], Spent(), spent, keeper, allowed), now).allowance

    assert allowance("new", 0.1) == 0
    assert allowance("b", 0.2, spent=30.0, allowed=35.0) == 5
    assert allowance("b", 5.0, spent=32.0, allowed=35.0) == 3
    assert bureau.spending is not None
    assert bureau.spending.spent == pytest.approx(92.0)
    allowance("new", LEASE_LASTS + 0.5)
    assert allowance("b", LEASE_LASTS + 0.5, spent=32.0, allowed=35.0) == pytest.approx(4.0)


def test_no_keeper_that_is_lost_lets_more_be_spent_than_the_budget() -> None:
    shared, budget = Shared(8, Spending(budget=10.0)), 10.0
    dead = meanwhile = 0.0

    async def work() -> float:
        nonlocal dead, meanwhile
        governors = [Governor(8, remote=True) for _ in range(3)]
        beats = [
            asyncio.create_task(governor.beats(functools.partial(shared.ask, str(n))))
            for n, governor in enumerate(governors)
        ]
        spent = dict.fromkeys(governors, 0.0)

        async def calls(governor: Governor) -> None:
            with suppress(Stopped):
                while True:
                    async with governor.permit() as permit:
                        await asyncio.sleep(0.05)
                        permit.succeeded(10)
                        governor.account.paid(0.02)
                        spent[governor] += 0.02

        callers = [asyncio.create_task(calls(one)) for one in governors for _ in range(4)]
        await asyncio.sleep(1.5)
        # The first process dies, and the keeper with it; what is recorded meanwhile is what they spent.
        for task in (beats[0], *callers[:4]):
            task.cancel()
        shared.there = False
        await asyncio.sleep(0.5)
        now = asyncio.get_running_loop().time()
        shared.anew(Spending(budget, already=sum(spent.values())), now + LEASE_LASTS)
        for n, governor in enumerate(governors):
            shared.bureau.credit(str(n), spent[governor])
        dead, before = spent[governors[0]], sum(spent.values())
        await asyncio.sleep(LEASE_LASTS / 2)
        meanwhile = sum(spent.values()) - before
        await asyncio.gather(*callers, return_exceptions=True)
        for beat in beats:
            beat.cancel()
        return sum(spent.values())

    spent = run(work)
    assert dead > 1
    assert meanwhile > 1  # they go on with what the first one allowed
    assert budget - 0.1 <= spent <= budget + 8 * 0.02 + 1e-6


def _report(spent: float) -> Report:
    async def one() -> Report:
        governor = Governor(8, remote=True)
        governor.permit()
        return governor._report(0.0)

    report: Report = run(one)
    report.spent = spent
    return report


def test_a_process_that_is_cut_off_pays_no_longer_than_its_lease_lasts() -> None:
    bureau, gone = Bureau(4), (5.0, 25.0)

    async def work() -> list[float]:
        loop, begun = asyncio.get_running_loop(), []
        governor = Governor(4, remote=True)

        async def ask(report: Report) -> Reply:
            if gone[0] <= loop.time() < gone[1]:
                raise ConnectionError
            reply = bureau.report("a", report, loop.time())
            # The last answer before it is gone takes its time, and the bureau does not know.
            await asyncio.sleep(4.0 if gone[0] - 0.5 < loop.time() < gone[0] else 0.0)
            return reply

        async def calls() -> None:
            while loop.time() < 40:
                async with governor.permit() as permit:
                    begun.append(loop.time())
                    await asyncio.sleep(0.2)
                    permit.succeeded()

        beats = asyncio.create_task(governor.beats(ask))
        await asyncio.gather(*(calls() for _ in range(4)))
        beats.cancel()
        return begun

    begun = run(work)
    ends = gone[0] + LEASE_LASTS
    assert not [at for at in begun if ends <= at < gone[1]]
    # Before that a keeper that is away stops nothing, and afterwards all goes on.
    for since in (gone[0], ends - 2, gone[1] + 1, 38.0):
        assert len([at for at in begun if since <= at < since + 1.5]) >= 20, since
