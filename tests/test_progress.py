import fcntl
import io
import os
import pty
import re
import struct
import termios
import time
from collections.abc import Mapping

import pytest

from lr_ray import config, meter, progress

FREE = config.Prices()


class Log(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]  # StringIO says None


def new_meter(total: float | None = 100, counted: tuple[str, ...] = meter.ROWS) -> meter.Meter:
    return meter.Meter("judging", total, counted, FREE, {}, 0.0)


def test_tally_sums_sets_and_refuses_unknown_names() -> None:
    tally = progress.Tally()
    tally.add({"judged": 1, "calls": 2.5})
    tally.add({"judged": 2})
    tally.put({"train_steps": 7})
    tally.put({"train_steps": 4})
    assert tally.snapshot() == {"judged": 3, "calls": 2.5, "train_steps": 4}
    with pytest.raises(ValueError, match="jugded"):
        tally.add({"judged": 1, "jugded": 1})
    assert tally.snapshot()["judged"] == 3


def test_cost_by_hand() -> None:
    counts = {"prompt_tokens": 3e6, "cached_tokens": 2e6, "completion_tokens": 1e6}
    assert meter.cost(counts, config.Prices(prompt=2.0, completion=5.0)) == pytest.approx(11.0)
    cheap = config.Prices(prompt=2.0, cached_prompt=0.5, completion=5.0)
    assert meter.cost(counts, cheap) == pytest.approx(8.0)
    assert meter.cost(counts, FREE) is None


def test_time_left_has_a_basis_or_is_not_shown() -> None:
    judged = new_meter()
    assert judged.observe({}, 0.0).left is None
    assert judged.observe({}, 60.0).left is None  # engines start: no basis
    assert judged.observe({"judged": 2}, 61.0).left is None  # two rows are none either
    assert judged.observe({"judged": 4}, 63.0).left is None  # nor are three seconds
    view = judged.observe({"judged": 9, "failed": 1}, 70.0)
    # Ten rows since second 60, ninety to go: the start-up minute does not count.
    assert view.left == pytest.approx(90.0)
    assert judged.observe({"judged": 99, "failed": 1}, 80.0).left == 0.0


def test_pace_is_recent() -> None:
    judged = new_meter(total=10_000)
    for second in range(1000):
        fast = judged.observe({"calls_finished": second * 50.0, "judged": second * 2.0}, float(second))
    assert fast.calls_a_second == pytest.approx(50.0)
    assert fast.left == pytest.approx((10_000 - 1998) / 2)
    for second in range(1000, 1400):
        slow = judged.observe({"calls_finished": 49_950.0, "judged": 1998.0}, float(second))
    assert slow.calls_a_second == 0.0
    assert slow.left is None


def test_counts_before_the_stage_are_not_its_own() -> None:
    later = meter.Meter("evaluation", 64, meter.ROWS, FREE, {"judged": 300, "retries": 4}, 10.0)
    view = later.observe({"judged": 310, "retries": 5, "calls_started": 3}, 20.0)
    assert (view.done, view.elapsed, view.get("retries")) == (10, 10.0, 1)
    assert "10 of 64 rows" in meter.line(view)


def test_training_counts_steps() -> None:
    training = meter.Meter("training", 300, meter.STEPS, FREE, {"judged": 300}, 0.0)
    view = training.observe({"judged": 300, "train_steps": 5, "train_total": 40, "train_tokens": 5e5}, 1.0)
    assert meter.head(view) == "5 of 40 steps"
    assert meter.facts(view) == [("trained", "500k tokens")]


