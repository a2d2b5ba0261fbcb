"""Starts a training on Ray Train and waits for it. What can be known to be wrong is refused before."""

import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lr_ray import models, placement
from lr_ray.config import Config, Training
from lr_ray.store import Store

# Imports alone take long on a small machine; Ray's 60 seconds end a start that is merely slow.
_ENVIRONMENT = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


def done(store: Store) -> bool:
    """Whether the run has its trained model, whole."""
    from lr_ray.training.folder import MARKER, MODEL

    return store.exists(MODEL, MARKER)


def train(config: Config, store: Store, tally: Any = None) -> dict[str, Any]:
    """Train as `config.training` says; `model/` in the run directory is there when it returns.

    Computes the reference's log-probs first (`scoring`). Resumes from the newest checkpoint; with `model/`
    there, it returns at once. Needs a running Ray, or starts one. `tally` is an actor handle of
    `lr_ray.progress.Tally`.

    Returns:
        steps taken over all, `rows` learned from and `rows_left_out` (too long); empty if it was done.

    Raises:
        ValueError: a mistake in settings, data or model, in one sentence.
        Exception: what ended the last worker after `training.max_failures` restarts.
    """
    if done(store):
        return {}
    config = check(config)
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    from lr_ray.training import network, scoring, worker
    from lr_ray.training.checkpoint import Checkpoints

    training = config.training
    if training.method == "dpo" and scoring.actors(training) and not Checkpoints(store, 0, 1, "").latest():
        scoring.score(config, store, tally)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    url = store.root if store.local else store.url
    entry: Any = worker.loop
    trainer = TorchTrainer(
        entry,
        train_loop_config={"config": config.model_dump(mode="json"), "url": url, "tally": tally},
        torch_config=TorchConfig(backend="nccl") if training.use_gpu else network.Gloo(),
        scaling_config=ScalingConfig(
            num_workers=training.num_workers,
            use_gpu=training.use_gpu,
            resources_per_worker=placement.worker(training),
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=store.path("checkpoints"),
            storage_filesystem=store.fs,
            failure_config=FailureConfig(max_failures=training.max_failures),
            worker_runtime_env={"env_vars": _worker_environment(training.use_gpu)},
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    with _interrupts_as_before():
        result = _fit(trainer)
    if "error" in result:
        raise ValueError(result["error"])
    return result


def check(config: Config) -> Config:
    """The config with absolute paths, as workers elsewhere need it.

    Raises:
        ValueError: settings that contradict each other, a model without chat template, unusable data.
    """
    from lr_ray.training import folder, known, source, zero
    from lr_ray.training.tokens import Encoder

    training = config.training
    known.check(training.deepspeed, use_gpu=training.use_gpu)
    zero.settings(training, bf16=False)
    source.check(training)
    if training.lora is not None:
        from lr_ray.training import lora

        lora.settings(training.lora)
    if "wandb" in training.report_to and importlib.util.find_spec("wandb") is None:
        raise ValueError("training.report_to: wandb is not installed")
    model = training.model or config.sampling.model
    if not model:
        raise ValueError("training.model: no model to start from")
    if Path(model).expanduser().is_dir():
        model = str(Path(model).expanduser().resolve())
    found = models.local(model, weights=False)
    if Path(found).is_dir():
        folder.limit(found, training.max_length)
        Encoder(found)
        _computes(found, training)
    mix = training.mix and training.mix.model_copy(update={"data": _absolute(training.mix.data)})
    changed = training.model_copy(update={"model": model, "data": _absolute(training.data), "mix": mix})
    return config.model_copy(update={"training": changed})


def _computes(model: str, training: Training) -> None:
    """Refuse what every worker would refuse, once all the judge's answers are paid."""
    from transformers import AutoConfig

    from lr_ray.training import logps, sequence

    shape = AutoConfig.from_pretrained(model, trust_remote_code=False)
    logps.refuse(shape)
    together = training.sequence_parallel_size
    refusal = sequence.unsupported(shape, together) if together > 1 else None
    if refusal:
        raise ValueError(refusal)


def _absolute(urls: list[str]) -> list[str]:
    return [url if "://" in url else str(Path(url).expanduser().absolute()) for url in urls]


def _worker_environment(use_gpu: bool) -> dict[str, str]:
    names = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
    return names if use_gpu else {**names, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def _fit(trainer: Any) -> dict[str, Any]:
    from ray.train import TrainingFailedError  # pyrefly: ignore

    try:
        return trainer.fit().return_value
    except TrainingFailedError as failure:
        failures = getattr(failure, "worker_failures", None) or {}
        cause = next(iter(failures.values()), None) or getattr(failure, "controller_failure", None)
        raise (getattr(cause, "cause", None) or cause or failure) from failure


@contextmanager
def _interrupts_as_before() -> Iterator[None]:
    """Ray Train takes Ctrl-C over for good; give it back afterwards."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGINT, before)
