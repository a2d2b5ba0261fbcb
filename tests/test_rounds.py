"""LongReward in rounds: how each follows from the one before; two whole, on the real stack."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import rounds
from jobs.demo import task
from lr_ray import schemas, simulated
from lr_ray.config import Config, load
from lr_ray.judge.actor import JudgeActor
from lr_ray.store import Store
from tests.test_judge_actor import requests
from tests.test_llm_ledger_lookup import bucket  # noqa: F401 - a fixture
from tests.test_plan_several import answered, prompts, through

DEMO = Path(__file__).parents[1] / "jobs" / "demo"


def settings(tmp_path: Path, **sections: Any) -> Config:
    base: dict[str, Any] = {"run_dir": str(tmp_path / "run"), "sampling": {"model": "/models/first"}}
    return Config.model_validate(base | sections)


def test_a_round_follows_from_the_one_before(tmp_path: Path) -> None:
    config = settings(tmp_path, data={"prompts": ["a.jsonl", "p-{round}.jsonl"]})
    first, second, third = (rounds.of_round(config, number) for number in (1, 2, 3))
    assert [Path(one.run_dir).name for one in (first, second, third)] == ["round-1", "round-2", "round-3"]
    assert first.sampling.model == "/models/first"
    assert second.sampling.model == str(tmp_path / "run" / "round-1" / "model")
    assert third.sampling.model == str(tmp_path / "run" / "round-2" / "model")
    assert third.data.prompts == ["a.jsonl", "p-3.jsonl"]
    # Where these say nothing, training, its reference and the model before are the sampled one.
    assert third.training.model is third.evaluation.baseline is third.evaluation.model is None
    changed = {"run_dir", "data", "sampling"}
    assert third.model_dump(exclude=changed) == config.model_dump(exclude=changed)
    assert third.sampling.model_copy(update={"model": "/models/first"}) == config.sampling


@pytest.mark.parametrize(
    ("sections", "count", "says"),
    [
        ({"data": {"candidates": ["c.jsonl"]}}, 2, "data.candidates is set, but a round samples its own"),
        ({"training": {"model": "m"}}, 2, "training.model is set, but a round starts from the model it"),
        ({"training": {"data": ["p.jsonl"]}}, 2, "training.data is set, but a round trains on its own"),
        ({"training": {"method": "sft"}}, 2, "training.method is sft"),
        ({"evaluation": {"model": "m"}}, 2, "evaluation.model is set"),
        ({}, 0, "--rounds 0: at least one"),
    ],
)
def test_what_rounds_cannot_be_is_refused(
    tmp_path: Path, sections: dict[str, Any], count: int, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        rounds.check(settings(tmp_path, **sections), count)


def write(path: Path, seed: str, count: int) -> None:
    lines = (json.dumps(row) + "\n" for row in task.make_prompts(seed, count)[0])
    path.write_text("".join(lines))


def test_prompts_of_all_rounds_are_looked_at_first(tmp_path: Path) -> None:
    write(tmp_path / "p-1.jsonl", "one", 2)
    config = settings(tmp_path, data={"prompts": [str(tmp_path / "p-{round}.jsonl")]})
    rounds.check(config, 1)
    with pytest.raises(ValueError, match=r"p-2\.jsonl: no such file"):
        rounds.check(config, 2)


def finish(config: Config, tmp_path: Path) -> Store:
    """A round as it is when it is finished."""
    store = Store(config.run_dir)
    store.write(b"{}", "model", "config.json")
    return store


def test_a_finished_round_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def execute(config: Config, stages: tuple[str, ...]) -> int:
        assert stages == ("sample", "judge", "pairs", "train", "evaluate", "report")
        ran.append(f"{Path(config.run_dir).name} {config.sampling.model.rpartition('/run/')[2]}")
        finish(config, tmp_path)
        return len(ran) == 2

    monkeypatch.setattr(rounds.pipeline, "execute", execute)
    config = settings(tmp_path)
    assert rounds.run(config, 2) == 1
    assert ran == ["round-1 /models/first", "round-2 round-1/model"]
    assert rounds.run(config, 2) == 1  # what failed then is said again
    assert len(ran) == 2
    assert rounds.run(config, 3) == 1
    assert ran[2:] == ["round-3 round-2/model"]
    # With another setting each round's own stages say what of it is done.
    rounds.run(config.model_copy(update={"wait_for_nodes": 1.0}), 1)
    assert len(ran) == 4
    (tmp_path / "run" / "round-1" / "model" / "config.json").unlink()
    rounds.run(config.model_copy(update={"wait_for_nodes": 1.0}), 1)
    assert len(ran) == 5


def test_a_round_takes_what_the_one_before_has_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the user's own; it is no setting of the round, which is finished with or without it."""
    reused: list[list[str]] = []

    def execute(config: Config, stages: tuple[str, ...]) -> int:
        reused.append([one.removeprefix(str(tmp_path)) for one in config.judge.reuse])
        finish(config, tmp_path).write(b"", "calls", "x.jsonl")
        return 0

    monkeypatch.setattr(rounds.pipeline, "execute", execute)
    config = settings(tmp_path, judge={"reuse": [f"{tmp_path}/mine"]})
    rounds.run(config, 3)
    assert reused == [["/mine"], ["/mine", "/run/round-1"], ["/mine", "/run/round-2"]]
    (tmp_path / "run" / "round-1" / "calls" / "x.jsonl").unlink()
    rounds.run(config, 3)
    assert len(reused) == 3


