"""Training: what is learned from, the loss, the optimizer, the workers."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lr_ray.config.section import Paths, Resources, Section


class Mix(Section):
    data: Annotated[Paths, Field(min_length=1)]
    """Short-context pairs in TRL's preference format: jsonl or parquet with prompt, chosen and rejected, as
    text or as messages."""
    ratio: float = Field(0.2, gt=0, lt=1)
    """Share of them in an epoch; each epoch goes on with the next ones."""


class Training(Section):
    method: Literal["dpo", "sft"] = "dpo"
    """Preference training on pairs, or supervised fine-tuning on `data`."""
    model: str | None = None
    """Folder to start from; none: sampling.model."""
    data: Paths = []
    """Pairs (dpo) or jsonl rows with `messages` (sft); none for dpo: the run's own pairs."""
    mix: Mix | None = None
    """Short-context pairs (dpo) learned beside the long ones; none: none."""
    bucket: int = Field(8, ge=1)
    """Examples of neighbouring length that come together in the order; with at least num_workers x
    micro_batch_size of them workers hardly wait for each other; 1: length does not matter."""
    beta: float = Field(0.15, gt=0)
    """DPO's beta (paper: 0.15); for ipo its regularisation τ."""
    loss_type: Literal["sigmoid", "sigmoid_norm", "robust", "hinge", "ipo"] = "sigmoid"
    """Loss of a pair under TRL's names; sigmoid_norm and ipo divide log-ratios by answer tokens."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the preferences taken to be the wrong way round; for sigmoid, sigmoid_norm and robust."""
    margin_scale: float = Field(0.0, ge=0)
    """Offset by the rewards: chosen must lead by this times score_chosen - score_rejected; not for ipo."""
    ce_weight: float = Field(0.1, ge=0)
    """Weight of the cross-entropy on the chosen answer (paper: 0.1)."""
    ce_normalization: Literal["token", "sequence"] = "token"
    """Cross-entropy averaged over the batch's tokens, or over tokens then sequences (not published)."""
    learning_rate: float = Field(1e-6, gt=0)
    """Peak learning rate (paper: 1e-6 for DPO, 1e-5 for SFT)."""
    batch_size: int = Field(16, ge=1)
    """Pairs (or SFT sequences) an optimizer step, over all workers (paper: 16)."""
    micro_batch_size: int = Field(1, ge=1)
    """Pairs (or sequences) a forward pass of a worker; the rest is gradient accumulation."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; replaces epochs (paper: 400-800)."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises (not published)."""
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning rate after warm-up (not published)."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW weight decay."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """AdamW betas."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping."""
    max_length: int | None = Field(None, ge=2)
    """Longest prompt plus answer in tokens; longer rows are counted and left out; none: the window."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    tiled_mlp: int | None = Field(None, ge=1)
    """Rows an MLP takes at once, computed again in the backward pass; none: all. Less memory, more time."""
    offload_activations: bool = False
    """Keep on the host what the forward pass saves for the backward pass."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 where the hardware has it (a GPU with bf16), else fp32."""
    num_workers: int = Field(1, ge=1)
    """Ray Train workers."""
    sequence_parallel_size: int = Field(1, ge=1)
    """Workers that compute one batch's tokens together (Ulysses), for lengths one GPU cannot hold."""
    lora: dict[str, Any] | None = None
    """peft's LoraConfig by its own names, e.g. {r: 16, lora_alpha: 32}; none: all weights are trained."""
    reference_actors: int | None = Field(None, ge=0)
    """Actors that compute the reference's log-probs before training, each with the whole model; 0: the
    workers do it, for what fits over several only; none: num_workers, or 0 with sequence parallelism."""
    use_gpu: bool = False
    """One GPU a worker."""
    num_cpus: float = Field(1.0, ge=0)
    """Ray CPUs a worker takes."""
    resources: Resources = {}
    """Resources of your own that a worker takes, as {lr_training: 1}."""
    deepspeed: dict[str, Any] = {"zero_optimization": {"stage": 1}}
    """DeepSpeed's own config; batch sizes, optimizer and precision are filled in from above."""
    checkpoint_steps: int = Field(100, ge=1)
    """Optimizer steps between checkpoints."""
    max_failures: int = Field(2, ge=0)
    """Worker failures after which training gives up; before, it resumes from the last checkpoint."""
    report_to: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]
    """Where metrics go besides metrics.jsonl."""
    seed: int = 0
    """Order of the data and everything random in training."""

    @model_validator(mode="after")
    def _blocks(self) -> Self:
        for name in ("zero_optimization", "bf16", "fp16", "optimizer"):
            block = self.deepspeed.get(name, {})
            if not isinstance(block, dict):
                raise ValueError(f"deepspeed.{name} is {block!r}, not a mapping as DeepSpeed has it")
        return self

    @model_validator(mode="after")
    def _loss(self) -> Self:
        if self.label_smoothing and self.loss_type in ("hinge", "ipo"):
            raise ValueError(f"label_smoothing has no meaning for loss_type {self.loss_type}")
        if self.margin_scale and self.loss_type == "ipo":
            raise ValueError("margin_scale has no meaning for loss_type ipo")
        return self
