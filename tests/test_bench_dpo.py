"""The benchmark at tiny size, on CPU; its figures mean nothing here, its losses must agree."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from jobs.bench_dpo import cpu, shapes
from jobs.bench_dpo.__main__ import main
from lr_ray.training import attention

TRL = importlib.util.find_spec("trl") is not None
# Models this small gain nothing from threads, and threads wait for each other on a busy machine.
torch.set_num_threads(1)
SIZE = ["--shape", "tiny", "--answer", "8"]


def test_cpu_mode_compares_variants_that_compute_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["full", "shared", *(["trl"] if TRL else [])]
    arguments = ["--prompt", "64", "--steps", "1", "--threads", "1", "--variants", ",".join(names)]
    assert main(["cpu", *SIZE, *arguments]) == 0
    out, err = capsys.readouterr()
    rows = [line.split("|") for line in out.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(names)
    losses = [float(row[-2]) for row in rows]
    assert losses == pytest.approx([losses[0]] * len(names), abs=1e-5)
    assert losses[0] != pytest.approx(0.693147, abs=1e-4)
    assert all(float(cell) >= 0 for row in rows for cell in row[2:5])
    assert err.count("round 1") == len(names)


def test_gpu_mode_on_cpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    arguments = ["--device", "cpu", "--lengths", "32,48", "--variants", "shared,response", "--out", str(out)]
    assert main(["gpu", *SIZE, *arguments]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["length"], row["train"], row["variant"]) for row in rows] == [
        (length, train, variant)
        for length in (32, 48)
        for train in ("lora", "full")
        for variant in ("shared", "response")
    ]
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-2)
    printed = capsys.readouterr()
    assert "| 48 | full | shared prefix |" in printed.out
    assert "gradients of shared and plain passes differ by" in printed.err


def test_gpu_mode_refuses_a_kernel_that_computes_something_else(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = attention.causal
    monkeypatch.setattr(attention, "causal", lambda q, k, v, how: right(q, k, v, how._replace(window=200)))
    assert main(["gpu", *SIZE, "--device", "cpu", "--lengths", "32"]) == 2
    assert "the shared prefix's gradient is off by" in capsys.readouterr().err


def test_gpu_mode_needs_torch_and_transformers_alone() -> None:
    code = (
        "import sys\n"
        "absent = ('ray', 'deepspeed', 'vllm', 'pydantic', 'pyarrow', 'orjson')\n"
        "for name in absent: sys.modules[name] = None\n"
        "import jobs.bench_dpo.gpu\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_what_cannot_run_is_said_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is at hand")
    assert main(["gpu"]) == 2
    assert "there is no GPU that this torch can use" in capsys.readouterr().err


def test_time_that_is_up_leaves_measurements_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu", *SIZE, "--device", "cpu", "--lengths", "32", "--seconds", "0"]) == 0
    assert "time is up before 32 lora shared" in capsys.readouterr().err


def test_flops_by_hand() -> None:
    shape = shapes.Shape(hidden=8, intermediate=16, layers=3, heads=2, kv_heads=1, vocab=100)
    weights = 3 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)
    head, scores = 2 * 8 * 100 * 20, 60**2
    plain = 2 * weights * 120 + head + 4 * 8 * 3 * scores
    assert shapes.flops(shape, 50, 10, shared=False, lora=False)[0] == pytest.approx(3 * plain)
    shared = 2 * weights * 70 + head + 4 * 8 * 3 * (scores - 50**2 / 2)
    once, twice = shapes.flops(shape, 50, 10, shared=True, lora=False)
    assert once == pytest.approx(3 * shared)
    assert twice == pytest.approx(4 * shared - head)
    frozen = shapes.flops(shape, 50, 10, shared=True, lora=True)[0]
    assert once - frozen == pytest.approx(2 * weights * 70 + head)


def test_a_variant_that_fails_is_named() -> None:
    settings = {"shape": "tiny", "prompt": 8, "answer": 4, "steps": 1, "threads": 1}
    with pytest.raises(ValueError, match="nonsense failed"):
        cpu.compare({**settings, "bf16": False, "checkpointing": False}, ["nonsense"], 1)
