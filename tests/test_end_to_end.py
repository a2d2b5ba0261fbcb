"""The whole loop on real vLLM, Ray and DeepSpeed, smaller than the demo; bad input before that."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lr_ray import simulated
from lr_ray.store import Store

ROOT = Path(__file__).parents[1]
POLICY = ROOT / "jobs" / "demo" / "policy"
PROMPTS, HELD_OUT, N = 72, 6, 5


def command(run_dir: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "jobs.demo.run", "--run-dir", str(run_dir), "--seed", "7"),
        *("--prompts", str(PROMPTS), "--held-out", str(HELD_OUT)),
        *(f"sampling.n={N}", "sampling.rows_in_flight=1", "evaluation.n=2", "training.max_steps=3"),
        *("training.batch_size=4", "training.micro_batch_size=2", "judge.rows_in_flight=4"),
    ]


def call(arguments: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False, **more
    )


def lr_ray(*arguments: str) -> subprocess.CompletedProcess[str]:
    return call([sys.executable, "-m", "lr_ray.cli", *arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run that was killed while it judged, and then run again to its end."""
    run_dir = tmp_path_factory.mktemp("runs") / "loop"
    with open(run_dir.parent / "killed.log", "w") as log:
        process = subprocess.Popen(command(run_dir), cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and process.poll() is None:
            if any((run_dir / "judged").glob("*.parquet")):
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert any((run_dir / "judged").glob("*.parquet")), (run_dir.parent / "killed.log").read_text()
    return run_dir, call(command(run_dir))


def rows(run_dir: Path, folder: str) -> list[dict[str, Any]]:
    return list(Store(str(run_dir)).rows(folder))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_loop_ends_well_after_a_kill(finished: tuple[Path, Any]) -> None:
    run_dir, done = finished
    assert done.returncode == 0, done.stderr
    assert "ground truth" in done.stdout
    assert "report.html" in done.stdout
    assert "prompts were done already" in done.stderr
    judged = rows(run_dir, "judged")
    assert len(judged) == len({row["prompt_id"] for row in judged}) == PROMPTS
    assert all(len(row["candidates"]) == N for row in judged)
    assert (run_dir / "report.html").stat().st_size > 10_000
    pairs = rows(run_dir, "pairs")
    assert pairs
    assert all(pair["score_chosen"] > pair["score_rejected"] for pair in pairs)
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == [1, 2, 3]
    assert "rewards/margins" in metrics[0]


@pytest.mark.slow
def test_sampling_and_judging_are_one_stream(finished: tuple[Path, Any]) -> None:
    """The first judge call leaves before the last prompt is sampled (within each of the two runs)."""
    judged = rows(finished[0], "judged")
    first_call, last_sample = min(r["first_call_at"] for r in judged), max(r["sampled_at"] for r in judged)
    assert first_call < last_sample


@pytest.mark.slow
def test_a_prompt_is_prefilled_once(finished: tuple[Path, Any]) -> None:
    sampled = rows(finished[0], "sampled")
    share = sum(r["cached_tokens"] for r in sampled) / sum(r["prompt_tokens"] for r in sampled)
    # All but the first of N samples read the cache, up to a block of 128 tokens (vLLM's on CPU) each.
    assert share > 0.75 * (N - 1) / N


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_call_does_nothing_twice(finished: tuple[Path, Any]) -> None:
    run_dir, _ = finished

    def state() -> dict[str, int]:
        kept = ("sampled", "judged", "calls", "pairs", "model", "evaluation")
        files = (path for folder in kept for path in (run_dir / folder).rglob("*") if path.is_file())
        return {str(path): path.stat().st_mtime_ns for path in files}

    before = state()
    again = call(command(run_dir))
    assert again.returncode == 0, again.stderr
    assert state() == before
    assert f"{PROMPTS} of {PROMPTS} prompts were done already" in again.stderr
    assert "the model was trained already" in again.stderr


@pytest.mark.slow
def test_another_setting_in_the_same_run_directory_is_refused(finished: tuple[Path, Any]) -> None:
    done = call([*command(finished[0]), "sampling.temperature=0.5"])
    assert done.returncode == 2
    assert "sampling.temperature=1.0" in done.stderr


def bad(tmp_path: Path, **changes: Any) -> str:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt_id": "a", "context": "Mira bakes.", "question": "What does Mira do?"}\n')
    tree: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "data": {"prompts": [str(prompts)]},
        "sampling": {"model": str(POLICY)},
        "judge": {"model": "simulated", "base_url": "http://127.0.0.1:9/v1"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        tree.setdefault(section, {})[name] = value
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(tree))
    return str(path)


@pytest.mark.parametrize(
    ("verb", "changes", "says"),
    [
        ("run", {"data__prompts": ["none.jsonl"]}, "none.jsonl: no such file"),
        ("run", {"sampling__modle": "x"}, "sampling.modle: unknown key"),
        ("run", {}, "127.0.0.1:9"),
        ("sample", {"sampling__model": "./nowhere"}, "./nowhere: no such model folder"),
        ("sample", {"sampling__num_cpus": 400}, "too little to run on"),
        ("train", {"training__batch_size": 3, "training__num_workers": 2}, "batch_size"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, verb: str, changes: dict[str, Any], says: str) -> None:
    done = lr_ray(verb, bad(tmp_path, **changes))
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("lr-ray: ")
    assert says in last
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "sampled").exists()


def test_a_model_without_chat_template_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in POLICY.iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    done = lr_ray("sample", bad(tmp_path, sampling__model=str(folder)))
    assert done.returncode == 2
    assert "no chat template" in done.stderr


def test_an_unauthorised_judge_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with simulated.running(api_key="right") as base_url:
        done = lr_ray("run", bad(tmp_path, judge__base_url=base_url))
    assert done.returncode == 2
    assert "OPENAI_API_KEY" in done.stderr
    assert "wrong" not in done.stderr
