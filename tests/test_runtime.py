"""Where what a run cannot do without is started, on three nodes of one machine, in a process of its own."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_tally_and_keeper_are_on_the_drivers_node() -> None:
    command = [sys.executable, "-m", "tests.test_runtime"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    here, *found = json.loads(ended.stdout.splitlines()[-1])
    assert found == [here] * 5


def main() -> None:
    """The driver's node, which has no CPU to give, and where a keeper and four tallies in turn are."""
    import ray
    from ray.cluster_utils import Cluster

    from lr_ray import runtime
    from lr_ray.config import Config, Prices
    from lr_ray.llm import shared

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)

    def node(self: object) -> str:
        return ray.get_runtime_context().get_node_id()

    found = [ray.get_runtime_context().get_node_id()]
    keeper = shared.keeper(Config(run_dir="x"))
    found.append(ray.get(keeper.__ray_call__.remote(node)))
    for _ in range(4):
        with runtime.watch(Prices()) as watch:
            found.append(ray.get(watch.tally.__ray_call__.remote(node)))
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
