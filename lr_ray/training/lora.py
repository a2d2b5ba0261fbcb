"""LoRA (arXiv 2106.09685) through peft: on before training, off for the reference, out as two folders.

`adapter/` holds the adapter as peft saves it, `model/` the model with it merged in, which any server
loads unconverted.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import peft
import torch
from torch import nn

from lr_ray.store import Store
from lr_ray.training import folder

ADAPTER = "adapter"
_LAST = "adapter_config.json"  # written last, as folder.MARKER
# The base is the reference, and an export is the base with the adapter's own layers.
_BASE_CHANGING = ("bias", "layer_replication", "trainable_token_indices")
_BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def settings(options: dict[str, Any]) -> peft.LoraConfig:
    """peft's config from options under its own names; all linear layers where none are named.

    Raises:
        ValueError: an option peft does not know, that it refuses, or that changes the base.
    """
    given: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    config: Any = peft.LoraConfig
    try:
        made = config(**given)
    except (TypeError, ValueError) as error:
        raise ValueError(f"training.lora: {' '.join(str(error).split())}") from error
    for name in _BASE_CHANGING:
        if getattr(made, name, None) not in (None, "none"):
            raise ValueError(f"training.lora.{name}: what is trained beside the adapter's layers gets lost")
    start = made.init_lora_weights
    if isinstance(start, str) and start.startswith(_BASE_CHANGING_STARTS):
        raise ValueError(f"training.lora.init_lora_weights {start}: it changes the base, the reference")
    return made


def wrap(model: nn.Module, options: dict[str, Any]) -> Any:
    """`model` with a fresh adapter, which alone is trained; before the first step it changes nothing.

    Raises:
        ValueError: see `settings`; or the model has none of the layers named.
    """
    wanted = settings(options)
    try:
        wrapped: Any = peft.get_peft_model(model, wanted)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"training.lora: {' '.join(str(error).split())}") from error
    # Inputs of a checkpointed layer need a gradient when no weight below it has one.
    wrapped.enable_input_require_grads()
    return wrapped


def off(model: nn.Module) -> AbstractContextManager[Any]:
    """Within, an adapted model computes as its base, the reference; any other model as it does."""
    adapted: Any = model
    return adapted.disable_adapter() if isinstance(model, peft.PeftModel) else nullcontext()


def export(start: str, options: dict[str, Any], weights: dict[str, torch.Tensor], store: Store) -> None:
    """Write `adapter/`, then `model/`, from the adapted model's state dict, merged in float32."""
    base = folder.load(start, torch.float32)
    adapted = wrap(base, options)
    adapter = {
        name: tensor.float()
        for name, tensor in weights.items()
        if ".lora_" in name or ".modules_to_save." in name
    }
    unknown = adapted.load_state_dict(adapter, strict=False).unexpected_keys
    assert adapter
    assert not unknown, f"no place for {unknown[:3]}"
    with folder.staged(store, ADAPTER, _LAST) as target:
        adapted.peft_config["default"].base_model_name_or_path = start
        adapted.save_pretrained(target)
        (target / "README.md").unlink(missing_ok=True)  # peft's empty card; ours lies in model/
    merged = adapted.merge_and_unload()
    folder.save(merged, merged.state_dict(), start, store)
