"""A run directory keeps to the prompts of its grades, and to what its comparisons were shown."""

from pathlib import Path
from typing import Any

import pytest

from lr_ray import preflight, rewards, simulated
from lr_ray.benchmarks import claim
from lr_ray.config import Config
from lr_ray.judge import direct
from lr_ray.store import Store


def config(tmp_path: Path, **sections: Any) -> Config:
    evaluation = {"benchmarks": [{"kind": "alpaca_eval", "path": "a.json", "win_rate": "question"}]}
    judge = {"model": "sim", "base_url": "http://127.0.0.1:9/v1"}
    return Config.model_validate(
        {"run_dir": str(tmp_path / "run"), "judge": judge, **{"evaluation": evaluation, **sections}}
    )


def there(tmp_path: Path, *parts: str) -> None:
    """A finished file of rows."""
    Store(str(tmp_path / "run")).write(b"", *parts, "x.parquet")


@pytest.mark.parametrize(
    "graded",
    [
        ("evaluation", "benchmarks_before", "graded"),
        ("evaluation", "wins", "graded"),
        ("compare", "length-seed0", "evaluation", "benchmarks_after", "graded"),
    ],
)
def test_grades_of_other_prompts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graded: tuple[str, ...]
) -> None:
    asked = config(tmp_path)
    preflight.claim(asked, ("evaluate",))
    real = claim.prompts_hash
    monkeypatch.setattr(claim, "prompts_hash", lambda: "other")
    preflight.claim(asked, ("evaluate",))  # nothing is graded yet
    there(tmp_path, *graded)
    preflight.claim(asked, ("evaluate",))
    monkeypatch.setattr(claim, "prompts_hash", real)
    for stages in (("evaluate",), ("sample", "judge", "evaluate"), preflight.RETRY):
        with pytest.raises(ValueError, match="graded with the prompts of another version"):
            preflight.claim(asked, stages)
    preflight.claim(asked, ("pairs",))


def test_grades_of_no_known_prompts_are_taken_for_ours(tmp_path: Path) -> None:
    there(tmp_path, "evaluation", "benchmarks_before", "graded")
    preflight.claim(config(tmp_path), ("evaluate",))


def test_comparisons_keep_to_what_they_were_shown(tmp_path: Path) -> None:
    asked = config(tmp_path)
    benchmark = asked.evaluation.benchmarks[0]

    def showing(sees: str | None, **more: Any) -> Config:
        changed = benchmark.model_copy(update={"win_rate": sees}).model_dump()
        return config(tmp_path, evaluation={"benchmarks": [changed], **more})

    preflight.claim(showing("question"), ("evaluate",))
    preflight.claim(showing("document"), ("evaluate",))
    there(tmp_path, "evaluation", "wins", "graded")
    # More may be compared, or nothing any more; then it is still known what was shown.
    preflight.claim(showing(None), ("evaluate",))
    preflight.claim(showing("document", win_rate="question"), ("evaluate",))
    with pytest.raises(ValueError, match=r"alpaca_eval: .*win_rate='document'; the config now .*'question'"):
        preflight.claim(showing("question"), ("evaluate",))
    with pytest.raises(ValueError, match=r"held-out prompts: .*win_rate='question'"):
        preflight.claim(showing("document", win_rate="document"), ("evaluate",))


def test_direct_calls_of_other_prompts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "asked with the prompts of another version"
    with simulated.running() as url:
        judge = {"model": "sim", "base_url": url}
        asked = config(tmp_path, pairs={"reward": "direct"}, judge=judge)
        rewards.check(asked)
        kept = rewards.folder(asked, Store(asked.run_dir))
        kept.write(b"another", rewards.direct.ASKED_WITH)
        rewards.check(asked)  # nothing was asked
        kept.write(b"", "rewarded", "x.parquet")
        with pytest.raises(ValueError, match=says):
            rewards.check(asked)
        kept.write(direct.prompts_hash().encode(), rewards.direct.ASKED_WITH)
        rewards.check(asked)
        monkeypatch.setattr(direct, "template", lambda *_: ("other", "words"))
        with pytest.raises(ValueError, match=says):
            rewards.check(asked)
