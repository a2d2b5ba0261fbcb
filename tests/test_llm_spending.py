import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest

from lr_ray.config import Judge, Prices
from lr_ray.llm import usage
from lr_ray.llm.governor import Governor
from lr_ray.llm.lease import Reply
from lr_ray.llm.lease import Report as Heard
from lr_ray.llm.records import FOLDER, dump
from lr_ray.llm.spending import Account, Report, Spending, Stopped
from lr_ray.store import Store
from tests.virtual import run


def report(answered: int = 0, money: float = 0.0, **failed: int) -> Report:
    """Failures by reason; those of reasons in capitals are broken tries."""
    unusable = Counter({reason: count for reason, count in failed.items() if reason.islower()})
    return Report(money, answered, unusable, Counter({k: v for k, v in failed.items() if k.isupper()}))


def after(spending: Spending, *reports: Report, seconds: float = 0.25) -> str | None:
    for number, one in enumerate(reports):
        spending.add(one, now=number * seconds)
    return spending.stop


def test_a_healthy_run_goes_on() -> None:
    assert after(Spending(), *(report(answered=19, invalid=1) for _ in range(100))) is None


def test_a_few_bad_tries_at_the_start_prove_nothing() -> None:
    assert after(Spending(), report(invalid=49)) is None
    assert after(Spending(), report(invalid=50)) is not None


def test_paid_tries_of_no_use_stop_the_run_with_the_cause() -> None:
    good, bad = [report(answered=10)] * 40, [report(answered=1, refused=6, empty=3)] * 12
    stop = after(Spending(), *good, *bad)
    assert stop is not None
    assert "of the last 2" in stop
    assert "because refused" in stop


def test_old_failures_are_forgotten() -> None:
    spending = Spending(max_error_rate=0.9)
    assert after(spending, *[report(answered=2, invalid=8)] * 20, *[report(answered=10)] * 20) is None
    assert spending._tries.counts["unusable", "invalid"] == 0
    assert spending._tries.total == 200


def test_the_rate_is_the_users() -> None:
    reports = [report(answered=3, invalid=7)] * 30
    assert after(Spending(max_error_rate=0.6), *reports) is not None
    assert after(Spending(max_error_rate=0.7), *reports) is None
    assert after(Spending(max_error_rate=1.0), *[report(invalid=9)] * 30) is None


def test_an_endpoint_that_restarts_is_waited_for() -> None:
    outage = [report(BROKEN=20)] * 60
    assert after(Spending(), *[report(answered=20)] * 20, *outage, seconds=0.25) is None
    stop = after(Spending(), *[report(answered=20)] * 20, *outage, seconds=1.0)
    assert stop is not None
    assert "because BROKEN" in stop
    idle = [report(BROKEN=20)] * 20 + [report()] * 100 + [report(answered=10)] * 40
    assert after(Spending(), *idle, seconds=1.0) is None
    back = [report(BROKEN=20)] * 25 + [report(answered=40)] * 10
    assert after(Spending(), *back, *back, seconds=1.0) is None


def test_rows_that_come_to_nothing_for_one_reason_stop_the_run() -> None:
    def rows(good: int, *bad: str) -> Report:
        return Report(answered=100, rows=Counter({"": good, **Counter(bad)}))

    assert after(Spending(), rows(0, *["the judge refused"] * 19)) is None
    stop = after(Spending(), rows(9, *["the judge refused"] * 11))
    assert stop == "11 of the last 20 prompts came to nothing because the judge refused"
    assert after(Spending(), rows(9, *["refused"] * 6, *["empty"] * 5)) is None
    assert after(Spending(), *[rows(6, *["refused"] * 4)] * 30) is None


def test_the_budget_counts_what_was_spent_before() -> None:
    spending = Spending(budget=10, already=9)
    assert after(spending, report(answered=1, money=0.9)) is None
    assert spending.remaining == pytest.approx(0.1)
    assert (
        after(spending, report(answered=1, money=0.2)) == "judge.budget is reached: 10.10 of 10.00 is spent"
    )
    assert spending.remaining == 0
    assert Spending(budget=10, already=10).stop is not None


