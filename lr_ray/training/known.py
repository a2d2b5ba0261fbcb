"""What DeepSpeed makes of a config, asked before anything is paid, in a process that does not train."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from lr_ray.config.reading import said

KEY = "training.deepspeed"
_ALONE = {"train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1}


class _Asked(dict[str, Any]):
    """A config that knows for which keys it was asked, also as a copy."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(given)
        self.asked: set[str] = set()

    def __contains__(self, key: Any) -> bool:
        self.asked.add(key)
        return super().__contains__(key)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)


def check(config: dict[str, Any], *, use_gpu: bool) -> None:
    """Refuse a config that DeepSpeed refuses, or of which it would take no notice.

    Raises:
        ValueError: one sentence naming the key.
    """
    with _accelerator(use_gpu):
        from deepspeed.runtime.config import DeepSpeedConfig
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    zero = config.get("zero_optimization", {})
    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        raise ValueError(said(error, zero, f"{KEY}.zero_optimization")) from error
    # Batches are for as many processes as there will be, and here is one. It writes into what it reads.
    asked = _Asked(copy.deepcopy({**config, **_ALONE}))
    try:
        DeepSpeedConfig(asked)
    except ValidationError as error:
        raise ValueError(said(error, {}, f"{KEY}: {error.title}")) from error
    except Exception as error:  # it has a way of its own to refuse in every part of the config
        raise ValueError(f"{KEY}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    unknown = sorted(set(config) - asked.asked)
    if unknown:
        raise ValueError(f"{KEY}.{unknown[0]}: DeepSpeed has no such key and would ignore it")


@contextmanager
def _accelerator(use_gpu: bool) -> Iterator[None]:
    """Without GPUs, what the workers are told too: else DeepSpeed warns of them on stdout when it starts."""
    before = os.environ.get("DS_ACCELERATOR")
    if not use_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        yield
    finally:
        if before is not None:
            os.environ["DS_ACCELERATOR"] = before
        elif not use_gpu:
            del os.environ["DS_ACCELERATOR"]
