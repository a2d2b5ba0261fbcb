"""DeepSpeed as the engine of a step: its config, its gradients' scale, its checkpoints, its weights."""

import copy
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from lr_ray.config import Training
from lr_ray.training import universal
from lr_ray.training.logps import Policy
from lr_ray.training.shards import HostCopies, Shards
from lr_ray.training.step import parameter_groups

_BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def settings(training: Training, *, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's config: ours, with the user's `training.deepspeed` over it.

    Raises:
        ValueError: the user's part contradicts the batch sizes or sets a schedule of its own.
    """
    workers, micro, together = (
        training.num_workers,
        training.micro_batch_size,
        training.sequence_parallel_size,
    )
    if workers % together:
        raise ValueError(
            f"training.num_workers {workers} is no multiple of training.sequence_parallel_size {together}"
        )
    workers //= together
    if training.batch_size % (workers * micro):
        raise ValueError(
            f"training.batch_size {training.batch_size} is no multiple of training.num_workers "
            f"{training.num_workers} / training.sequence_parallel_size {together} "
            f"x training.micro_batch_size {micro}"
        )
    user = training.deepspeed
    ours: dict[str, Any] = {
        # DeepSpeed knows nothing of workers that share a stream: to it each has examples of its own.
        "train_batch_size": training.batch_size * together,
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
    offload = user.get("zero_optimization", {}).get("offload_optimizer") or {}
    device = offload.get("device", "none")
    if device == "nvme":
        raise ValueError("training.deepspeed: an optimizer offloaded to nvme cannot be checkpointed here")
    if "scheduler" in user:
        raise ValueError("training.deepspeed.scheduler: the schedule is training.lr_scheduler_type's")
    if "optimizer" not in user:
        parameters = {"lr": training.learning_rate, "betas": list(training.adam_betas)}
        # Offloaded states need DeepSpeed's own CPU Adam; elsewhere torch's needs no compiler.
        ours["optimizer"] = {"type": "AdamW", "params": {**parameters, "torch_adam": device == "none"}}
    _precision_is_ours(training)
    return {**ours, **user, "bf16": {**user.get("bf16", {}), **ours["bf16"]}}


def _precision_is_ours(training: Training) -> None:
    """Refuse a precision of DeepSpeed's that the reference would not be computed in."""
    ours = {"bf16": True, "fp32": False, "auto": None}[training.precision]
    for name, wanted in (("fp16", False), ("bf16", ours)):
        given = training.deepspeed.get(name, {}).get("enabled", wanted)
        if given != wanted:
            raise ValueError(
                f"training.deepspeed.{name}.enabled {given} contradicts training.precision, "
                f"which is {training.precision}"
            )


def spare_compiler() -> None:
    """Before DeepSpeed starts on a CPU: it would compile (for a minute) an all-reduce for inference alone."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def precision(training: Training) -> str:
    """What this process computes in: bf16 or fp32."""
    has_bf16 = training.use_gpu and torch.cuda.is_bf16_supported()
    auto = "bf16" if has_bf16 else "fp32"
    return auto if training.precision == "auto" else training.precision


class ZeroEngine:
    """A policy under DeepSpeed. The process group must be up; `workers` ranks take part."""

    def __init__(self, policy: Policy, training: Training, *, bf16: bool, device: str) -> None:
        import deepspeed

        spare_compiler()
        groups: Any = parameter_groups(policy.model, training.weight_decay)
        self._engine: Any = deepspeed.initialize(
            model=policy,
            model_parameters=groups,
            config=settings(training, bf16=bf16),
            dist_init_required=False,
        )[0]
        if bf16 and self._engine.zero_optimization_stage() == 0:
            # It makes Adam's state with a step of zeros, which counts in Adam's correction of its bias.
            whole: Any = self._engine.optimizer
            for state in whole.optimizer.state.values():
                if "step" in state:
                    state["step"] = 0 * state["step"]
        self._states_of = self._engine.checkpoint_engine = _States()
        self._copies = HostCopies()
        self._workers = training.num_workers
        self.policy: nn.Module = self._engine
        self.device = device
        self.offload = training.offload_activations

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

    def snapshot(self) -> Shards:
        """This rank's part of a checkpoint, copied to host memory; all ranks call it."""
        return self._copies.take(self._states())

    def reserve(self) -> None:
        """Get host memory for snapshots, in the background; all ranks call it, after the first update."""
        self._copies.reserve(self._states())

    def _states(self) -> Shards:
        with tempfile.TemporaryDirectory(prefix="lr-ray-") as folder:  # for scripts DeepSpeed leaves there
            self._engine.save_checkpoint(folder, tag="state", save_latest=False)
        return self._states_of.drain()

    def load(self, names: list[str], read: Callable[[str, list[Any]], Any]) -> None:
        """Take over a checkpoint of as many ranks; all ranks call it.

        Args:
            names: all files of the checkpoint.
            read: the state in the file of that name, with those classes trusted in it.
        """
        self._states_of.read = read
        with tempfile.TemporaryDirectory(prefix="lr-ray-") as folder:
            # DeepSpeed looks for files by name before it asks its engine to read them.
            Path(folder, "state").mkdir()
            for name in names:
                Path(folder, "state", name).touch()
            self._load(folder)

    def load_resized(self, names: list[str], read: Callable[[str, list[Any]], Any], name: str) -> None:
        """Take over a checkpoint of another number of ranks; all ranks call it, with one `name`."""
        if self._engine.zero_optimization_stage() == 0:  # nothing is cut
            self.load(names, read)
            return
        folder = Path(tempfile.gettempdir(), f"lr-ray-{name}")
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        self._states_of.read = read
        if first:
            universal.convert(names, self._states_of.named, folder / "state")
        distributed.barrier()
        groups = self._engine.optimizer.param_groups
        decays = [group["weight_decay"] for group in groups]
        self._engine._config.load_universal_checkpoint = True
        self._load(str(folder))
        self._engine._config.load_universal_checkpoint = False
        # ZeRO-3 takes the first group's settings for all, and one counter, which then counts once a group.
        for group, decay in zip(groups, decays, strict=True):
            group["weight_decay"] = decay
        for state in self._engine.optimizer.optimizer.state.values():
            if "step" in state:
                state["step"] = copy.deepcopy(state["step"])
        distributed.barrier()
        if first:
            shutil.rmtree(folder)

    def _load(self, folder: str) -> None:
        path, _ = self._engine.load_checkpoint(folder, tag="state", load_lr_scheduler_states=False)
        assert path is not None

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The model's whole state dict on rank 0 (None elsewhere under ZeRO-3); all ranks call it."""
        if self._engine.zero_optimization_stage() == 3:
            state = self._engine._zero3_consolidated_16bit_state_dict()
        else:
            state = self._engine.module.state_dict()
        return state and {name.removeprefix("model."): tensor for name, tensor in state.items()}


class _States:
    """In the place of DeepSpeed's checkpoint engine: takes states instead of writing files.

    Its own asynchronous engine hands live CPU tensors to a process that writes local files only, and
    blocks at the next step until they are written.
    """

    def __init__(self) -> None:
        self._taken: Shards = {}
        self.read: Callable[[str, list[Any]], Any] | None = None

    def drain(self) -> Shards:
        taken, self._taken = self._taken, {}
        return taken

    def save(self, state_dict: Any, path: str) -> None:
        self._taken[Path(path).name] = state_dict

    def load(self, path: str, map_location: Any = None) -> Any:
        return self.named(Path(path).name)

    def named(self, name: str) -> Any:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        assert self.read
        return self.read(name, [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        return dp_rank == 0

    def create(self, info: Any) -> None: ...

    def commit(self, info: Any) -> bool:
        return True

    def is_decoupled(self) -> bool:
        return False

    def preserves_storage_sharing(self) -> bool:
        return False
