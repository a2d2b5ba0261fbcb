"""On several hosts: submission from another one, refused without the token; parts that die. The short form.

`make test-hosts` strikes with every fault.
"""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from jobs import chaos_judge
from jobs.chaos_hosts import Campaign, Job, Judged
from jobs.hosts.cluster import Cluster
from jobs.hosts.network import Unavailable
from tests.manifests import unavailable

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def campaign() -> Iterator[Campaign]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LR_RAY_TRACEBACK", "1")  # whose lines say which lr_ray a job has run
        try:
            with Cluster() as cluster:
                cluster.start()
                one = Campaign(cluster)
                one.reference()
                yield one
        except Unavailable as error:
            unavailable(f"several hosts: {error}")


def test_a_judge_actor_that_is_killed_loses_nothing(campaign: Campaign) -> None:
    outcome = campaign.one("judge actor, kill -9")
    assert outcome.well, (outcome, (campaign.folder / "client.log").read_text()[-3000:])


def test_nobody_submits_without_the_token(campaign: Campaign) -> None:
    cluster = campaign.cluster
    command = [sys.executable, "-m", "lr_ray.cli", "submit", str(campaign.judged.job.file)]
    command += ["--address", cluster.dashboard]
    stranger = cluster.popen("client", command, cluster.environment(token=False))
    assert stranger.wait(120) == 2
    said = (campaign.folder / "client.log").read_text().splitlines()[-1]
    assert said.startswith(f"lr-ray: {cluster.dashboard} refuses us without the cluster's token")
    # Nor does what has no token reach the head's other port.
    join = [sys.executable, "-c", "import ray; ray.init()"]
    environment = cluster.environment(token=False) | {"RAY_ADDRESS": f"{cluster.address['head']}:6379"}
    assert cluster.popen("w1", join, environment).wait(120) != 0


def test_a_job_ends_with_the_exit_code_of_its_verb(campaign: Campaign) -> None:
    prompts = campaign.folder / "none.jsonl"
    config = {"run_dir": str(campaign.folder / "wrong"), "data": {"candidates": [str(prompts)]}}
    job = Job(campaign.cluster, "wrong", "judge", config | {"judge": {"model": "sim"}})
    before = len(said(campaign))
    assert job.submit().wait(120) == 2
    log = said(campaign)[before:]
    assert json.dumps(str(prompts)).strip('"') in log
    # What ran is what was sent: the package, whatever the hosts have installed.
    files = re.findall(r'File "([^"]+/lr_ray/[^"]+)"', log)
    assert files
    assert all("/runtime_resources/py_modules_files/_ray_pkg_" in file for file in files), files


def test_the_script_is_a_job_from_the_repository(campaign: Campaign) -> None:
    """The line of README.md and of the RayJob, with the whole repository as Ray packs it."""
    one = Judged(campaign.cluster, "script")
    arguments = [str(one.job.file), "--verb", "judge", "--rows-may-fail"]
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/pipeline.py", *arguments]
    environment = campaign.cluster.environment() | {"RAY_API_SERVER_ADDRESS": campaign.cluster.dashboard}
    before = len(said(campaign))
    client = campaign.cluster.popen("client", command, environment)
    assert client.wait(240) == 0, said(campaign)[before:][-3000:]
    assert chaos_judge.compared(one, campaign.judged) == (0, 0, True, True)


def said(campaign: Campaign) -> str:
    """What clients have shown so far."""
    return (campaign.folder / "client.log").read_text()


def test_ctrl_c_asks_whether_the_job_stops(campaign: Campaign) -> None:
    cluster = campaign.cluster
    before = cluster.stats()["requests"]
    keyboard, terminal = pty.openpty()
    client = Judged(cluster, "interrupted").job.submit(stdin=terminal)
    while cluster.stats()["requests"] < before + 50:
        assert client.poll() is None
        time.sleep(0.1)
    cluster.cable("judge", up=False)  # so that the job does not end by itself meanwhile
    client.send_signal(signal.SIGINT)
    os.write(keyboard, b"y\n")
    try:
        assert client.wait(240) == 130
    except subprocess.TimeoutExpired:
        pytest.fail((campaign.folder / "client.log").read_text()[-3000:])
    cluster.cable("judge")
    os.close(keyboard)
    os.close(terminal)
    log = (campaign.folder / "client.log").read_text()
    job = log.rpartition("Stop job ")[2].partition("?")[0]
    end = time.monotonic() + 120
    while (found := cluster.get(f"{cluster.dashboard}/api/jobs/{job}")["status"]) == "RUNNING":
        assert time.monotonic() < end
        time.sleep(0.5)
    assert found == "STOPPED"
