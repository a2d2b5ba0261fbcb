"""The parts of the loop that need no Ray: the run directory's claim, the pairs stage, the forecast."""

import json
from pathlib import Path
from typing import Any

import pytest

from lr_ray import config, pipeline, plan
from lr_ray.rows import JUDGED
from lr_ray.store import Store


def settings(tmp_path: Path, **sections: Any) -> config.Config:
    return config.Config.model_validate({"run_dir": str(tmp_path / "run"), **sections})


def judged(prompt_id: str, rewards: list[float | None]) -> dict[str, Any]:
    names = ("helpfulness", "logicality", "faithfulness", "completeness")
    return {
        **{"prompt_id": prompt_id, "context": "C.", "question": "Q?", "reference_answer": None},
        "prompt": [{"role": "user", "content": "C.\n\nQ?"}],
        "candidates": [
            {
                **{"index": index, "text": f"answer {index}", "finish_reason": "stop", "reward": reward},
                "scores": dict.fromkeys(names, reward),
                "unscored": [],
                "statements": [],
                "analyses": dict.fromkeys(("helpfulness", "logicality", "completeness"), ""),
            }
            for index, reward in enumerate(rewards)
        ],
        **{"extracts": [], "language": "en", "sampled_at": 0.0, "first_call_at": 0.0, "judged_at": 0.0},
        "usage": None,
    }


def paired(tmp_path: Path, **rules: Any) -> tuple[pipeline.Run, dict[str, Any]]:
    run = pipeline.Run(settings(tmp_path, pairs={"min_candidates": 2, **rules}), None)  # type: ignore[arg-type]
    run.pairs()
    return run, json.loads(run.store.read("pairs.json") or b"")


def test_pairs_are_counted_and_so_is_what_was_dropped(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.write_rows("judged", [judged("b", [9, 1, 5]), judged("a", [2, 8])], JUDGED)
    store.write_rows("judged", [judged("c", [4, 4]), judged("d", [4, None])], JUDGED)
    run, audit = paired(tmp_path)
    rows = list(run.store.rows("pairs"))
    assert [(r["prompt_id"], r["index_chosen"], r["index_rejected"]) for r in rows] == [
        ("a", 1, 0),
        ("b", 0, 1),
    ]
    assert (audit["prompts"], audit["pairs"], sum(audit["dropped"].values())) == (4, 2, 2)


def test_pairs_are_made_again_when_the_rules_change_until_they_were_trained_on(tmp_path: Path) -> None:
    Store(str(tmp_path / "run")).write_rows("judged", [judged("a", [2, 8]), judged("b", [2, 3])], JUDGED)
    assert paired(tmp_path)[1]["pairs"] == 2
    run, audit = paired(tmp_path, margin=2)
    assert audit["pairs"] == len(run.store.index("pairs")) == 1
    run.store.write(b"", "checkpoints", "x")
    with pytest.raises(ValueError, match="trained on other pairs"):
        paired(tmp_path, margin=0)


def test_a_run_directory_keeps_to_what_its_rows_were_made_with(tmp_path: Path) -> None:
    pipeline.claim(settings(tmp_path, sampling={"n": 4}))
    pipeline.claim(settings(tmp_path, sampling={"n": 5}))  # nothing was sampled yet
    Store(str(tmp_path / "run")).write_rows("judged", [judged("a", [2, 8])], JUDGED)
    pipeline.claim(settings(tmp_path, sampling={"n": 5, "actors": 2}))
    with pytest.raises(ValueError, match=r"sampling\.n=5; the config now says 6"):
        pipeline.claim(settings(tmp_path, sampling={"n": 6}))


def test_plan_counts_calls_as_the_method_has_them(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    # 32k tokens of four bytes: 8 chunks, so 8 + 10 * (4 + 10) = 148 calls (method's own count).
    context = "word " * (32_768 * 4 // 5)
    path.write_text(json.dumps({"prompt_id": "a", "context": context, "question": "Q?"}) + "\n")
    forecast = plan.forecast(settings(tmp_path, data={"prompts": [str(path)]}))
    assert sum(forecast.calls.values()) == pytest.approx(148, abs=1)
    assert forecast.money is None
    assert "support" in plan.render(forecast)


def test_plan_reads_parameters_from_headers() -> None:
    policy = Path(__file__).parents[1] / "jobs" / "demo" / "policy"
    assert plan.count_parameters(str(policy)) == 445_312
    assert plan.count_parameters("no/such/folder") is None
