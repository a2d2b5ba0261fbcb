"""The parts of the loop that need no Ray: what is checked first, the claim, the pairs stage."""

import json
from pathlib import Path
from typing import Any

import pytest

from lr_ray import config, pipeline, preflight
from lr_ray.data import Place, Pointer
from lr_ray.schemas import JUDGED
from lr_ray.store import Store

POLICY = str(Path(__file__).parents[1] / "jobs" / "demo" / "policy")


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


def test_pairs_of_prompts_that_the_config_does_not_name_now_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is judged makes pairs, whatever the inputs are now; where these are known, it is said."""
    Store(str(tmp_path / "run")).write_rows("judged", [judged("a", [2, 8]), judged("b", [2, 9])], JUDGED)
    pointers = [Pointer(one, Place("p.jsonl", -1, 0, 0, 1), []) for one in ("a", "c")]
    asked = settings(tmp_path, pairs={"min_candidates": 2})
    run = pipeline.Run(asked, None, preflight.Found(prompts=pointers))  # type: ignore[arg-type]
    run.pairs()
    assert set(run.store.index("pairs")) == {"a", "b"}
    assert "pairs: 1 of 2 judged prompts are not in data.prompts now" in capsys.readouterr().err
    paired(tmp_path)
    assert "not in data.prompts" not in capsys.readouterr().err


def test_a_run_directory_keeps_to_what_its_rows_were_made_with(tmp_path: Path) -> None:
    preflight.claim(settings(tmp_path, sampling={"n": 4}))
    preflight.claim(settings(tmp_path, sampling={"n": 5}))  # nothing was sampled yet
    Store(str(tmp_path / "run")).write_rows("judged", [judged("a", [2, 8])], JUDGED)
    preflight.claim(settings(tmp_path, sampling={"n": 5, "actors": 2}))
    with pytest.raises(ValueError, match=r"sampling\.n=5; the config now says 6"):
        preflight.claim(settings(tmp_path, sampling={"n": 6}))


def test_an_evaluation_keeps_to_what_its_rows_were_made_with(tmp_path: Path) -> None:
    asked = {"parameters": {"extra_headers": {"X-Team": "a"}}}
    preflight.claim(settings(tmp_path, evaluation={"model": "one"}, judge=asked))
    preflight.claim(settings(tmp_path, evaluation={"model": "two"}, judge=asked))
    store = Store(str(tmp_path / "run"))
    store.sub("evaluation", "after").write_rows("judged", [judged("a", [2, 8])], JUDGED)
    preflight.claim(settings(tmp_path, evaluation={"model": "two"}, judge=asked))
    with pytest.raises(ValueError, match=r"evaluation\.model='two'; the config now says 'three'"):
        preflight.claim(settings(tmp_path, evaluation={"model": "three"}, judge=asked))
    with pytest.raises(ValueError, match=r"judge\.model=''; the config now says 'other'"):
        preflight.claim(settings(tmp_path, evaluation={"model": "two"}, judge={**asked, "model": "other"}))


def trained(store: Store) -> None:
    store.write(b"{}", "checkpoints", "step-00000100-abc", "complete.json")


def test_a_model_keeps_to_what_it_learned_with(tmp_path: Path) -> None:
    def claim(pairs: Any = None, **training: Any) -> None:
        sections = {"sampling": {"model": "/m/start"}, "pairs": pairs or {}, "training": training}
        preflight.claim(settings(tmp_path, **sections))

    store = Store(str(tmp_path / "run"))
    claim(beta=0.1)
    store.write(b"", "checkpoints", "ray", "state.json")
    claim(beta=0.2)  # nothing is learned yet
    trained(store)
    claim(beta=0.2, num_workers=4, batch_size=16, report_to=[], gradient_checkpointing=True)
    free = {
        "zero_optimization": {"stage": 3},
        "train_micro_batch_size_per_gpu": 4,
        "wall_clock_breakdown": True,
    }
    claim(beta=0.2, deepspeed=free, model="/m/start")
    saved = store.read("config.yaml")
    for says, pairs, changes in (
        (r"training\.beta=0\.2; the config now says 0\.3: use another run_dir", {}, {"beta": 0.3}),
        (
            r"training\.model='/m/start'; the config now says '/m/other'",
            {},
            {"beta": 0.2, "model": "/m/other"},
        ),
        (r"training\.deepspeed=\{\}", {}, {"beta": 0.2, "deepspeed": {"optimizer": {"type": "Lamb"}}}),
        (r"pairs\.margin=0\.0; the config now says 2\.0", {"margin": 2}, {"beta": 0.2}),
    ):
        with pytest.raises(ValueError, match=f"run was trained with {says}"):
            claim(pairs, **changes)
    assert store.read("config.yaml") == saved


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_rules_of_pairs_may_change_where_they_were_not_learned_from(tmp_path: Path, method: str) -> None:
    given = {"method": method, "data": ["rows.jsonl"]}
    preflight.claim(settings(tmp_path, training=given))
    Store(str(tmp_path / "run")).write(b"{}", "model", "config.json")
    preflight.claim(settings(tmp_path, training=given, pairs={"margin": 2}))
    with pytest.raises(ValueError, match=r"training\.data=\['rows\.jsonl'\]; the config now says"):
        preflight.claim(settings(tmp_path, training={**given, "data": ["other.jsonl"]}))


def test_secrets_may_change_and_what_stands_beside_them_may_not(tmp_path: Path) -> None:
    def claim(key: str, level: int) -> None:
        parameters = {"extra_query": {"api_key": key, "level": level}}
        preflight.claim(settings(tmp_path, judge={"parameters": parameters}))

    claim("one", 1)
    Store(str(tmp_path / "run")).write_rows("judged", [judged("a", [2, 8])], JUDGED)
    claim("two", 1)
    with pytest.raises(ValueError, match=r"'level': 1.*; the config now says .*'level': 2") as caught:
        claim("two", 2)
    assert "two" not in str(caught.value)


def test_rows_judged_with_other_prompts_are_not_added_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preflight.claim(settings(tmp_path), ("judge",))
    Store(str(tmp_path / "run")).write_rows("judged", [judged("a", [2, 8])], JUDGED)
    preflight.claim(settings(tmp_path), ("judge",))
    monkeypatch.setattr(preflight, "prompts_hash", lambda: "other")
    preflight.claim(settings(tmp_path), ("pairs", "train", "report"))
    with pytest.raises(ValueError, match="the prompts of another version of lr-ray"):
        preflight.claim(settings(tmp_path), ("judge",))


def test_the_hash_of_the_prompts_depends_on_their_texts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "support.en.md").write_text("one")
    monkeypatch.setattr(preflight, "files", lambda _: tmp_path)
    one = preflight.prompts_hash()
    (tmp_path / "prompts" / "support.en.md").write_text("two")
    assert preflight.prompts_hash() != one


def test_inputs_are_checked_once_and_handed_on(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt_id": "a", "context": "C.", "question": "Q?"}) + "\n")
    found = preflight.check(settings(tmp_path, data={"prompts": [str(path)]}), ("pairs",))
    assert found == preflight.Found([], [])
    with pytest.raises(ValueError, match=r"data\.prompts is not set"):
        preflight.check(settings(tmp_path), ("sample",))


def test_a_report_alone_needs_no_ray_and_leaves_the_config_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.write_rows("judged", [judged("a", [2, 8])], JUDGED)
    with pytest.raises(ValueError, match=r"run: not a run directory, it has no config\.yaml"):
        pipeline.execute(settings(tmp_path), ("report",))
    preflight.claim(settings(tmp_path))
    saved = store.read("config.yaml")
    assert pipeline.execute(settings(tmp_path, training={"beta": 3.0}), ("report",)) == 0
    assert (tmp_path / "run" / "report.html").exists()
    assert store.read("config.yaml") == saved


@pytest.mark.parametrize(
    ("stage", "sections", "says"),
    [
        (
            "train",
            {"training": {"model": "/no/start"}},
            "training.model or sampling.model: /no/start: no such",
        ),
        (
            "evaluate",
            {"evaluation": {"baseline": "/no/b"}},
            "evaluation.baseline .*: /no/b: no such model folder",
        ),
        ("evaluate", {"evaluation": {"model": "./no"}}, "evaluation.model: ./no: no such model folder"),
    ],
)
def test_a_model_that_is_not_there_is_found_before_anything_is_paid(
    tmp_path: Path, stage: str, sections: dict[str, Any], says: str
) -> None:
    ruler = {"benchmarks": [{"kind": "ruler", "tasks": ["single"], "lengths": [600], "cases": 1}]}
    base = {"sampling": {"model": POLICY}, "evaluation": ruler if stage == "evaluate" else {}}
    merged = {**base, **{name: {**base.get(name, {}), **given} for name, given in sections.items()}}
    with pytest.raises(ValueError, match=says):
        preflight.check(settings(tmp_path, **merged), (stage,))


def test_retry_failed_with_nothing_failed_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.execute(settings(tmp_path), pipeline.RETRY) == 0
    assert "nothing is in failed/" in capsys.readouterr().err
