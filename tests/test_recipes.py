"""Every shipped recipe: it loads, marks where each setting is from, and is planned with nothing there."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest

from jobs import rounds
from lr_ray import config, dry_run, plan
from lr_ray.compare.entries import entries

JOBS = Path(__file__).parents[1] / "jobs"
RECIPES = [*sorted(JOBS.glob("recipes/*.yaml")), JOBS / "compare.yaml"]
SHARED = sorted(JOBS.glob("recipes/shared/*.yaml"))
SHAPES = {"llama-3.1-8b": 8_030_261_248, "glm-4-9b": 9_399_951_360}  # parameters, as published
MARK = re.compile(r"# (paper|authors' code|ours|yours)\b")
TINY = ["suppose.context_tokens=[2048]"]  # what is counted, not how much of it, is looked at here


def named(path: Path) -> str:
    return str(path.relative_to(JOBS))


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a forecast asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("path", RECIPES, ids=named)
@pytest.mark.usefixtures("_no_network")
def test_it_is_planned_without_data_model_and_network(path: Path) -> None:
    loaded = config.load(str(path), TINY)
    for place in (*loaded.data.prompts, loaded.sampling.model, loaded.training.model, loaded.run_dir):
        assert not place or not Path(place).exists()
    text = dry_run.text(loaded)
    assert "a GPU of 80 GB holds it" in text
    assert "supposed: the model of suppose.model" in text
    if loaded.training.method == "sft":
        assert "86,000 sequences, 1,800 optimizer steps" in text
    else:
        assert re.search(r"^prompts +10,000 ", text, re.MULTILINE)
        assert "since data.prompts is not there" in text
        assert "600 optimizer steps" in text
    # The published number of parameters, from the shape alone.
    found = plan.training.model(loaded)
    assert not isinstance(found, str)
    name = next((name for name in SHAPES if path.name.startswith(name)), "llama-3.1-8b")
    assert sum(_size(shape) for _, shape in found.tensors) == SHAPES[name]


def _size(shape: list[int]) -> int:
    size = 1
    for one in shape:
        size *= one
    return size


@pytest.mark.usefixtures("_no_network")
def test_rounds_are_planned_too(capsys: pytest.CaptureFixture[str]) -> None:
    path = JOBS / "recipes" / "llama-3.1-8b-one-gpu.yaml"
    assert rounds.main([str(path), "--rounds", "4", "--plan", *TINY]) == 0
    assert "rounds: 4; " in capsys.readouterr().out


@pytest.mark.parametrize("path", RECIPES + SHARED, ids=named)
def test_every_value_says_where_it_is_from(path: Path) -> None:
    """Public facts of a model, names of things and brackets need none."""
    inside = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line and line[0] not in " #":
            inside = line.partition(":")[0]
        text = line.partition(" #")[0].strip()
        bare = not text or text.startswith("#") or text.endswith(":") or line.startswith("base:")
        if not bare and not (inside == "suppose" and path.name in SHAPES_FILES):
            assert MARK.search(line), f"{path.name}: line {number} does not say where its value is from"


SHAPES_FILES = {f"{name}.yaml" for name in SHAPES} & {path.name for path in SHARED}


def test_published_settings_are_the_papers() -> None:
    sft, run = (config.load(str(JOBS / "recipes" / f"llama-3.1-8b{part}.yaml")) for part in ("-sft", ""))
    assert sft.training.method == "sft"
    assert (sft.training.learning_rate, sft.training.max_steps, sft.training.max_length) == (
        1e-5,
        1800,
        65536,
    )
    training = run.training
    assert (training.beta, training.ce_weight, training.learning_rate, training.batch_size) == (
        *(0.15, 0.1),
        *(1e-6, 16),
    )
    assert training.max_steps is not None
    assert 400 <= training.max_steps <= 800
    assert (run.sampling.n, run.sampling.temperature) == (10, 1.0)
    judge = run.judge
    assert (judge.attempts, judge.extract_chunk_tokens, judge.statements_per_call) == (5, 4096, 1)
    assert (judge.retrieval.chunk_tokens, judge.retrieval.top_k) == (128, 5)
    assert len(set(judge.weights.model_dump().values())) == 1
    assert run.pairs.min_candidates == 5
    (alpaca,) = (one for one in run.evaluation.benchmarks if one.kind == "alpaca_eval")
    assert alpaca.path.endswith("/alpaca_eval_gpt4_baseline.json")  # AlpacaEval 2, which it reports
    tokens = run.suppose.context_tokens
    assert min(tokens) >= 8000
    assert max(tokens) <= 65536
    assert sum(tokens) / len(tokens) == pytest.approx(22_000, rel=0.01)


def test_both_models_have_the_same_settings() -> None:
    for part in ("-sft", "", "-sft-one-gpu", "-one-gpu"):
        llama, glm = (config.load(str(JOBS / "recipes" / f"{name}{part}.yaml")) for name in SHAPES)
        one, other = (
            loaded.model_dump(exclude={"run_dir": True, "suppose": {"model"}, "sampling": {"model"}})
            for loaded in (llama, glm)
        )
        one["training"].pop("model")
        other["training"].pop("model")
        assert one == other, part


def test_each_part_goes_on_from_the_one_before() -> None:
    for name in SHAPES:
        for size in ("", "-one-gpu"):
            sft = config.load(str(JOBS / "recipes" / f"{name}-sft{size}.yaml"))
            run = config.load(str(JOBS / "recipes" / f"{name}{size}.yaml"))
            assert run.sampling.model == f"{sft.run_dir}/model"
            gpus = {sft.training.num_workers, run.training.num_workers, run.sampling.actors}
            assert gpus == ({1} if size else {8})


@pytest.mark.parametrize("name", ["compare.yaml", "recipes/long-and-short.yaml"])
def test_long_short_and_both_are_compared_on_both_sides(name: str) -> None:
    loaded = config.load(str(JOBS / name))
    trainings = {one.name: one.config.training for one in entries(loaded)}
    long = trainings.get("long_only") or trainings["longreward"]
    assert not long.data
    assert long.mix is None
    assert trainings["short_only"].data
    mix = trainings["long_and_short"].mix
    assert mix
    assert mix.data == trainings["short_only"].data
    kinds = {one.kind for one in loaded.evaluation.benchmarks}
    assert kinds >= {"longbench", "longbench_chat", "mt_bench", "ifeval"}
    assert loaded.evaluation.prompts
    assert len(loaded.compare.seeds) >= 3


def test_the_readme_names_every_recipe() -> None:
    text = (JOBS / "recipes" / "README.md").read_text()
    for path in sorted(JOBS.glob("recipes/*.yaml")):
        assert path.name in text, path.name
    assert all(
        (JOBS / "recipes" / name).exists() for name in re.findall(r"[\w./-]+\.yaml", text) if "/" not in name
    )


@pytest.mark.usefixtures("_no_network")
def test_the_readmes_memory_is_what_plan_says() -> None:
    text = (JOBS / "recipes" / "README.md").read_text()
    for name, shown in (("llama-3.1-8b", "Llama-3.1-8B"), ("glm-4-9b", "GLM-4-9B")):
        for size, how in (("", "all weights, each of 8"), ("-one-gpu", "LoRA, 1")):
            needs = []
            for part in ("-sft", ""):
                loaded = config.load(str(JOBS / "recipes" / f"{name}{part}{size}.yaml"))
                said = plan.training.forecast(loaded, 10_000)[-1]
                found = re.match(r"training memory: ([\d.]+) GB a worker at", said)
                assert found
                needs.append(found[1])
            assert f"| {shown}, {how} | {' | '.join(needs)} |" in text