@pytest.mark.parametrize("seed", range(5))
def test_what_may_be_spent_is_never_more_than_what_is_left(seed: int) -> None:
    rng = random.Random(seed)
    spending, holders = Spending(budget=100.0), ["a", "b", "c", "d"]
    accounts = {holder: Account() for holder in holders}
    for step in range(2000):
        holder = rng.choice(holders[: rng.randint(1, 4)])
        account = accounts[holder]
        # Whoever may begin has one call of at most 0.5 in flight.
        for _ in range(rng.randint(0, 5)):
            if account.stop is None and account.may_begin and account._allowance is not None:
                account.paid(rng.random() / 2)
        spending.add(account.take(), now=step)
        account.told(spending.stop, spending.allow(holder, len(holders)))
        assert sum(spending._allowances.values()) <= (spending.remaining or 0.0) + len(holders) * 0.5
    assert spending.stop is not None
    spent = spending.spent + sum(account.take().money for account in accounts.values())
    assert 100 <= spent <= 100 + len(holders) * 0.5


def test_an_account_that_is_told_to_stop_says_why() -> None:
    account = Account()
    assert account.may_begin
    account.told(None, 0.5)
    account.paid(0.6)
    assert not account.may_begin
    report = account.take()
    account.paid(0.1)  # a call that was in flight while the report was
    account.told(None, 0.05)
    assert not account.may_begin
    assert report.money == pytest.approx(0.6)
    account.told("the budget", 0.0)
    account.told(None, 1.0)
    with pytest.raises(Stopped, match="the budget"):
        _ = account.may_begin


def test_a_gone_holder_leaves_its_share() -> None:
    spending = Spending(budget=1.0)
    assert spending.allow("a", 2) == spending.allow("b", 2) == 0.5
    spending.forget("a")
    assert spending.allow("b", 1) == 1.0
    assert Spending().allow("a", 1) is None


def test_a_budget_needs_prices() -> None:
    with pytest.raises(ValueError, match=r"set judge\.prices"):
        Judge(budget=1.0)
    assert Judge(budget=1.0, prices=Prices(completion=1.0)).budget == 1.0


def record(prompt_id: str, kind: str, prompt: int, completion: int) -> bytes:
    reply = {"prompt_tokens": prompt, "cached_tokens": prompt // 2, "completion_tokens": completion}
    return dump({"prompt_id": prompt_id, "key": "k", "unit": f"{prompt_id}/0/{kind}/0", "reply": reply})


def test_what_was_paid_is_added_up_over_ledgers_and_kinds(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    mine = record("a", "support", 100, 10) + record("b", "support", 200, 20) + record("a", "extract", 1000, 1)
    store.write(mine + record("a", "extract", 0, 0) + b'{"torn', FOLDER, "one.jsonl")
    store.write(record("h", "support", 4000, 0), "evaluation", "before", FOLDER, "two.jsonl")
    found = usage.by_kind(store)
    assert vars(found["support"]) == {
        "calls": 2,
        "prompt_tokens": 300,
        "cached_tokens": 150,
        "completion_tokens": 30,
    }
    assert (found["extract"].calls, found["extract"].prompt_tokens) == (2, 1000)
    assert usage.by_kind(store, {"b"})["support"].prompt_tokens == 200
    prices = Prices(prompt=1e6, cached_prompt=0, completion=1e6)
    assert usage.money(store, prices) == (1300 + 4000) / 2 + 31
    assert usage.money(Store(str(tmp_path / "none")), prices) == 0


def test_a_keeper_that_fails_for_good_stops_the_calls() -> None:
    async def ask(_: Heard) -> Reply:
        await asyncio.sleep(0.01)
        raise KeyError("ours")

    async def work() -> None:
        governor = Governor(1, remote=True)
        beats = asyncio.create_task(governor.beats(ask))
        async with governor.permit():
            with pytest.raises(Stopped, match="the keeper of the limits failed: KeyError"):
                await asyncio.wait_for(governor.permit().__aenter__(), 5)
        with pytest.raises(KeyError):
            await beats

    run(work)


def test_a_budget_that_is_reached_by_estimates_says_so() -> None:
    account, spending = Account(), Spending(budget=1.0)
    account.paid(0.6)
    account.paid(0.6, estimated=True)
    spending.add(account.take(), now=0.0)
    assert spending.stop is not None
    assert spending.stop.endswith(
        "is spent as estimated from bytes, since the endpoint does not say what its answers use"
    )
    told = Spending(budget=1.0)
    told.add(Report(2.0), now=0.0)
    assert told.stop is not None
    assert "estimated" not in told.stop
