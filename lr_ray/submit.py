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
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

import lr_ray
from lr_ray import redact
from lr_ray.config import Config
from lr_ray.portable import check
from lr_ray.progress import say

VERBS = (
    "run",
    "sample",
    "judge",
    "pairs",
    "train",
    "evaluate",
    "synthesize",
    "compare",
    "agreement",
    "report",
    "retry-failed",
    "plan",
    "serve-judge",
)
STOPPED = 3
LOST = 4
INTERRUPTED = 130
CONFIG = "run.yaml"
TRIES = 8  # times in a row that a job may not be asked after before it is given up
PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between them: the first, doubled each time, and the last
STREAM = 600.0  # seconds after which a log is asked for anew: its stream may die without a sound
STOP = 60.0  # seconds in which a job that is told to stop should have ended

Ask = Callable[[str], bool]


def submit(config: Config, verb: str, address: str | None = None, *, follow: bool = True, ask: Ask) -> int:
    """Submit `lr-ray VERB` with `config` to the cluster whose dashboard is at `address`.

    `address` is as http://HOST:8265; none: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS where it is such a one.
    On Ctrl-C, `ask` gets a question and says whether the job is to be stopped.

    Returns:
        The job's exit code (0 at once where `follow` is false); 130 after Ctrl-C; 3: the job has none; 4: the
        cluster is out of reach, and the job may go on.

    Raises:
        ValueError: no address, nothing answers there, it refuses us, or the config names places that only
            this machine knows, or keys.
    """
    check(config)
    address = _address(address)
    client, run_dir = _client(address), redact.urls(config.run_dir)
    with tempfile.TemporaryDirectory(prefix="lr-ray-submit") as folder:
        Path(folder, CONFIG).write_text(
            yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True), encoding="utf-8"
        )
        job = client.submit_job(
            # The interpreter of the cluster, with the package that was sent first on its path.
            entrypoint=shlex.join(["python", "-m", "lr_ray.cli", verb, CONFIG]),
            runtime_env={
                "working_dir": folder,
                "py_modules": [str(Path(lr_ray.__file__).parent)],
                "excludes": ["__pycache__"],
            },
            metadata={"lr_ray_run_dir": run_dir, "lr_ray_verb": verb},
        )
    say(f"job {job} is submitted: lr-ray {verb} on {run_dir}")
    return Job(client, job, redact.urls(address)).end(ask) if follow else 0


class Job:
    """A job that was submitted, as `client` (a JobSubmissionClient) knows it at `address`."""

    def __init__(self, client: Any, name: str, address: str) -> None:
        self._client, self.name, self._at = client, name, f"--address {address} {name}"
        self._shown = 0

    def end(self, ask: Ask) -> int:
        """Show the log until the job has ended; see `submit`."""
        try:
            return asyncio.run(self._follow())
        except KeyboardInterrupt:
            self._interrupted(ask)
            return INTERRUPTED

    async def _follow(self) -> int:
        broken, pause, failures = _broken(), PAUSE, 0
        while True:
            before = self._shown
            with suppress(*broken):
                async with asyncio.timeout(STREAM):
                    await self._show(self._client.tail_job_logs(self.name))
            try:
                info = self._client.get_job_info(self.name)
                if info.status.is_terminal():
                    with suppress(*broken):  # the stream may have broken just before the end
                        self._put(self._client.get_job_logs(self.name)[self._shown :])
                    return self._code(info)
                failures = 0
            except broken as error:
                failures += 1
                if (code := self._given_up(error, failures)) is not None:
                    return code
            pause = PAUSE if self._shown > before else min(2 * pause, LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _show(self, log: AsyncIterator[str]) -> None:
        """Show what was not shown yet of a log, which is told from its beginning."""
        at = 0
        async for text in log:
            at += len(text)
            if at > self._shown:
                self._put(text[self._shown - at :])

    def _put(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
        self._shown += len(text)

    def _given_up(self, error: Exception, failures: int) -> int | None:
        """The exit code where it makes no sense to ask after the job once more."""
        if "status code 404" in str(error) and "does not exist" in str(error):
            say(f"job {self.name} is gone: the cluster that answers now does not know it")
            return STOPPED
        if failures < TRIES:
            return None
        why = " ".join(str(error).split())[:200]
        say(f"the cluster is out of reach ({why}); {self._goes_on}")
        return LOST

    @property
    def _goes_on(self) -> str:
        return f"job {self.name} goes on without us; its log: ray job logs --follow {self._at}"

    def _code(self, info: Any) -> int:
        if info.driver_exit_code is None:
            why = " ".join((info.message or "no message").split())
            say(f"job {self.name} is {info.status.value.lower()}: {why}")
            return STOPPED
        return info.driver_exit_code

    def _interrupted(self, ask: Ask) -> None:
        """Ask whether to stop the job, and say what became of it."""
        from click import Abort

        try:
            wanted = ask(f"Stop job {self.name}? Otherwise it goes on without you")
        except (KeyboardInterrupt, Abort):
            wanted = False
        if not wanted:
            say(self._goes_on)
            return
        ended = None
        try:
            self._client.stop_job(self.name)
            ended = self._ended()
        except KeyboardInterrupt:
            pass  # who waits no longer is told where to look
        except _broken() as error:
            say(f"the cluster is out of reach ({' '.join(str(error).split())[:200]})")
        if ended is None:
            say(f"job {self.name} has not ended as far as is known; see: ray job status {self._at}")
        else:
            say(f"job {self.name} is {ended}; the same command again goes on from there")

    def _ended(self) -> str | None:
        """What the job has ended as; None: it has not, in the time that it should take."""
        last = time.monotonic() + STOP
        while not (status := self._client.get_job_info(self.name).status).is_terminal():
            if time.monotonic() > last:
                return None
            time.sleep(0.5)
        return status.value.lower()


def _broken() -> tuple[type[Exception], ...]:
    """What Ray's client raises where a connection fails: its own, of requests (an OSError), of aiohttp."""
    from aiohttp import ClientError
    from ray.exceptions import RayError

    return (RuntimeError, OSError, ClientError, RayError)


def _address(address: str | None) -> str:
    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not address or urlsplit(address).scheme not in ("http", "https"):
        raise ValueError(
            "no cluster to submit to: give --address http://HOST:8265, the head's dashboard, "
            "or set RAY_API_SERVER_ADDRESS to it"
        )
    return address


def _client(address: str) -> Any:
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

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
