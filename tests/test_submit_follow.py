"""A job's log to its end: connections that break, clusters that go, Ctrl-C. On a real cluster: test_hosts."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import pytest
from click import Abort
from ray.job_submission import JobStatus, JobSubmissionClient

from lr_ray import submit
from lr_ray.submit import LOST, STOPPED, TRIES, Job

LOG = "".join(f"line {number}\n" for number in range(9))
RUNNING, SUCCEEDED, FAILED = JobStatus.RUNNING, JobStatus.SUCCEEDED, JobStatus.FAILED
BROKEN = RuntimeError("WebSocket connection closed unexpectedly with close code 1006")
DOWN = ConnectionError("nobody listens")
FOREVER = TimeoutError()


class Info(NamedTuple):
    status: JobStatus
    driver_exit_code: int | None = None
    message: str = ""


class Client:
    """What a job's client tells: by connection how much of the log and what ends it; by question its state.

    The last of either is repeated.
    """

    def __init__(
        self, streams: list[tuple[int, BaseException | None]], states: list[Info | Exception]
    ) -> None:
        self.streams, self.states = streams, states
        self.asked = self.connected = 0
        self.stopped = False

    async def tail_job_logs(self, _: str) -> AsyncIterator[str]:
        length, end = self.streams[min(self.connected, len(self.streams) - 1)]
        self.connected += 1
        for start in range(0, length, 7):
            yield LOG[start : min(start + 7, length)]
        if end is FOREVER:
            await asyncio.sleep(60)
        if end is not None:
            raise end

    def get_job_info(self, _: str) -> Info:
        state = self.states[min(self.asked, len(self.states) - 1)]
        self.asked += 1
        if isinstance(state, Exception):
            raise state
        return state

    def get_job_logs(self, _: str) -> str:
        return LOG

    def stop_job(self, _: str) -> None:
        self.stopped = True


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "PAUSE", 0.001)
    monkeypatch.setattr(submit, "LONGEST_PAUSE", 0.002)


def never(_: str) -> bool:
    raise AssertionError("nobody pressed Ctrl-C")


def followed(client: Any, ask: submit.Ask = never) -> int:
    return Job(client, "job-1", "http://h:8265").end(ask)


@pytest.mark.parametrize(
    "streams",
    [
        [(len(LOG), None)],
        [(10, BROKEN), (24, BROKEN), (24, None), (len(LOG), None)],
        [(0, DOWN), (30, None)],
        [(30, BROKEN)],
    ],
)
def test_all_of_the_log_is_shown_once_however_its_stream_ends(
    streams: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    running: list[Any] = [Info(RUNNING)] * (len(streams) - 1)
    assert followed(Client(streams, [*running, Info(FAILED, 1)])) == 1
    assert capsys.readouterr().out == LOG


def test_a_stream_that_dies_without_a_sound_is_begun_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "STREAM", 0.05)
    assert followed(Client([(30, FOREVER), (len(LOG), None)], [Info(RUNNING), Info(SUCCEEDED, 0)])) == 0
    assert capsys.readouterr().out == LOG


def test_a_head_that_does_not_answer_for_a_while_is_asked_again() -> None:
    states: list[Any] = [DOWN] * (TRIES - 1)
    client = Client([(0, DOWN)], [*states, Info(RUNNING), *states, Info(SUCCEEDED, 0)])
    assert followed(client) == 0
    assert client.asked == 2 * TRIES


def test_a_cluster_out_of_reach_is_said_and_how_to_follow_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client([(30, BROKEN), (0, DOWN)], [Info(RUNNING), DOWN])
    assert followed(client) == LOST
    assert client.asked == 1 + TRIES
    said = capsys.readouterr().err
    assert "the cluster is out of reach (nobody listens); job job-1 goes on without us" in said
    assert said.endswith("ray job logs --follow --address http://h:8265 job-1\n")


def test_a_job_without_an_exit_code_has_stopped(capsys: pytest.CaptureFixture[str]) -> None:
    assert followed(Client([(0, None)], [Info(FAILED, None, "no\nnode")])) == STOPPED
    assert "job job-1 is failed: no node" in capsys.readouterr().err


class Dashboard(BaseHTTPRequestHandler):
    """A head that knows no job."""

    def do_GET(self) -> None:
        known = {"/api/version": {"version": "4", "ray_version": "2.60.0"}, "/api/jobs/": []}
        body = json.dumps(known.get(self.path, "Job does not exist")).encode()
        self.send_response(200 if self.path in known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def dashboard() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Dashboard) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_new_cluster_at_the_old_address_knows_nothing_of_the_job(
    dashboard: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    client = JobSubmissionClient(f"http://127.0.0.1:{dashboard.server_port}")
    assert followed(client) == STOPPED
    assert "job job-1 is gone: the cluster that answers now does not know it" in capsys.readouterr().err


def test_what_rays_client_raises_where_nobody_listens_is_known(
    dashboard: ThreadingHTTPServer, capsys: pytest.CaptureFixture[str]
) -> None:
    client = JobSubmissionClient(f"http://127.0.0.1:{dashboard.server_port}")
    dashboard.shutdown()
    dashboard.server_close()
    assert followed(client) == LOST
    assert "the cluster is out of reach (" in capsys.readouterr().err


def pressed(client: Client, answer: bool | BaseException) -> int:
    """Ctrl-C while the log is shown, and what is answered."""

    def ask(question: str) -> bool:
        assert question.startswith("Stop job job-1?")
        if isinstance(answer, BaseException):
            raise answer
        return answer

    client.streams = [(14, KeyboardInterrupt())]
    return followed(client, ask)


@pytest.mark.parametrize("answer", [False, Abort(), KeyboardInterrupt()])
def test_ctrl_c_and_no_or_ctrl_c_again_leave_the_job_alone(
    answer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    client = Client([], [Info(RUNNING)])
    assert pressed(client, answer) == 130
    said = capsys.readouterr().err
    assert not client.stopped
    assert "job job-1 goes on without us; its log: ray job logs --follow" in said
    assert "stopped" not in said


def test_a_job_is_said_to_be_stopped_when_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client([], [Info(RUNNING), Info(RUNNING), Info(JobStatus.STOPPED)])
    assert pressed(client, answer=True) == 130
    assert (client.stopped, client.asked) == (True, 3)
    assert "job job-1 is stopped; the same command again goes on from there" in capsys.readouterr().err


class Stuck(Client):
    """A job that goes on whatever it is told; the one who waits presses Ctrl-C or loses the connection."""

    def __init__(self, then: BaseException | None) -> None:
        super().__init__([], [Info(RUNNING)])
        self.then = then

    def get_job_info(self, name: str) -> Info:
        if self.then:
            raise self.then
        return super().get_job_info(name)


@pytest.mark.parametrize("then", [None, KeyboardInterrupt(), DOWN])
def test_a_job_that_does_not_end_is_not_said_to_be_stopped(
    then: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "STOP", 0.0)
    client = Stuck(then)
    assert pressed(client, answer=True) == 130
    said = capsys.readouterr().err
    assert client.stopped
    assert "is stopped" not in said
    assert "job job-1 has not ended as far as is known; see: ray job status --address http://h:8265" in said
