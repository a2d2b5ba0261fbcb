"""What engines of several workers reserve, and for how long; on a Ray that only counts its GPUs."""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lr_ray import rows, sampling
from lr_ray.config import Config, Prices, Sampling
from lr_ray.placement import Need, fit
from lr_ray.rollout import rollout
from lr_ray.store import Store

NODE = {"CPU": 4.0, "GPU": 2.0}
BOTH = {"num_gpus": 1, "num_cpus": 1, "engine": {"tensor_parallel_size": 2}}
MP = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


@pytest.mark.parametrize(
    ("settings", "each", "bundles"),
    [
        ({}, {"CPU": 0.5, "GPU": 0}, 1),
        ({"num_gpus": 1, "resources": {"x": 1}}, {"CPU": 0.5, "GPU": 1, "x": 1}, 1),
        (BOTH, {"CPU": 1, "GPU": 1}, 2),
        (
            {"num_gpus": 1, "engine": {"tensor_parallel_size": 2, "pipeline_parallel_size": 3}},
            {"CPU": 0.5, "GPU": 1},
            6,
        ),
        # What is not said is asked for all the same, by require too.
        ({"num_gpus": 0, "num_cpus": 0, "engine": {"tensor_parallel_size": 2}}, {"CPU": 1, "GPU": 1}, 2),
        ({"num_gpus": 1, "engine": {"distributed_executor_backend": "ray"}}, {"CPU": 0.5, "GPU": 1}, 1),
        # Processes of one actor are on one node.
        ({"num_gpus": 1, "engine": MP, "resources": {"x": 1}}, {"CPU": 0.5, "GPU": 2, "x": 1}, 1),
        ({"engine": MP}, {"CPU": 0.5, "GPU": 0}, 1),
    ],
)
def test_what_engines_ask_for(settings: dict[str, Any], each: dict[str, float], bundles: int) -> None:
    asked = sampling.need(Sampling.model_validate({"actors": 3, **settings}))
    assert asked == Need("sampling", 3, each, bundles)


def test_processes_of_one_actor_do_not_fit_on_two_nodes() -> None:
    halves = [{"CPU": 4.0, "GPU": 1.0}] * 2
    assert fit([sampling.need(Sampling.model_validate(BOTH))], halves) == [1]
    assert fit([sampling.need(Sampling.model_validate({"num_gpus": 1, "engine": MP}))], halves) is None


@pytest.mark.slow
def test_what_an_engine_reserves_is_free_when_its_rows_are_through(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.test_sampling_placement", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    broken, *found = json.loads(ended.stdout.splitlines()[-1])
    assert "this engine is broken" in broken
    # The actor holds no GPU itself where the engine's workers, which it starts in its group, do.
    assert [one[:3] for one in found[0]] == [one[:3] for one in found[1]] == [[0, 1, 1]]
    assert found[2] == [[2, 0, 0, ""]]
    # Two engines have two groups, and nobody has a third.
    assert [one[:3] for one in found[3]] == [[0, 1, 2]] * 2
    assert len({group for *_, group in found[3]}) == 2


class Engine:
    """In place of vLLM's: each row fails, and says how many GPUs the actor and a worker of its own have, how
    many groups there are, and which is the actor's."""

    def __init__(self, settings: Sampling, **_: Any) -> None:
        import ray

        if settings.model == "broken":
            raise RuntimeError("this engine is broken")
        worker, group = 0, ""
        if found := ray.util.get_current_placement_group():
            count = ray.remote(num_gpus=1, num_cpus=0)(lambda: len(ray.get_gpu_ids()))
            worker, group = ray.get(count.remote()), found.id.hex()
        there = [one for one in ray.util.placement_group_table().values() if one["state"] != "REMOVED"]
        self.says = json.dumps([len(ray.get_gpu_ids()), worker, len(there), group])
        time.sleep(2)  # so that neither of two engines is alone

    async def __call__(self, packed: rows.Packed) -> rows.Packed:
        await asyncio.sleep(1)
        return rows.failed(packed["prompt_id"], "sample", self.says)


def main(folder: Path) -> None:
    """Five flows in turn, each of which needs both GPUs; prints what became of them."""
    import ray

    from lr_ray import data, runtime

    ray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    runtime.start()
    sampling.Sampler = Engine  # type: ignore[misc, assignment]
    prompts = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt_id": one, "context": "c", "question": "q"}) for one in "abcdefgh"]
    prompts.write_text("\n".join(lines))
    pointers = data.scan([str(prompts)], [])
    found: list[Any] = []
    with runtime.watch(Prices()) as watch:
        two = {"engine": {"distributed_executor_backend": "ray"}, "actors": 2, "rows_in_flight": 1}
        for number, changes in enumerate([{"model": "broken"}, {}, {}, {"engine": MP}, two]):
            run_dir = str(folder / str(number))
            config = Config.model_validate({"run_dir": run_dir, "sampling": {**BOTH, **changes}})
            store = Store(run_dir)
            try:
                rollout(config, store, pointers, watch, judge=False)
                said = {row["reason"] for row in store.rows("failed")}
                found.append(sorted(map(json.loads, said)))
            except Exception as error:  # whatever Ray makes of it
                found.append(str(error))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