def test_a_plan_says_of_which_round_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "p.jsonl", "plan", 2)
    file = tmp_path / "run.yaml"
    file.write_text(
        json.dumps({"run_dir": str(tmp_path / "run"), "data": {"prompts": [f"{tmp_path}/p.jsonl"]}})
    )
    assert rounds.main([str(file), "--plan", "--rounds", "3"]) == 0
    assert "rounds: 3; all above is the first alone" in capsys.readouterr().out
    assert rounds.main([str(file), "--plan", "--rounds", "1"]) == 0
    assert "first alone" not in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_without_a_model_there_is_no_next_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds.pipeline, "execute", lambda *_: 3)
    with pytest.raises(ValueError, match="no model came out of round 1"):
        rounds.run(settings(tmp_path), 2)
    assert not (tmp_path / "run" / "round-1" / "round.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_rounds_in_a_bucket(
    tmp_path: Path,
    bucket: str,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first round's answers are there; the second samples from the model that they made, by its URL."""
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(key, "test")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    sampled = answered("round 1", 16, 5)
    prompts(tmp_path / "p-1.jsonl", sampled)
    write(tmp_path / "p-2.jsonl", "round 2", 16)
    with simulated.running() as url:
        overrides = [
            f"run_dir={bucket.format('run')}",
            f"data.prompts=['{tmp_path}/p-{{round}}.jsonl']",
            f"sampling.model={DEMO / 'policy'}",
            f"judge.base_url={url}",
            *("sampling.n=5", "pairs.margin=0", "training.max_steps=2", "training.num_workers=1"),
            *("training.batch_size=4", "training.micro_batch_size=4"),
        ]
        config = load(str(DEMO / "demo.yaml"), overrides)
        begun = rounds.of_round(config, 1)
        there = Store(begun.run_dir)
        there.write_rows("sampled", sampled, schemas.SAMPLED)
        judged = through(JudgeActor, begun, there, (("sampled", row) for row in sampled))
        there.write_rows("judged", judged, schemas.JUDGED)
        # A process of its own: the tests' Ray may have been started without the bucket's keys.
        command = [sys.executable, rounds.__file__, str(DEMO / "demo.yaml"), "--rounds", "2", *overrides]
        subprocess.run(command, check=True, timeout=800)
        paid = requests(url)
        told = json.loads(Store(config.run_dir).read("rounds.json") or b"[]")
        assert rounds.run(config, 2) == 0
        assert requests(url) == paid
    assert [one["steps"] for one in told] == [2, 2]
    assert all(one["pairs"] >= 4 and one["prompts"] == 16 for one in told)
    first, second = (Store(rounds.of_round(config, number).run_dir) for number in (1, 2))
    ids = [{row["prompt_id"] for row in store.rows("sampled", ["prompt_id"])} for store in (first, second)]
    assert not ids[0] & ids[1]
    # The reference of the second round is the first round's model: at its first step nothing has moved.
    metrics = json.loads((second.read("metrics.jsonl") or b"").splitlines()[0])
    assert abs(metrics["rewards/margins"]) < 1e-3
    card = (second.read("model", "README.md") or b"").decode()
    assert "round-1/model" in card
