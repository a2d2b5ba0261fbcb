"""What is read from a run directory for its report, and how figures become words and lines."""

from pathlib import Path

import pytest

from lr_ray import report
from lr_ray.report import facts, plots, words
from lr_ray.store import Store
from tests.report_run import Page, build


def test_figures_are_right(tmp_path: Path) -> None:
    store = build(tmp_path / "run")
    found = facts.gather(store)
    scored = [
        c["reward"] for row in store.rows("judged") for c in row["candidates"] if c["reward"] is not None
    ]
    spread = found.spreads["reward"]["all"]
    assert (found.prompts, found.candidates) == (40, 320)
    assert (spread.count, sum(spread.bins)) == (len(scored), len(scored))
    assert spread.mean == pytest.approx(sum(scored) / len(scored))
    chosen = [row["score_chosen"] for row in store.rows("pairs")]
    assert found.spreads["reward"]["chosen"].mean == pytest.approx(sum(chosen) / len(chosen))
    assert found.usage["prompt_tokens"] == 40 * 90_000
    assert found.unscored.total == 320 - len(scored)
    # Seven refusals that differ in a token count are one reason.
    assert ("sampling", "prompt has 9000 tokens, the window is 8192", 7) in found.failed.rows()
    text = " ".join(Page(report.render(found)).text.split())
    assert "On 128 held-out prompts the mean reward rose: 5.31 before, 6.73 after: +1.42" in text
    assert "Not clearly moved: logicality" not in text
    assert "not clearly moved: logicality" in text
    assert "1 unreadable line of metrics.jsonl" in text
    # 40 prompts at 90k × 0.4 + 9k × 1.6 a million, cached tokens at the same price
    assert "2.02" in text


def test_examples_are_bounded_and_the_same_each_time(tmp_path: Path) -> None:
    store = build(tmp_path / "run")
    found = facts.gather(store, examples=6)
    assert len(found.examples) == 6
    again = facts.gather(store, examples=6)
    assert [row["prompt_id"] for row in again.examples] == [row["prompt_id"] for row in found.examples]
    other = facts.gather(store, examples=6, seed=1)
    assert [row["prompt_id"] for row in other.examples] != [row["prompt_id"] for row in found.examples]
    row = found.examples[0]
    rewards = {c["index"]: c["reward"] for c in row["candidates"]}
    assert rewards[row["chosen"]] == max(value for value in rewards.values() if value is not None)
    row["candidates"][row["chosen"]]["text"] = "x" * 5_000_000
    page = report.render(found)
    assert "… 4,994,000 characters not shown …" in Page(page).text
    assert len(page) < 2_000_000


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 1.0, "rose"), (-1.0, -0.1, "fell"), (-0.1, 1.0, "no clear change")]
)
def test_the_verdict_claims_what_the_interval_does(low: float, high: float, said: str) -> None:
    row = {"metric": "reward", "before": 5.0, "after": 5.4, "difference": 0.4, "low": low, "high": high}
    found = facts.Gathered("run", evaluation={"table": [{**row, "prompts": 9}]})
    assert said in words.verdict(found)[0]


def test_metrics_of_a_resumed_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.write(
        b'{"step": 1, "loss": 9}\n{"step": 2, "loss": 8}\n{"step": 2, "loss": 7}\n[1]\n', "metrics.jsonl"
    )
    found = facts.gather(store)
    assert [(row["step"], row["loss"]) for row in found.metrics] == [(1, 9), (2, 7)]
    assert found.unreadable_metrics == 1


def test_reasons_stay_bounded() -> None:
    reasons = facts.Reasons()
    for number in range(5000):
        reasons.add("judging", f"strange reason {chr(0x4E00 + number)}")
    assert reasons.total == 5000
    assert len(reasons.rows()) <= 201


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (0.013, 0.69, [0, 0.2, 0.4, 0.6, 0.8]), (3.0, 3.0, [3.0])],
)
def test_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert plots.ticks(low, high) == ticks


def test_long_curves_are_thinned_without_moving() -> None:
    points = [(float(x), 2.0 * x) for x in range(10_000)]
    thin = plots._thin(points)
    assert len(thin) <= 300
    assert all(y == pytest.approx(2 * x) for x, y in thin)
    assert all(y == pytest.approx(2 * x) for x, y in plots._smooth(thin)[15:-15])


def test_clip_counts_what_it_hides() -> None:
    assert (
        words.clip("<a>" * 4, 4, 2) == '&lt;a&gt;&lt;<span class="cut">… 6 characters not shown …</span>a&gt;'
    )
    assert words.clip("short", 5) == "short"