def test_line_says_everything_and_no_control_characters() -> None:
    counts = {
        "sampled": 12,
        "candidates": 120,
        "sample_tokens": 12_345,
        "judged": 9,
        "failed": 1,
        "calls_started": 500,
        "calls_finished": 480,
        "calls_reused": 20,
        "retries": 1,
        "prompt_tokens": 4_560_000,
        "cached_tokens": 4_000_000,
        "completion_tokens": 99_999,
        "unscored": 2,
    }
    judged = meter.Meter("judging\x1b[2J\n", 800, meter.ROWS, config.Prices(prompt=1.0), {}, 0.0)
    judged.observe({}, 0.0)
    text = meter.line(judged.observe(counts, 10.0))
    assert text == (
        "judging [2J : 10 of 800 rows | sampled 12 rows · 120 answers · 12.3k tokens"
        " | calls 20 in flight · 48.0 a second · 480 finished · 20 reused · 1 repeat"
        " | tokens 4.56M in (4.00M cached) · 100k out · cost 4.56"
        " | failures 1 row · 2 missing scores | 0:00:10 so far, 0:13:10 left"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10.0k"),
        (123_456, "123k"),
        (99_999, "100k"),
        (999_999, "1.00M"),
        (1e6, "1.00M"),
        (2.5e9, "2.50B"),
    ],
)
def test_short(value: float, text: str) -> None:
    assert meter.short(value) == text


def test_clock_and_money() -> None:
    assert [meter.clock(s) for s in (None, 59.6, 3723.0, float("inf"))] == ["…", "0:01:00", "1:02:03", "…"]
    assert [meter.money(m) for m in (None, 0.0, 0.01234, 1234.5)] == ["–", "0.00", "0.0123", "1,234.50"]


def test_job_log_has_plain_lines_at_most_every_ten_seconds() -> None:
    stream, moment = Log(), [0.0]
    display = progress.Display(50, FREE, stream, now=lambda: moment[0])
    with display, display.stage("judging"):
        display.note("starting vLLM")
        display.note("starting vLLM")
        for second in range(1, 36):
            moment[0] = float(second)
            display.update({"judged": second})
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["judging: started", "starting vLLM"]
    assert [text.split(" |")[0] for text in lines[2:-1]] == [
        "judging: 10 of 50 rows",
        "judging: 20 of 50 rows",
        "judging: 30 of 50 rows",
    ]
    assert lines[-1] == "judging: done, 35 of 50 rows in 0:00:35"
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stream.getvalue())


def test_a_stage_that_raises_is_not_called_done() -> None:
    stream = Log()
    with pytest.raises(RuntimeError), progress.Display(5, FREE, stream) as display, display.stage("judging"):
        raise RuntimeError("engine died")
    assert "judging: stopped, 0 of 5 rows" in stream.getvalue()


def test_poll_is_asked_at_the_end_of_a_stage_and_may_fail() -> None:
    tally, stream = progress.Tally(), Log()
    with progress.Display(5, FREE, stream, poll=tally.snapshot) as display, display.stage("judging"):
        tally.add({"judged": 5})
    assert "judging: done, 5 of 5 rows" in stream.getvalue()

    def broken() -> Mapping[str, float]:
        raise ConnectionError("the actor is gone")

    with progress.Display(5, FREE, stream, poll=broken) as display, display.stage("again"):
        pass
    assert "counters not available: ConnectionError" in stream.getvalue()
    assert "again: done" in stream.getvalue()


def test_a_log_that_cannot_encode_does_not_end_the_run() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    with progress.Display(5, FREE, stream) as display:
        display.note("starting – vLLM …")
    stream.seek(0)
    assert stream.read() == "starting ? vLLM ?\n"


def test_terminal_redraws_one_block_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real pseudo-terminal: every frame goes back over the one before, none scrolls."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    main, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    with os.fdopen(other, "w", encoding="utf-8") as stream:
        display = progress.Display(9, FREE, stream)
        with display, display.stage("judging"):
            for done in range(10):
                display.update({"judged": done, "sampled": 9, "failed": 0})
        time.sleep(0.05)
        seen = os.read(main, 1_000_000).decode()
    os.close(main)
    assert "9 of 9 rows" in seen
    # Every line gone down is gone up again, but for the one that ends the display.
    assert seen.count("\n") - seen.count("\x1b[1A") == 1
    assert seen.count("\x1b[2K") >= 10
