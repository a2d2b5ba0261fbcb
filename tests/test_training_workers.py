"""The distributed training: what it computes does not depend on how it is cut, killed or sharded."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_model
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lr_ray.config import Config
from lr_ray.schemas import PAIRS
from lr_ray.store import Store
from lr_ray.training import launch

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
PAIRS_MADE, SHORT = 24, 10
SGD = {
    "optimizer": {"type": "SGD", "params": {"lr": 1.0}},
    "zero_allow_untested_optimizer": True,
    "zero_optimization": {"stage": 1},
}
# By default DeepSpeed shards no weights as small as these, and keeps what it has gathered.
GATHERED = {
    "stage": 3,
    "stage3_param_persistence_threshold": 0,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": 0,
}
Metrics = list[dict[str, float]]


def make_pairs(store: Store, count: int = PAIRS_MADE) -> None:
    rng = random.Random(7)
    scores = dict.fromkeys(("helpfulness", "logicality", "faithfulness", "completeness"), 1.0)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        words = " ".join(rng.choice(["red", "blue", "green"]) for _ in range(rng.randint(3, 30)))
        rows.append(
            {
                "prompt_id": str(number),
                "prompt": [{"role": "user", "content": words}],
                "chosen": [{"role": "assistant", "content": f"yes {words[: rng.randint(1, 20)]}"}],
                "rejected": [{"role": "assistant", "content": "no " * rng.randint(1, 9)}],
                **{"score_chosen": 9.0, "score_rejected": 1.0, "index_chosen": 0, "index_rejected": 1},
                **{"scores_chosen": scores, "scores_rejected": scores},
            }
        )
    half = count // 2
    store.write_rows("pairs", rows[:half], PAIRS)
    store.write_rows("pairs", rows[half:], PAIRS)


def zero_stage(stage: int) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage}}


class Runs:
    """Run directories by name, all started from one random model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = tiny_model.save(folder / "start")

    def config(self, name: str, **training: Any) -> dict[str, Any]:
        run = self.folder / name
        if not run.exists():
            make_pairs(Store(str(run)))
        return {"run_dir": str(run), "sampling": {"model": self.model}, "training": training}

    def metrics(self, name: str) -> Metrics:
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def result(self, name: str) -> dict[str, Any]:
        return json.loads((self.folder / name / "result.json").read_text())

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model" / "model.safetensors")

    def work(self, jobs: list[dict[str, Any]], world: int) -> None:
        path = self.folder / f"jobs{world}.json"
        path.write_text(json.dumps(jobs))
        script = [sys.executable, str(HERE / "training_ranks.py"), str(path)]
        ranks = [subprocess.Popen([*script, str(rank), str(world)], cwd=HERE.parent) for rank in range(world)]
        assert [rank.wait(timeout=500) for rank in ranks] == [0] * world


