"""The reference's log-probs as a Ray Data job: right, complete, and paid once however often it is killed."""

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch

from lr_ray import data
from lr_ray.config import Config
from lr_ray.store import Store
from lr_ray.training import launch, reference, scoring
from lr_ray.training.batch import pad_pairs
from lr_ray.training.logps import Policy
from lr_ray.training.tokens import Encoder

PAIRS = 480


def write_pairs(path: Path, count: int = PAIRS) -> None:
    rng = random.Random(3)
    rows = [
        {
            "prompt": f"{number} " + "red " * rng.randint(1, 60),
            "chosen": "yes " * rng.randint(1, 9),
            "rejected": "no " * rng.randint(1, 9),
        }
        for number in range(count)
    ]
    rows[7]["prompt"] = "long " * 300  # over the window
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def config(folder: Path, model: str, pairs: Path) -> Config:
    training = {"data": [str(pairs)], "num_cpus": 0.5, "micro_batch_size": 2, "reference_actors": 1}
    tree: dict[str, Any] = {"run_dir": str(folder), "sampling": {"model": model}, "training": training}
    return launch.check(Config.model_validate(tree))


def kill_in_mid_job(settings: Config, store: Store) -> int:
    """Run the job in a process that is killed at the first scores; how many are there when all is dead."""
    import ray

    def work() -> int:
        Path(settings.run_dir, "pid").write_text(str(os.getpid()))
        return scoring.score(settings, store)

    remote: Any = ray.remote(work).options(num_cpus=0, max_retries=0)
    future = remote.remote()
    folder = Path(store.path("reference"))
    while not list(folder.glob("*/*.parquet")):
        assert not ray.wait([future], timeout=0)[0], ray.get(future)
        time.sleep(0.01)
    os.kill(int(Path(settings.run_dir, "pid").read_text()), signal.SIGKILL)
    with pytest.raises(Exception, match="died"):
        ray.get(future)
    before = -1
    while before != (found := len(list(folder.glob("*/*.parquet")))):
        before = found
        time.sleep(2)
    return found * scoring.ROWS_A_BLOCK


@pytest.mark.slow
def test_a_killed_job_pays_only_for_the_rest(tmp_path: Path, ray_cluster: None) -> None:
    model = tiny_model.save(tmp_path / "start")
    write_pairs(tmp_path / "pairs.jsonl")
    (tmp_path / "run").mkdir()
    settings = config(tmp_path / "run", model, tmp_path / "pairs.jsonl")
    store = Store(settings.run_dir)
    there = kill_in_mid_job(settings, store)
    assert 0 < there < PAIRS
    paid = scoring.score(settings, store)
    # One pair does not fit; its block has a row less.
    assert paid in (PAIRS - 1 - there, PAIRS - there)
    cache = reference.Cache(store, reference.fingerprint(model, "fp32"))
    found = cache.load()
    assert len(found) == PAIRS - 1
    assert len(list(Path(store.path("reference")).glob("*/*.parquet"))) == 1
    policy, encoder = Policy(tiny_model.model()), Encoder(model)
    for line in (tmp_path / "pairs.jsonl").read_text().splitlines()[:5]:
        row = json.loads(line)
        prompt = [{"role": "user", "content": row["prompt"]}]
        answers = {side: [{"role": "assistant", "content": row[side]}] for side in ("chosen", "rejected")}
        pair = encoder.pair({"prompt": prompt, **answers}, "row")
        expected = reference.score(policy, pad_pairs([pair]))[0]
        assert found[reference.key(pair)] == pytest.approx(expected, rel=1e-5)
    assert torch.isfinite(torch.tensor(list(found.values()))).all()


def test_a_bad_row_and_what_is_known_or_too_long(tmp_path: Path) -> None:
    model = tiny_model.save(tmp_path / "start")
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, 10)
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "red", "chosen": "yes", "rejected": " "}) + "\n")
    places = [place for place, _ in data.rows([str(path)])]
    known = scoring.Reference(model, "x", 512, "fp32")
    first = scoring._tokenise({"places": [places]}, known, frozenset()).to_pylist()
    assert len(first) == 10  # all but the long one
    assert first[-1]["error"] == f"{path}: line 11: rejected: the answer is empty"
    again = scoring._tokenise({"places": [places]}, known, frozenset(row["key"] for row in first[:4]))
    assert again.to_pylist() == first[4:]
