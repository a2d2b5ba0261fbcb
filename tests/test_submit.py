"""What is refused before anything is sent to a cluster. The sending itself: test_hosts."""

from pathlib import Path
from typing import Any

import pytest

from lr_ray.config import Config
from lr_ray.submit import check, submit


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run_dir": "runs/a"}, "run_dir: runs/a is relative"),
        ({"data": {"prompts": ["/d/a.jsonl", "b.jsonl"]}}, "data.prompts: b.jsonl is relative"),
        ({"data": {"candidates": ["~/c.jsonl"]}}, "data.candidates: ~/c.jsonl is relative"),
        ({"sampling": {"model": "lr_ray"}}, "sampling.model: lr_ray is relative"),
        ({"training": {"mix": {"data": ["m.jsonl"]}}}, "training.mix.data: m.jsonl is relative"),
        ({"judge": {"reuse": ["runs/b"]}}, "judge.reuse: runs/b is relative"),
    ],
)
def test_paths_of_this_machine_are_refused(
    sections: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    config = Config.model_validate({"run_dir": "/shared/a", **sections})
    with pytest.raises(ValueError, match=f"^{message} to a folder of this machine; "):
        check(config)


def test_places_that_a_cluster_sees_are_taken() -> None:
    check(
        Config.model_validate(
            {
                "run_dir": "s3://bucket/runs/a",
                "data": {"prompts": ["/shared/*.jsonl", "hf://datasets/a/b/c.jsonl"]},
                "sampling": {"model": "organisation/name"},
                "training": {"model": "/models/a"},
            }
        )
    )


@pytest.mark.parametrize("address", [None, "auto", "10.0.0.1:6379"])
def test_an_address_is_a_dashboard(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=r"^no cluster to submit to: give --address "):
        submit(Config(run_dir="/shared/a"), "run", address, ask=lambda _: False)


def test_nothing_answers_there() -> None:
    with pytest.raises(ValueError, match=r"^http://127.0.0.1:9: no Ray dashboard answers there$"):
        submit(Config(run_dir="/shared/a"), "run", "http://127.0.0.1:9", ask=lambda _: False)