def same(one: Metrics, other: Metrics) -> bool:
    def plain(lines: Metrics) -> Metrics:
        return [{name: value for name, value in line.items() if name != "step_time"} for line in lines]

    return plain(one) == plain(other)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(tmp_path_factory.mktemp("training"))
    gradient = {"batch_size": 8, "max_steps": 1, "learning_rate": 1.0, "max_grad_norm": 1e9, "deepspeed": SGD}
    learn = {"batch_size": 8, "micro_batch_size": 2, "learning_rate": 3e-3, "max_steps": 12}
    sft = made.folder / "sft.jsonl"
    turn = {"role": "user", "content": "red blue"}, {"role": "assistant", "content": "green"}
    sft.write_text("".join(json.dumps({"messages": turn}) + "\n" for _ in range(8)))
    long = made.folder / "long.jsonl"
    too_long = {"role": "user", "content": "red " * 200}, {"role": "assistant", "content": "green"}
    long.write_text("".join(json.dumps({"messages": m}) + "\n" for m in [turn] * 5 + [too_long] * 3))
    bad = made.folder / "bad.jsonl"
    empty = {"role": "user", "content": "red"}, {"role": "assistant", "content": " "}
    bad.write_text("".join(json.dumps({"messages": m}) + "\n" for m in (turn, empty, turn, turn)))
    one = [
        {"config": made.config("one", **gradient, micro_batch_size=1)},
        {"config": made.config("sft", **learn, method="sft", data=[str(sft)], max_failures=0)},
    ]
    two_workers = {"num_workers": 2}
    saving = {"gradient_checkpointing": True, "tiled_mlp": 16, "offload_activations": True}
    broken = tiny_model.save(made.folder / "broken")
    weights = load_file(f"{broken}/model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, f"{broken}/model.safetensors", {"format": "pt"})
    short = made.folder / "short.jsonl"
    texts = ({"prompt": "red " * n, "chosen": "yes", "rejected": "no"} for n in range(1, SHORT + 1))
    short.write_text("".join(json.dumps(text) + "\n" for text in texts))
    mixed = {**learn, "mix": {"data": [str(short)], "ratio": 0.25}, "checkpoint_steps": 5}
    resumed = made.config("resumed", **mixed, **two_workers)
    one += [
        {"config": made.config(f"grown{stage}", **mixed, deepspeed=zero_stage(stage)), "die_at": 8}
        for stage in (1, 3)
    ]
    two = [
        {"config": made.config("two", **gradient, **two_workers, micro_batch_size=4)},
        {"config": made.config("two-accumulated", **gradient, **two_workers, micro_batch_size=2)},
        {"config": made.config("together", **gradient, **two_workers, **saving, sequence_parallel_size=2)},
        {
            # Rows of other lengths on each rank: other numbers of tiles and of chunks.
            "config": made.config(
                "gathered",
                **{**gradient, "deepspeed": {**SGD, "zero_optimization": GATHERED}},
                **two_workers,
                **saving,
                micro_batch_size=1,
            ),
            "chunk": 4,
        },
        *(
            {"config": made.config(name, **{**learn, "learning_rate": 0.03}, **two_workers, lora={"r": 4})}
            for name in ("lora", "lora-again")
        ),
        *(
            {
                "config": made.config(
                    f"bf16-{stage}",
                    **{**learn, "max_steps": 3},
                    **two_workers,
                    precision="bf16",
                    deepspeed=zero_stage(stage),
                )
            }
            for stage in (0, 1)
        ),
        {"config": {**made.config("nan", **learn, **two_workers), "sampling": {"model": broken}}},
        {"config": made.config("unwritten", **gradient, **two_workers), "no_export": True},
        {"config": made.config("undisturbed", **mixed, **two_workers)},
        {"config": resumed, "die_at": 12, "stick_at": 10},
        {"config": resumed},
        {"config": made.config("long", **learn, **two_workers, method="sft", data=[str(long)])},
        {"config": made.config("bad", **learn, **two_workers, method="sft", data=[str(bad)])},
        {"config": made.config("hot", **{**learn, "learning_rate": 1e30, "warmup_ratio": 0}, **two_workers)},
        *(
            {
                "config": made.config(f"zero{stage}", **mixed, **two_workers, deepspeed=zero_stage(stage)),
                "die_at": die,
            }
            for stage in (0, 2, 3)
            for die in (8, None)
        ),
        *(
            {"config": made.config(f"grown{stage}", **mixed, **two_workers, deepspeed=zero_stage(stage))}
            for stage in (1, 3)
        ),
    ]
    made.work(one, 1)
    made.work(two, 2)
    return made


def test_loss_and_gradient_do_not_depend_on_workers_and_accumulation(runs: Runs) -> None:
    start = load_file(Path(runs.model) / "model.safetensors")
    expected = runs.metrics("one")[0]
    gradients = {name: start[name] - tensor for name, tensor in runs.weights("one").items()}
    assert max(tensor.abs().max().item() for tensor in gradients.values()) > 1e-3
    for name in ("two", "two-accumulated", "together", "gathered"):
        found = runs.metrics(name)[0]
        for metric in ("loss", "nll_loss", "grad_norm", "logps/chosen", "rewards/accuracies"):
            assert found[metric] == pytest.approx(expected[metric], rel=1e-6, abs=1e-6)
        for weight, tensor in runs.weights(name).items():
            torch.testing.assert_close(start[weight] - tensor, gradients[weight], rtol=1e-4, atol=1e-6)


def test_dpo_lowers_the_loss_and_raises_the_margins(runs: Runs) -> None:
    lines = runs.metrics("undisturbed")
    assert [line["step"] for line in lines] == list(range(1, 13))
    # The policy starts as the reference.
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["loss"] < lines[0]["loss"] - 0.2
    assert lines[-1]["rewards/margins"] > 1
    assert lines[-1]["rewards/accuracies"] == 1
    assert lines[0]["loss"] == pytest.approx(0.6931 + 0.1 * lines[0]["nll_loss"], abs=1e-3)
    counts = {"steps": 12, "rows": PAIRS_MADE + SHORT, "rows_left_out": 0}
    scored = -(-(PAIRS_MADE + SHORT) // 4) * 2  # each rank's, in full rounds of two pairs
    assert runs.result("undisturbed") == {**counts, "scored": scored}
    assert lines[-1]["epoch"] == 12 * 8 / (PAIRS_MADE / 0.75)


def test_a_resumed_run_equals_an_undisturbed_one_to_the_digit(runs: Runs) -> None:
    assert same(runs.metrics("resumed"), runs.metrics("undisturbed"))
    assert runs.result("resumed")["scored"] == 0, "the reference was computed again"
    other = runs.weights("undisturbed")
    assert all(torch.equal(tensor, other[name]) for name, tensor in runs.weights("resumed").items())
    for name in ("undisturbed", "resumed"):
        tags = sorted(path.name for path in (runs.folder / name / "checkpoints").glob("step-*"))
        assert [tag.rpartition("-")[0] for tag in tags] == ["step-00000005", "step-00000010"]


@pytest.mark.parametrize("name", ["zero0", "zero2", "zero3", "grown1", "grown3"])
def test_every_zero_stage_resumes_and_computes_the_same_also_with_more_workers(runs: Runs, name: str) -> None:
    for one, other in zip(runs.metrics(name), runs.metrics("undisturbed"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)
    others = runs.weights("undisturbed")
    found = runs.weights(name)
    assert found.keys() == others.keys()
    for weight, tensor in found.items():
        torch.testing.assert_close(tensor, others[weight], rtol=0, atol=1e-3)


def test_sft_learns_and_exports_a_folder_that_generates(runs: Runs) -> None:
    lines = runs.metrics("sft")
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    folder = runs.folder / "sft" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == tiny_model.TEMPLATE
    assert model.generation_config.eos_token_id == 257
    assert model.config._attn_implementation == "sdpa"
    assert model.config.dtype == torch.float32
    assert not (runs.folder / "sft" / "model.tmp").exists()


def test_lora_learns_the_adapter_alone_against_the_base_as_reference(runs: Runs) -> None:
    lines = runs.metrics("lora")
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["rewards/margins"] > 0.5
    start, merged = load_file(Path(runs.model) / "model.safetensors"), runs.weights("lora")
    moved = {name for name, tensor in merged.items() if not torch.equal(tensor, start[name])}
    assert moved == {name for name in start if "_proj" in name}
    adapter = load_file(runs.folder / "lora" / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in adapter)


def test_the_seed_says_how_an_adapter_starts(runs: Runs) -> None:
    assert same(runs.metrics("lora-again"), runs.metrics("lora"))


def test_bf16_is_the_same_with_sharded_states_and_whole_ones(runs: Runs) -> None:
    for one, other in zip(runs.metrics("bf16-0"), runs.metrics("bf16-1"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=0.01)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.05)


def test_rows_over_the_window_are_counted(runs: Runs) -> None:
    assert runs.result("long") == {"steps": 12, "rows": 5, "rows_left_out": 3, "scored": 0}
    assert runs.metrics("long")[0]["rows_left_out"] == 3
    named = json.loads((runs.folder / "long" / "left_out.json").read_text())
    assert [row["row"].rpartition("/")[2] for row in named["rows"]] == [
        f"long.jsonl: line {n}" for n in (6, 7, 8)
    ]
    assert (named["max_length"], named["rows"][0]["tokens"] > 512) == (512, True)


def test_mistakes_come_back_as_a_sentence_from_every_rank(runs: Runs) -> None:
    assert "bad.jsonl: line 2: message 1: the answer is empty" in runs.result("bad")["error"]
    assert re.match(r"step \d+: training diverged", runs.result("hot")["error"])
    assert not (runs.folder / "hot" / "model").exists()
    assert re.search(r"\.parquet: row 1: the reference's log-probs are \(nan", runs.result("nan")["error"])
    assert runs.result("unwritten") == {"error": "cannot write the model"}


def test_ray_train_survives_a_killed_worker(runs: Runs, ray_cluster: None) -> None:
    """A worker killed while a checkpoint is written: the same curve as undisturbed; again does nothing."""
    learn = {"batch_size": 8, "micro_batch_size": 2, "learning_rate": 3e-3, "max_steps": 60}
    shared = {**learn, "num_workers": 2, "num_cpus": 0.5, "checkpoint_steps": 5, "max_failures": 1}
    config = Config.model_validate(runs.config("killed", **shared))
    store = Store(config.run_dir)
    runs.work([{"config": runs.config("unkilled", **shared)}], 2)
    # The last digits of a log-prob depend on what it was computed beside, and actors batch in another way.
    shutil.copytree(runs.folder / "unkilled" / "reference", runs.folder / "killed" / "reference")
    killed: list[int] = []
    killer = threading.Thread(target=_kill_one, args=(Path(store.path("checkpoints")), killed))
    killer.start()
    summary = launch.train(config, store)
    killer.join()
    assert killed, "no worker was killed"
    assert summary["steps"] == 60
    assert same(runs.metrics("killed"), runs.metrics("unkilled"))
    assert launch.train(config, store) == {}


def _kill_one(folder: Path, killed: list[int]) -> None:
    """Kill a Ray Train worker of ours once a checkpoint is whole and the next one has been begun."""
    workers: list[psutil.Process] = []
    until = time.monotonic() + 150
    while time.monotonic() < until:
        time.sleep(0.0005 if workers else 0.05)
        if not workers and list(folder.glob("step-*/complete.json")):
            workers = [
                process
                for process in psutil.Process(os.getpid()).children(recursive=True)
                if "RayTrainWorker" in " ".join(process.cmdline())
            ]
        begun = [step for step in folder.glob("step-*") if not (step / "complete.json").exists()]
        if workers and begun:
            os.kill(workers[0].pid, signal.SIGKILL)
            killed.append(workers[0].pid)
            return
