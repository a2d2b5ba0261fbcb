"""The in-cluster judge: what is refused before Ray starts, its guard, and the real thing once."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lr_ray import rows, serving, simulated
from lr_ray.config import Config
from lr_ray.judge.actor import JudgeActor
from lr_ray.store import Store
from tests import tiny_model
from tests.sampled_row import sampled_row

KEY = "sk-serving-test"
START = 300  # seconds that vLLM, Ray and Serve may take to come up on a busy machine


def configured(model: str = "some/model", **changes: Any) -> Config:
    return Config.model_validate({"run_dir": "x", "serving": {"model": model, **changes}})


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.7", "::"])  # noqa: S104 - that is the point
def test_no_open_address_without_a_key(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="is open to other machines; set a key in OPENAI_API_KEY"):
        serving.check(configured(host=host))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    serving.check(configured(host=host))


def test_a_loopback_needs_no_key_and_a_model_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    serving.check(configured())
    with pytest.raises(ValueError, match=r"serving.model is not set"):
        serving.check(configured(""))
    with pytest.raises(ValueError, match=r"serving.model: ./nowhere: no such model folder"):
        serving.check(configured("./nowhere"))


def test_the_name_at_the_endpoint() -> None:
    assert serving.name(configured("/models/my-judge/")) == "my-judge"
    named = Config.model_validate({"run_dir": "x", "judge": {"model": "j"}, "serving": {"model": "a/b"}})
    assert serving.name(named) == "j"


@pytest.mark.parametrize("command", [["lr_ray.cli", "serve-judge"], ["jobs.serve_judge"]])
def test_verb_and_job_refuse_a_bad_config_in_one_sentence(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("run_dir: x\nserving: {model: /nowhere}\n")
    ended = subprocess.run(
        [sys.executable, "-m", *command, str(tmp_path / "c.yaml"), "serving.port=9000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr == "lr-ray: serving.model: /nowhere: no such model folder\n"


def guarded(digest: str | None, **headers: str) -> int:
    """The status that a request with `headers` gets through the guard; the application gives 200."""
    statuses: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    async def application(_scope: Any, _receive: Any, reply: Any) -> None:
        await reply({"type": "http.response.start", "status": 200})

    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    asyncio.run(serving.Guard(application, digest)({"type": "http", "headers": pairs}, None, send))
    return statuses[0]


def test_the_guard() -> None:
    digest = serving._digest(KEY)
    assert KEY not in digest
    assert guarded(digest, Authorization=f"Bearer {KEY}") == 200
    assert guarded(digest, Authorization=f"bearer {KEY}") == 200
    wrong = [
        "",
        KEY,
        "Bearer",
        "Bearer ",
        f"Bearer {KEY}x",
        f"Basic {KEY}",
        f"Bearer {digest}",
        "Bearer \xff",
    ]
    assert [guarded(digest, Authorization=one) for one in wrong] == [401] * len(wrong)
    assert guarded(digest) == 401
    assert guarded(None) == 200
    assert guarded(None, Authorization="Bearer none") == 200
    # Ray's endpoint would let any page of a browser on this machine ask it.
    assert guarded(None, Origin="http://evil.example") == 403
    assert guarded(digest, Origin="http://evil.example", Authorization=f"Bearer {KEY}") == 403


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_what_answers_at_the_port_must_be_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # must not be asked
    with pytest.raises(ValueError, match=r"serving.port: Ray Serve does not answer at .* it keeps the host"):
        serving._expect(f"http://127.0.0.1:{free_port()}/v1", configured())
    with simulated.running() as url, pytest.raises(ValueError, match="serves simulated-judge, not model"):
        serving._expect(url, configured())
    dead = pytest.raises(RuntimeError, match="the judge's engines do not answer")
    with simulated.running(model="model", faults=1.0) as url, dead:
        serving._expect(url, configured())


def fetch(url: str, key: str | None = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as reply:  # noqa: S310
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def judged(config: Config, count: int) -> list[Any]:
    """`count` small rows of two candidates, judged by one actor in this process."""
    found = []
    for number in range(count):
        texts = ["Mira keeps copper.", "Toben keeps salt, and nobody keeps tin."]
        context = "Mira keeps copper. Toben keeps salt. " * 4
        row = sampled_row(f"p{number}", context, "What does Mira keep?", texts)
        found.append(rows.pack("sampled", row))

    async def work() -> list[rows.Packed]:
        actor = JudgeActor(config, Store(config.run_dir))
        try:
            return await asyncio.gather(*map(actor, found))
        finally:
            await actor.close()

    return [rows.unpack(one) | {"kind": one["kind"]} for one in asyncio.run(work())]


def model(folder: Path) -> str:
    """Random weights with a window for whole judge prompts, at a token a byte."""
    # vLLM's attention on CPU wants heads of 32.
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    made = tiny_model.save(folder, max_position_embeddings=16384, **shape)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 16384}))
    return made


@pytest.mark.slow
@pytest.mark.timeout(START + 300)
def test_two_replicas_serve_a_judge_whose_every_reply_fits_or_is_unscored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    port = free_port()
    settings = {
        "run_dir": str(tmp_path / "run"),
        "judge": {
            "model": "tiny-judge",
            "base_url": f"http://127.0.0.1:{port}/v1",
            "concurrency": 8,
            "attempts": 3,
            # Random weights at temperature 0 go round in circles until they are cut off.
            "parameters": {"temperature": 1.0},
        },
        "serving": {
            "model": model(tmp_path / "model"),
            "replicas": 2,
            "num_cpus": 0.5,
            "port": port,
            "router": {"imbalanced_threshold": 2},
            "engine": {"dtype": "float32", "enforce_eager": True, "max_model_len": 16384},
            "env": {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "lr_ray.cli", "serve-judge", str(path)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    with (tmp_path / "err").open("wb") as errors:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
    try:
        assert server.stdout is not None
        # vLLM says this and that while it is imported.
        said = next((line for line in map(bytes.decode, server.stdout) if line.startswith("judge ")), "")
        assert said == f"judge tiny-judge at http://127.0.0.1:{port}/v1\n", (tmp_path / "err").read_text()
        url = said.split()[-1]
        assert fetch(f"{url}/models")[0] == 401
        status, models = fetch(f"{url}/models", KEY)
        assert status == 200
        assert [one["id"] for one in models["data"]] == ["tiny-judge"]
        results = judged(Config.model_validate(settings), 1)
        replies = 0
        for row in results:
            assert row["kind"] == "judged", row
            assert row["usage"]["prompt_tokens"] > 0
            replies += row["usage"]["calls"]
            for candidate in row["candidates"]:
                reasons = {one["dimension"]: one["reason"] for one in candidate["unscored"]}
                for dimension, score in candidate["scores"].items():
                    assert (score is None) == bool(reasons.get(dimension))
                    assert score is None or 0 <= score <= 10
        assert replies >= 1 + 2 * 3
        ratings = [s for row in results for c in row["candidates"] for s in c["scores"].values()]
        assert any(score is not None for score in ratings)
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 130
    assert KEY not in (tmp_path / "err").read_text()
    with pytest.raises(urllib.error.URLError):
        fetch(f"http://127.0.0.1:{port}/v1/models")
