"""What DeepSpeed would refuse or ignore is refused before anything is paid, and named."""

import os
from typing import Any

import pytest

from lr_ray.config import Config, Training
from lr_ray.training import known, launch, zero


@pytest.mark.parametrize(
    ("deepspeed", "says"),
    [
        ({"zero_optimization": {"stage": 7}}, r"zero_optimization\.stage: Input should be 0, 1, 2.*, not 7"),
        ({"zero_optimization": {"stag": 3}}, r"zero_optimization\.stag: unknown key"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}},
            r"zero_optimization\.offload_param\.device: .*, not 'disk'",
        ),
        (
            {"zero_optimization": {"stage": 1, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
            "zero_optimization: .*only supported for ZeRO Stage 3",
        ),
        ({"zero_optimization": {"offload_optimizer": 3}}, r"zero_optimization\.offload_optimizer: "),
        ({"zero_optimisation": {"stage": 3}}, "zero_optimisation: DeepSpeed has no such key"),
        ({"elasticity": {}}, "elasticity"),
        ({"flops_profiler": 3}, "AttributeError"),
    ],
)
def test_what_deepspeed_would_not_take_is_refused(deepspeed: dict[str, Any], says: str) -> None:
    config = Config.model_validate({"run_dir": "x", "training": {"deepspeed": deepspeed}})
    with pytest.raises(ValueError, match=rf"^training\.deepspeed.*{says}") as caught:
        launch.check(config)
    assert "\n" not in str(caught.value)


def test_all_that_deepspeed_reads_is_taken_and_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    given: dict[str, Any] = {
        "zero_optimization": {"stage": 2, "offload_optimizer": None},
        **{key: {} for key in ("activation_checkpointing", "flops_profiler", "aio", "data_efficiency")},
        **{"optimizer": {"type": "AdamW", "params": {}}, "communication_data_type": "fp32"},
    }
    known.check(given, use_gpu=False)
    assert given["data_efficiency"] == {}
    # What it is told here is for its workers only if they have no GPU either.
    assert "DS_ACCELERATOR" not in os.environ
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    known.check(given, use_gpu=False)
    assert os.environ["DS_ACCELERATOR"] == "cuda"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_our_own_settings_are_all_read(stage: int) -> None:
    training = Training(deepspeed={"zero_optimization": {"stage": stage}})
    known.check(zero.settings(training, bf16=False), use_gpu=False)


@pytest.mark.parametrize(
    ("offload", "own"), [(None, True), ({"device": "none"}, True), ({"device": "cpu"}, False)]
)
def test_torchs_optimizer_is_used_unless_states_are_offloaded(offload: Any, own: bool) -> None:
    training = Training(deepspeed={"zero_optimization": {"stage": 2, "offload_optimizer": offload}})
    assert zero.settings(training, bf16=False)["optimizer"]["params"]["torch_adam"] is own
