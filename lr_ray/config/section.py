"""What all sections of a config are, and the small ones."""

from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(_several)]
"""A list of paths; a lone one may stand without brackets."""
Resources = dict[str, Annotated[float, Field(gt=0)]]
Reward = Literal[
    "longreward",
    "without_helpfulness",
    "without_logicality",
    "without_faithfulness",
    "without_completeness",
    "length",
    "random",
    "srm",
    "contrast",
    "direct",
]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where pydantic would take them for 1 and 0."""
        assert info.field_name
        kind = cls.model_fields[info.field_name].annotation
        if kind is not bool and any(isinstance(one, bool) for one in _inside(value, kind)):
            raise ValueError("takes no true or false (YAML reads on, off, yes and no as such: quote them)")
        return value


def _inside(value: Any, kind: Any) -> list[Any]:
    """The value itself, or what it holds as a list, or as a mapping whose values have a type."""
    if isinstance(value, dict):
        return [] if get_origin(kind) is not dict or Any in get_args(kind) else list(value.values())
    return value if isinstance(value, list) else [value]


class Data(Section):
    prompts: Paths = []
    """Prompt files (jsonl or parquet): paths or globs, local or s3://, gs://, hf://datasets/…; one may stand
    alone, without brackets, as in every list of paths."""
    candidates: Paths = []
    """Answers sampled elsewhere, to be judged: ours or the authors' format. Replaces sampling."""
    prompt_template: str = "{context}\n\n{question}"
    """The user message made of a prompt's context and question; not used for rows with `messages`."""

    @model_validator(mode="after")
    def _slots(self) -> Self:
        for slot in ("{context}", "{question}"):
            if self.prompt_template.count(slot) != 1:
                raise ValueError(f"prompt_template must hold {slot} exactly once")
        return self


class Sampling(Section):
    model: str = ""
    """The policy: a Hugging Face model folder (or name) with a chat template."""
    n: int = Field(10, ge=1)
    """Candidates a prompt (paper: m = 10)."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature (paper: 1.0)."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling; 1.0 is off."""
    max_tokens: int = Field(1024, ge=1)
    """Longest candidate, in tokens."""
    seed: int | None = None
    """Makes each candidate's seed, with the prompt's id and its index (the authors: 42); none: not seeded.
    Only on GPUs: vLLM's CPU engine cannot."""
    truncate: Literal["refuse", "middle"] = "refuse"
    """A prompt over the model's window goes to `failed/` (refuse) or keeps its head and tail (middle)."""
    actors: int = Field(1, ge=1)
    """vLLM engines (data-parallel replicas)."""
    num_cpus: float = Field(0.5, ge=0)
    """Ray CPUs an engine takes."""
    num_gpus: float = Field(0, ge=0)
    """GPUs a worker takes; an engine has tensor_parallel_size times pipeline_parallel_size workers."""
    resources: Resources = {}
    """Resources of your own that an engine takes, as {lr_sampling: 1}: it runs where nodes declare them."""
    rows_in_flight: int = Field(32, ge=1)
    """Prompts an engine works on at once."""
    engine: dict[str, Any] = {}
    """vLLM engine arguments under their own names (dtype, max_model_len, tensor_parallel_size, …)."""
    env: dict[str, str] = {}
    """Environment of the engine's process, as VLLM_CPU_KVCACHE_SPACE."""

    @model_validator(mode="after")
    def _seeded(self) -> Self:
        if self.seed is not None and not self.num_gpus:
            raise ValueError("seed needs num_gpus: a seeded request kills vLLM's CPU engine")
        return self


class Pairs(Section):
    reward: Reward = "longreward"
    """What makes one answer better: longreward (0-10), the same without one of its dimensions (0-10, from the
    scores that are there), length (characters), random (0-1), srm (the model's logit), contrast and direct (1
    for who wins, 0 for who loses; a direct tie 0.5)."""
    min_candidates: int = Field(5, ge=2)
    """Candidates with a reward that a prompt needs (paper: 5); direct counts those it drew its two from."""
    margin: float = Field(0.0, ge=0)
    """Least difference of best and worst on the reward's own scale; a tie never pairs (not published)."""
    max_length_ratio: float | None = Field(None, gt=1)
    """Longest over shortest answer of a pair, in characters; none: no limit (not published)."""


class Log(Section):
    level: Literal["debug", "info", "warning", "off"] = "info"
    """Least that is logged, as JSON lines on the stderr of actors: debug has every call to the judge, info
    every prompt and training step, warning what failed."""
    text: bool = False
    """Also what models wrote: candidates with their prompts, and with debug the judge's replies."""
