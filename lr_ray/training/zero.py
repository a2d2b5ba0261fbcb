"""DeepSpeed as the engine of a step: its config, its gradients' scale, its checkpoints, its weights."""

from typing import Any

import torch
from torch import nn

from lr_ray.config import Training
from lr_ray.training.logps import Policy
from lr_ray.training.step import parameter_groups

_BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def settings(training: Training, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's config: ours, with the user's `training.deepspeed` over it.

    Raises:
        ValueError: the user's part contradicts the batch sizes or sets a schedule of its own.
    """
    workers, micro = training.num_workers, training.micro_batch_size
    if training.batch_size % (workers * micro):
        raise ValueError(
            f"training.batch_size {training.batch_size} is no multiple of training.num_workers {workers} "
            f"x training.micro_batch_size {micro}"
        )
    user = training.deepspeed
    ours: dict[str, Any] = {
        "train_batch_size": training.batch_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": training.batch_size // (workers * micro),
        "gradient_clipping": training.max_grad_norm,
        "bf16": {"enabled": bf16},
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    for key in _BATCH_KEYS:
        if user.get(key, ours[key]) != ours[key]:
            raise ValueError(
                f"training.deepspeed.{key} {user[key]} contradicts training.batch_size, micro_batch_size "
                f"and num_workers, which make it {ours[key]}"
            )
    if "scheduler" in user:
        raise ValueError("training.deepspeed.scheduler: the schedule is training.lr_scheduler_type's")
    if "optimizer" not in user:
        parameters = {"lr": training.learning_rate, "betas": list(training.adam_betas)}
        # Offloaded states need DeepSpeed's own CPU Adam; elsewhere torch's needs no compiler.
        offloaded = "offload_optimizer" in user.get("zero_optimization", {})
        ours["optimizer"] = {"type": "AdamW", "params": {**parameters, "torch_adam": not offloaded}}
    if "fp16" in user:
        del ours["bf16"]
    return {**ours, **user}


class ZeroEngine:
    """A model under DeepSpeed. The process group must be up; `workers` ranks take part."""

    def __init__(self, model: nn.Module, training: Training, *, bf16: bool, device: str) -> None:
        import deepspeed

        # On CPU DeepSpeed would compile (for a minute) an all-reduce that only inference uses.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        groups: Any = parameter_groups(model, training.weight_decay)
        self._engine: Any = deepspeed.initialize(
            model=Policy(model),
            model_parameters=groups,
            config=settings(training, bf16=bf16),
            dist_init_required=False,
        )[0]
        self._workers = training.num_workers
        self.policy: nn.Module = self._engine
        self.device = device

    def backward(self, loss: torch.Tensor) -> None:
        """Add one forward pass's share. DeepSpeed averages over workers where the shares add up."""
        self._engine.backward(loss * self._workers, scale_wrt_gas=False)
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    def update(self, learning_rate: float) -> float:
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        norm = None
        if self._engine.zero_optimization_stage() == 0:  # DeepSpeed tells the norm of sharded gradients only
            norm = nn.utils.get_total_norm([p.grad for p in self.policy.parameters() if p.grad is not None])
        self._engine.step()
        return float(norm if norm is not None else self._engine.get_global_grad_norm())

    def save(self, folder: str, tag: str) -> None:
        """Write this rank's part of a checkpoint into folder/tag; all ranks call it."""
        self._engine.save_checkpoint(folder, tag=tag, save_latest=False)

    def load(self, folder: str, tag: str) -> None:
        """Read this rank's part of a checkpoint from folder/tag; all ranks call it."""
        path, _ = self._engine.load_checkpoint(folder, tag=tag, load_lr_scheduler_states=False)
        assert path is not None

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The model's whole state dict on rank 0 (None elsewhere under ZeRO-3); all ranks call it."""
        if self._engine.zero_optimization_stage() == 3:
            state = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            state = self._engine.module.state_dict()
        return state and {name.removeprefix("model."): tensor for name, tensor in state.items()}
