"""What a run lacks is said before Ray is started, and before anything is paid."""

import json
from pathlib import Path
from typing import Any

import pytest

from lr_ray import compare, dry_run, lacking, pipeline, preflight, simulated
from lr_ray.config import Config
from lr_ray.schemas import JUDGED, PAIRS
from lr_ray.store import Store
from tests.test_pipeline import POLICY, judged, settings

PROMPT = {"prompt_id": "a", "context": "C.", "question": "Q?"}


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(tmp_path: Path, **sections: Any) -> Config:
    prompts = jsonl(tmp_path / "p.jsonl", PROMPT, {**PROMPT, "prompt_id": "b"})
    base = {"data": {"prompts": [prompts]}, "sampling": {"model": POLICY}}
    return settings(
        tmp_path, **base | {name: {**base.get(name, {}), **one} for name, one in sections.items()}
    )


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"sampling": {"n": 4}}, "sampling.n 4 is below pairs.min_candidates 5: no prompt could give a pair"),
        ({"sampling": {"n": 4}, "pairs": {"reward": "direct"}}, "sampling.n 4 is below"),
        ({"sampling": {"n": 4}, "pairs": {"reward": "contrast"}}, None),
        (
            {"sampling": {"n": 3}, "pairs": {"reward": "contrast"}},
            "sampling.n 3 is below .* 5 .*contrast adds",
        ),
        ({"sampling": {"n": 5}}, None),
        ({"sampling": {"n": 2}, "pairs": {"min_candidates": 2}}, None),
        ({"sampling": {"n": 1}, "training": {"data": ["pairs.jsonl"]}}, None),
    ],
)
def test_too_few_samples_for_any_pair(tmp_path: Path, sections: dict[str, Any], says: str | None) -> None:
    config = asked(tmp_path, **sections)
    found = preflight.inputs(config)
    if says is None:
        lacking.can_pair(config, found)
        return
    with pytest.raises(ValueError, match=says):
        lacking.can_pair(config, found)
    with pytest.raises(ValueError, match=says):
        preflight.check(config, ("sample", "judge", "pairs"))


def test_too_few_given_answers_for_any_pair(tmp_path: Path) -> None:
    rows = [
        {"prompt_id": "a", "candidates": ["one", "two", "three", "four", " "]},
        {"prompt_id": "b", "candidates": ["one", "two"]},
    ]
    given = {"candidates": [jsonl(tmp_path / "c.jsonl", *rows)]}
    config = asked(tmp_path, data=given, sampling={"n": 9})
    says = "data.candidates: at most 4 answers a prompt are below pairs.min_candidates 5"
    with pytest.raises(ValueError, match=says):
        preflight.check(config, ("judge", "pairs"))
    enough = asked(tmp_path, data=given, pairs={"min_candidates": 4})
    lacking.can_pair(enough, preflight.inputs(enough))


def test_each_run_of_a_comparison_must_be_able_to_give_pairs(tmp_path: Path) -> None:
    runs = {"strict": {"pairs.min_candidates": 7}, "short": {"training.data": [pairs(tmp_path / "s.jsonl")]}}
    with simulated.running() as url:
        sections: dict[str, Any] = {
            "judge": {"model": "sim", "base_url": url},
            "sampling": {"n": 6},
            "evaluation": {"prompts": [jsonl(tmp_path / "h.jsonl", PROMPT)]},
        }
        with pytest.raises(ValueError, match=r"sampling\.n 6 is below pairs\.min_candidates 7"):
            compare.checked(asked(tmp_path, **sections, compare={"runs": runs}))
        del runs["strict"]
        compare.checked(asked(tmp_path, **sections | {"sampling": {"n": 2}}, compare={"runs": runs}))


def pairs(path: Path) -> str:
    said = {"prompt": "Q?", "chosen": "Yes.", "rejected": "No."}
    return jsonl(path, said)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        (("judge",), "nothing is sampled there: sample first, or name data.candidates"),
        (("pairs",), "nothing is judged there: judge first"),
        (("train",), "no pairs to train on: judge and pair first, or name training.data"),
        (("evaluate", "report"), "evaluation.prompts is not set"),
    ],
)
def test_a_verb_with_nothing_to_work_on_starts_no_ray(
    tmp_path: Path, stages: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started() -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(pipeline.runtime, "start", started)
    monkeypatch.setattr("lr_ray.llm.client.check", lambda _: None)
    with pytest.raises(ValueError, match=says):
        pipeline.execute(asked(tmp_path), stages)
    assert not (tmp_path / "run").exists()


def test_a_verb_with_something_to_work_on_is_ready(tmp_path: Path) -> None:
    config = asked(tmp_path, evaluation={"prompts": [str(tmp_path / "p.jsonl")]})
    store = Store(config.run_dir)
    with pytest.raises(ValueError, match="no model to evaluate: train first"):
        lacking.ready(config, ("evaluate",))
    store.write_rows("judged", [judged("a", [2, 8])], JUDGED)
    for stages in (
        ("judge",),
        ("pairs",),
        ("retry_failed",),
        ("sample", "judge", "pairs", "train", "evaluate"),
    ):
        lacking.ready(config, stages)
    with pytest.raises(ValueError, match="no pairs to train on"):
        lacking.ready(config, ("train",))
    store.write_rows("pairs", [{"prompt_id": "a", **dict.fromkeys(PAIRS.names[1:])}], PAIRS)
    store.write(b"{}", "model", "config.json")
    for stages in (("train",), ("evaluate",)):
        lacking.ready(config, stages)
    for elsewhere in ({"training": {"data": ["x.jsonl"]}}, {"training": {"method": "sft"}}):
        lacking.ready(settings(tmp_path / "other", **elsewhere), ("train",))


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"judge": {"base_url": "ftp://x/v1"}}, "judge.base_url: 'ftp://x/v1' is no address"),
        ({"judge": {"base_url": ["http://a/v1", "b:8000/v1"]}}, "judge.base_url: .* is no address"),
        ({"rewards": {"direct": {"base_url": "x"}}}, "rewards.direct.base_url: 'x' is no address"),
    ],
)
def test_a_plan_refuses_an_endpoint_that_is_none(tmp_path: Path, sections: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        dry_run.text(asked(tmp_path, **sections))


def test_a_plan_needs_no_model_that_only_a_cluster_sees(tmp_path: Path) -> None:
    given = asked(tmp_path, sampling={"model": "/nope"}, judge={"base_url": "http://a:1/v1"})
    assert "the model is no local folder" in dry_run.text(given)
