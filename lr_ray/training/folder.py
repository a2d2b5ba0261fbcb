"""Model folders: in from Hugging Face format, out to it."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from lr_ray import models
from lr_ray.store import Store
from lr_ray.training.checkpoint import publish

MODEL = "model"
MARKER = "config.json"  # written last on stores without renames
# Files that say how text becomes tokens and tokens text: the trained model's are the start's, as they are.
_KEPT = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab*",
    "merges.txt",
)
_KEPT_MODEL = ("*.model", "generation_config.json", "*.tiktoken")


def local(model: str) -> str:
    """The local folder of `model`; a Hub name or URL is fetched, or found in the Hub's cache."""
    model = models.local(model)
    if Path(model).is_dir():
        return model
    from huggingface_hub import snapshot_download

    return snapshot_download(model)


def limit(folder: str, max_length: int | None) -> int:
    """The most tokens of a sequence: `max_length`, or without it the model's window.

    Raises:
        ValueError: neither is known, or `max_length` is over the window.
    """
    window = read_config(folder).get("max_position_embeddings")
    if max_length and isinstance(window, int) and max_length > window:
        raise ValueError(f"training.max_length {max_length} is over the window of {folder}, {window} tokens")
    longest = max_length or window
    if not isinstance(longest, int):
        raise ValueError(f"{folder}: config.json has no max_position_embeddings; set training.max_length")
    return longest


def load(folder: str, dtype: torch.dtype) -> Any:
    """The causal model in `folder`.

    Raises:
        ValueError: it cannot be loaded.
    """
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: no model to load: {' '.join(str(error).split())}") from error


@contextmanager
def staged(store: Store, name: str, last: str) -> Iterator[Path]:
    """An empty folder to fill, which then is the run's folder `name`; `last` in it means it is whole."""
    with tempfile.TemporaryDirectory(prefix="lr-ray-") as aside:
        target = Path(store.path(f"{name}.tmp") if store.local else f"{aside}/{name}")
        if target.exists():
            shutil.rmtree(target)
        target.mkdir(parents=True)
        yield target
        publish(target, store, name, last)


def save(model: Any, weights: dict[str, torch.Tensor], start: str, store: Store) -> None:
    """Write the run's `model/`: `weights` in the dtype of the folder `start`, everything else as there."""
    dtype = getattr(
        torch, read_config(start).get("dtype") or read_config(start).get("torch_dtype") or "float32"
    )
    with staged(store, MODEL, MARKER) as target:
        kept = [path for pattern in (*_KEPT, *_KEPT_MODEL) for path in Path(start).glob(pattern)]
        if any(path.name == "generation_config.json" for path in kept):
            # Transformers refuses to save some generation configs it loads; ours goes over as a file.
            model.generation_config = GenerationConfig()
        model.config.dtype = dtype
        model.save_pretrained(target, state_dict=_converted(weights, dtype))
        for path in kept:
            if path.is_file():
                shutil.copy2(path, target / path.name)


def _converted(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights on the CPU in `dtype`; what is tied stays one tensor, so that it is written once."""
    made: dict[Any, torch.Tensor] = {}
    state = {}
    for name, tensor in weights.items():
        place = tensor.data_ptr(), tensor.shape, tensor.stride()
        if place not in made:
            made[place] = tensor.to("cpu", dtype).contiguous()
        state[name] = made[place]
    return state


def read_config(folder: str) -> dict[str, Any]:
    """The model config in `folder`.

    Raises:
        ValueError: there is none.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json, so not a model folder")
    return json.loads(path.read_text(encoding="utf-8"))
