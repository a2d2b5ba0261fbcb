"""A run as a job on a Ray cluster: send the config and this package, follow the log, end as the job ends.

What is sent is small: the config with its overrides applied, and lr_ray's own source, so that the cluster
runs this version whatever its image holds. Models, data and the run directory are where the config says,
which must be places that the cluster sees; the judge's key is in the cluster's environment, for Ray shows to
whoever may read its dashboard what a job is sent.
"""

import asyncio
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from lr_ray import config as configs
from lr_ray.config import Config
from lr_ray.progress import say

VERBS = (
    "run",
    "sample",
    "judge",
    "pairs",
    "train",
    "evaluate",
    "compare",
    "agreement",
    "report",
    "retry-failed",
    "plan",
    "serve-judge",
)
STOPPED = 3
INTERRUPTED = 130
CONFIG = "run.yaml"
SETTLE = 30.0  # seconds in which a job whose log has ended must have an end of its own

Ask = Callable[[str], bool]


def submit(config: Config, verb: str, address: str | None = None, *, follow: bool = True, ask: Ask) -> int:
    """Submit `lr-ray VERB` with `config` to the cluster whose dashboard is at `address`.

    `address` is as http://HOST:8265; none: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS where it is such a one.
    On Ctrl-C, `ask` gets a question and says whether the job is to be stopped.

    Returns:
        The job's exit code (0 at once where `follow` is false); 130 after Ctrl-C; 3: the job has none.

    Raises:
        ValueError: no address, nothing answers there, it refuses us, or the config names places that only
            this machine knows.
    """
    check(config)
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="lr-ray-submit") as folder:
        Path(folder, CONFIG).write_text(
            yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True), encoding="utf-8"
        )
        job = client.submit_job(
            # The interpreter of the cluster, with the package that was sent first on its path.
            entrypoint=shlex.join(["python", "-m", "lr_ray.cli", verb, CONFIG]),
            runtime_env={"working_dir": folder, "py_modules": [str(Path(configs.__file__).parent)]},
            metadata={"lr_ray_run_dir": config.run_dir, "lr_ray_verb": verb},
        )
    say(f"job {job} is submitted: lr-ray {verb} on {config.run_dir}")
    if not follow:
        return 0
    try:
        asyncio.run(_follow(client, job))
        return _code(client, job)
    except KeyboardInterrupt:
        if ask(f"Stop job {job}? Otherwise it goes on without you"):
            client.stop_job(job)
            say(f"job {job} is stopped; the same command again goes on from there")
        else:
            say(f"job {job} goes on; its log: ray job logs --follow {job}")
        return INTERRUPTED


def check(config: Config) -> None:
    """Refuse a config whose paths mean something else, or nothing, on another machine.

    Raises:
        ValueError: one sentence naming the key and the path.
    """
    sampling, training, evaluation = config.sampling, config.training, config.evaluation
    agreement = config.agreement
    named = {
        "run_dir": [config.run_dir],
        "data.prompts": config.data.prompts,
        "data.candidates": config.data.candidates,
        "sampling.model": [sampling.model],
        "judge.reuse": config.judge.reuse,
        "training.model": [training.model],
        "training.data": training.data,
        "training.mix.data": training.mix.data if training.mix else [],
        "evaluation.prompts": evaluation.prompts,
        "evaluation.benchmarks": [one.path for one in evaluation.benchmarks],
        "agreement.pairs": agreement.pairs,
        "agreement.other": [agreement.other],
        "evaluation.model": [evaluation.model],
        "evaluation.baseline": [evaluation.baseline],
    }
    for key, paths in named.items():
        for path in paths:
            # A model by its hub name is no path, though it looks like one.
            if path and _relative(path) and (".model" not in key or Path(path).exists()):
                raise ValueError(
                    f"{key}: {path} is relative to a folder of this machine; "
                    "name an absolute path or a URL that the cluster's nodes see"
                )


def _relative(path: str) -> bool:
    return "://" not in path and not path.startswith("/")


def _client(address: str | None) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address or urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(
            "no cluster to submit to: give --address http://HOST:8265, the head's dashboard, "
            "or set RAY_API_SERVER_ADDRESS to it"
        )
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()  # asks for the token, as a submission would
    except ConnectionError as error:
        raise ValueError(f"{address}: no Ray dashboard answers there") from error
    except AuthenticationError as error:
        raise ValueError(
            f"{address} refuses us without the cluster's token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
            "or RAY_AUTH_TOKEN_PATH"
        ) from error
    return client


async def _follow(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        sys.stdout.write(text)
        sys.stdout.flush()


def _code(client: Any, job: str) -> int:
    """The exit code of a job whose log is at its end."""
    end = time.monotonic() + SETTLE
    info = client.get_job_info(job)
    while not info.status.is_terminal() and time.monotonic() < end:
        time.sleep(0.5)
        info = client.get_job_info(job)
    if info.driver_exit_code is None:
        say(f"job {job} is {info.status.value.lower()}: {' '.join((info.message or 'no message').split())}")
        return STOPPED
    return info.driver_exit_code
