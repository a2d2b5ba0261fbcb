"""Rewards that a preference can rest on besides LongReward, to compare it with."""

from pydantic import Field

from lr_ray.config.section import Paths, Resources, Section


class Srm(Section):
    model: str = ""
    """A Hugging Face sequence classification model (folder or name) that rates question and answer."""
    label: int | None = Field(None, ge=0)
    """Which of its logits is the reward; none: it must have one only."""
    max_length: int | None = Field(None, ge=2)
    """Most tokens of question and answer; an answer over it gets no reward; none: the model's window."""
    batch_size: int = Field(8, ge=1)
    """Answers of a prompt that a forward pass takes."""
    actors: int = Field(1, ge=1)
    """Actors, each with the model."""
    num_cpus: float = Field(1.0, ge=0)
    """Ray CPUs an actor takes."""
    num_gpus: float = Field(0, ge=0)
    """GPUs an actor takes, as a share or a whole one."""
    resources: Resources = {}
    """Resources of your own that an actor takes."""


class Direct(Section):
    model: str | None = None
    """Who compares; none: judge.model."""
    base_url: str | list[str] | None = None
    """Where; none: judge.base_url."""
    context: bool = True
    """Whether the call shows the whole context; it must fit into the model's window."""


class Contrast(Section):
    candidates: Paths = []
    """A stronger model's answers to the same prompts: ours or the authors' format, as data.candidates."""


class Rewards(Section):
    seed: int = 0
    """Which values random gives, and which two candidates direct compares in which order."""
    srm: Srm = Srm()
    """A short-context reward model, which never sees the context."""
    direct: Direct = Direct()
    """One pairwise call a prompt."""
    contrast: Contrast = Contrast()
    """Answers of a stronger model."""
