"""A comparison whole, on the real stack: what is shared, what a second call does, what is taken up again."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.demo import task
from lr_ray import compare, simulated
from lr_ray import config as configs
from lr_ray.cli import cli, guarded
from lr_ray.config import Config
from lr_ray.llm import usage
from lr_ray.schemas import FAILED, JUDGED, REWARDED
from lr_ray.store import Store
from tests.test_compare import POLICY
from tests.test_judge_actor import requests
from tests.test_plan_several import paid as paid_in
from tests.test_rewards_srm import saved


def whole(tmp_path: Path, url: str) -> Config:
    """A reward model's run, and one of direct comparisons whose rules leave no pair; answers from a file."""
    rows, _ = task.make_prompts("compare", 15)
    items, rng = task.make_items("compare", 15), random.Random(0)
    kinds: tuple[task.Kind, ...] = ("good", "wrong", "incomplete")
    answers = [
        {"prompt_id": row["prompt_id"], "candidates": [task.answer_of_kind(k, item, rng) for k in kinds]}
        for row, item in zip(rows, items, strict=True)
    ]
    files: dict[str, Any] = {"prompts": rows[:12], "held_out": rows[12:], "answers": answers[:12]}
    for name, some in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    demo = yaml.safe_load((Path(POLICY).parent / "demo.yaml").read_text())
    demo["sampling"] |= {"model": POLICY, "n": 3}
    demo["judge"] |= {"base_url": url, "prices": {"prompt": 1.0, "completion": 1.0}}
    demo["training"] |= {"max_steps": 2, "batch_size": 4, "micro_batch_size": 2, "num_workers": 1}
    rated = {"pairs.reward": "srm", "pairs.margin": 0.0, "rewards.srm.model": saved(tmp_path / "rater")}
    none = {"pairs.reward": "direct", "pairs.margin": 100}
    return Config.model_validate(
        {
            **demo,
            "run_dir": str(tmp_path / "run"),
            "data": {
                "prompts": [str(tmp_path / "prompts.jsonl")],
                "candidates": [str(tmp_path / "answers.jsonl")],
            },
            "pairs": {"min_candidates": 3},
            "evaluation": {"n": 1, "prompts": [str(tmp_path / "held_out.jsonl")]},
            "compare": {"runs": {"rated": rated, "none": none}},
        }
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_comparison_shares_what_can_be_shared_and_resumes(
    tmp_path: Path, ray_cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with simulated.running() as url:
        config = whole(tmp_path, url)
        failed, result = compare.execute(config)
        paid = requests(url)
        before = {path: path.stat().st_mtime_ns for path in kept(tmp_path)}
        assert compare.execute(config) == (failed, result)
        assert requests(url) == paid
        assert {path: path.stat().st_mtime_ns for path in kept(tmp_path)} == before
        taken_up(tmp_path, config)
        assert requests(url) == paid
    assert json.loads((tmp_path / "run" / "compare.json").read_text()) == result
    assert failed == 0
    assert "none-seed0 has no pairs, so nothing is trained" in capsys.readouterr().err
    base = Store(config.run_dir)
    assert base.folders("compare") == ["none-seed0", "rated-seed0"]
    assert base.folders("evaluation") == ["before"]
    assert base.sub("compare", "rated-seed0").folders("evaluation") == ["after"]
    assert [name.partition("-")[0] for name in base.folders("rewards")] == ["direct", "srm"]
    found = {(row["metric"], row["run"]): row for row in result["table"]}
    assert found["reward", "rated"]["before"]["prompts"] == 3
    assert found["reward", "none"]["mean"] is None
    rated, none = (run["seeds"][0] for run in result["runs"])
    assert (rated["steps"], rated["pairs"], rated["rows"]) == (2, 12, 12)
    assert (none["pairs"], sum(none["dropped"].values())) == (0, 12)
    # All that was paid is in a ledger, and the budget counts all of them.
    everywhere = [base, base.sub("evaluation", "before"), *map(base.sub, ledgers(tmp_path))]
    used = usage.Used()
    for store in everywhere:
        for one in usage.by_kind(store).values():
            used.add(one)
    assert len(everywhere) == 4
    # Of the model after the extracts are those of the model before.
    assert sum(one.calls for one in paid_in(everywhere).values()) == paid < used.calls
    tokens = used.prompt_tokens + used.completion_tokens
    assert usage.money(base, config.judge.prices) == pytest.approx(tokens / 1e6)


def taken_up(tmp_path: Path, config: Config) -> None:
    """Rows of a run's evaluation and of its rewards fail, and are taken up again, as `retry-failed` says."""
    base = Store(config.run_dir)
    after = base.sub("compare", "rated-seed0", "evaluation", "after")
    (direct,) = (base.sub("rewards", name) for name in base.folders("rewards") if name.startswith("direct"))
    for there, kind, schema in ((after, "judged", JUDGED), (direct, "rewarded", REWARDED)):
        first, *others = list(there.rows(kind))
        there.clear(kind)
        there.write_rows(kind, others, schema)
        failure = {"prompt_id": first["prompt_id"], "stage": "judge", "reason": "a bad day"}
        there.write_rows("failed", [failure], FAILED)
    file = tmp_path / "compare.yaml"
    file.write_text(configs.dump(config))
    assert guarded(lambda: cli.main(["retry-failed", str(file)], standalone_mode=False)) == 0
    for there, kind in ((after, "judged"), (direct, "rewarded")):
        assert not there.files("failed")
        assert len(there.index(kind)) == (3 if kind == "judged" else 12)
    # Its pairs rest on what is there now.
    none = base.sub("compare", "none-seed0")
    assert not none.exists("pairs.json")
    assert compare.execute(config)[0] == 0


def ledgers(tmp_path: Path) -> list[str]:
    run = tmp_path / "run"
    found = [*run.glob("rewards/*/calls"), *run.glob("compare/*/evaluation/*/calls")]
    return [str(path.parent.relative_to(run)) for path in found]


def kept(tmp_path: Path) -> list[Path]:
    """What a second call must leave alone."""
    folders = ("sampled", "judged", "calls", "rewarded", "pairs", "model", "reference")
    every = (path for path in (tmp_path / "run").rglob("*") if path.is_file())
    return [path for path in every if set(path.parts) & set(folders) and path.name != "README.md"]
