from datetime import UTC, datetime, timedelta

import pytest

from lr_ray.llm.dimension import TOLD, Dimension
from lr_ray.llm.lease import Seen
from lr_ray.llm.limits import Limits
from lr_ray.llm.told import CHANGED, SPREAD, Said, Told, mentions, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1m30s", 90.0),
        ("20ms", 0.02),
        ("7.66s", 7.66),
        ("1h0m2s", 3602.0),
        ("6m0.5s", 360.5),
        ("12", 12.0),
        ("0", 0.0),
        ("-3", 0.0),
        ("", None),
        (None, None),
        ("soon", None),
        ("1m soon", None),
        ("nan", None),
        ("inf", None),
        ("9" * 400, None),
    ],
)
def test_waits_in_every_form(text: str | None, expected: float | None) -> None:
    assert seconds(text) == (pytest.approx(expected) if expected is not None else None)


def test_a_wait_as_a_time() -> None:
    when = (datetime.now(UTC) + timedelta(seconds=30)).isoformat().replace("+00:00", "Z")
    assert seconds(when) == pytest.approx(30, abs=1)


def openai(limit: int, left: float, period: float) -> dict[str, str]:
    """What a bucket of `limit` that fills in `period` seconds says with `left` in it."""
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(int(left)),
        "x-ratelimit-reset-requests": f"{(limit - left) / limit * period:.3f}s",
    }


@pytest.mark.parametrize("period", [1.0, 60.0])
def test_the_period_of_a_limit_shows_in_how_it_resets(period: float) -> None:
    told = Told()
    read = [told.read(openai(6000, 6000 - 37 * i, period)) for i in range(12)]
    assert [one for one, _ in read if one is not None] == [Said(pytest.approx(6000 / period))]
    # A change of the limit is told at once, and again only when it changes.
    assert told.read(openai(3000, 1500, period))[0] == Said(pytest.approx(3000 / period))
    assert told.read(openai(3000, 1400, period)) == (None, None)


@pytest.mark.parametrize("period", [3600.0, 86400.0])
def test_a_limit_for_hours_is_an_amount_that_only_its_end_slows_down(period: float) -> None:
    told, last = Told(), None
    ceiling = Dimension(50.0, most=200.0)
    ceiling.set(50.0)
    for i in range(10_001):
        last = told.read(openai(10_000, 10_000 - i, period))[0] or last
        if last is not None:
            ceiling.told(last)
            assert ceiling.limit <= TOLD * (10_000 / period + (10_000 - i) / SPREAD) * (1 + 2 * CHANGED)
        if i == 6000:
            assert ceiling.limit == 50.0  # not before
    assert ceiling.limit == pytest.approx(TOLD * 10_000 / period, rel=2 * CHANGED)  # what comes back
    said = told.read(openai(10_000, 9_000, period))[0]
    assert said is not None
    ceiling.told(said)
    assert ceiling.limit == 50.0  # and again when it is there again


def test_a_day_with_enough_left_throttles_nothing() -> None:
    """A process that asks for 50 a second, of an endpoint with 10,000 a day, most of them left."""
    limits = Limits(64)
    for i in range(50):
        headers = openai(10_000, 10_000 - 10 * i, 86400.0)
        limits.hear("a", Seen(elapsed=0.2, granted=10, hungry=0.2, told=headers), 0.2 * i)
    assert limits.requests.limit > 100
    limits.hear("a", Seen(elapsed=0.2, granted=10, told=openai(10_000, 60, 86400.0)), 10.2)
    assert 1.0 < limits.requests.limit < 1.2


def test_a_window_that_ends_at_a_fixed_time_tells_nothing() -> None:
    told = Told()
    for i in range(50):
        headers = openai(6000, 6000 - 100 * i, 60) | {"x-ratelimit-reset-requests": f"{50 - i}s"}
        assert told.read(headers) == (None, None)


def test_anthropic_names_and_times() -> None:
    told, last = Told(), None
    for i in range(10):
        when = datetime.now(UTC) + timedelta(seconds=60 * (i + 1) / 50)
        headers = {
            "anthropic-ratelimit-tokens-limit": "50000",
            "anthropic-ratelimit-tokens-remaining": str(50000 - 1000 * (i + 1)),
            "anthropic-ratelimit-tokens-reset": when.isoformat(),
        }
        assert mentions(headers | {"date": "x"}) == headers
        last = told.read(headers)[1] or last
    assert last == Said(pytest.approx(50000 / 60))


@pytest.mark.parametrize("value", ["", "many", "-1", "nan", "inf", "1e999"])
def test_nonsense_is_not_believed(value: str) -> None:
    told = Told()
    for i in range(20):
        headers = openai(6000, 6000 - 37 * i, 60)
        assert told.read(headers | {"x-ratelimit-limit-requests": value}) == (None, None)
    assert mentions({"content-type": "x"}) is None
