"""Code that comes with a model is never run, and nobody is asked whether it should be."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lr_ray import sampling
from lr_ray.config import Config, Srm
from lr_ray.judge import chunks
from lr_ray.rewards import srm
from tests import tiny_model

CODE = "from pathlib import Path\n\nPath({!r}).touch()\n\nclass Own: ...\n"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder with code, at a terminal where every question is answered with yes."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda _: "y")
    folder = Path(tiny_model.save(tmp_path / "model"))
    (folder / "own.py").write_text(CODE.format(str(tmp_path / "ran")))
    names = ("AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    for file, changes in {
        "config.json": {"model_type": "own", "auto_map": dict.fromkeys(names, "own.Own")},
        "tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}},
    }.items():
        there = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(there | changes))
    return folder


def _training_shape(folder: str) -> None:
    from lr_ray.training import launch

    launch._computes(folder, Config(run_dir="x").training)


def _training_tokens(folder: str) -> None:
    from lr_ray.training.tokens import Encoder

    Encoder(folder)


def _training_model(folder: str) -> None:
    import torch

    from lr_ray.training.folder import load

    load(folder, torch.float32)


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: sampling.check_model(folder, "sampling.model"),
        chunks.measure,
        lambda folder: srm.check(Srm(model=folder)),
        lambda folder: srm.RewardModel(Srm(model=folder)),
        _training_shape,
        _training_tokens,
        _training_model,
    ],
    ids=["policy", "judge tokenizer", "srm config", "srm", "training config", "training tokens", "training"],
)
def test_a_model_with_code_is_refused(load: Callable[[str], object], model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="contains custom code"):
        load(str(model))
    assert not (tmp_path / "ran").exists()


def test_a_reward_model_whose_tokenizer_is_plain_is_refused_too(model: Path, tmp_path: Path) -> None:
    tiny_model.tokenizer().save_pretrained(model)
    with pytest.raises(ValueError, match="contains custom code"):
        srm.RewardModel(Srm(model=str(model)))
    assert not (tmp_path / "ran").exists()
