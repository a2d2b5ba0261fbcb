"""Every knob of a run, in one frozen tree.

A config is one YAML file plus ``section.key=value`` overrides. Unknown keys are refused; each field's
docstring is its documentation. Options of vLLM, DeepSpeed and the judge endpoint pass through under
their upstream names in ``sampling.engine``, ``training.deepspeed`` and ``judge.parameters``.
Secrets never stand in a config: only the *name* of the environment variable that holds the key does.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DIMENSIONS = ("helpfulness", "logicality", "faithfulness", "completeness")


Resources = dict[str, Annotated[float, Field(gt=0)]]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Data(Section):
    prompts: list[str] = []
    """Prompt files (jsonl or parquet): paths or globs, local or s3://, gs://, hf://datasets/…"""
    candidates: list[str] = []
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
    truncate: Literal["refuse", "middle"] = "refuse"
    """A prompt over the model's window goes to `failed/` (refuse) or keeps its head and tail (middle)."""
    actors: int = Field(1, ge=1)
    """vLLM engines (data-parallel replicas)."""
    num_cpus: float = Field(0.5, ge=0)
    """Ray CPUs an engine takes."""
    num_gpus: float = Field(0, ge=0)
    """GPUs an engine takes; for tensor parallelism the engine places its own workers."""
    resources: Resources = {}
    """Resources of your own that an engine takes, as {lr_sampling: 1}: it runs where nodes declare them."""
    rows_in_flight: int = Field(32, ge=1)
    """Prompts an engine works on at once."""
    engine: dict[str, Any] = {}
    """vLLM engine arguments under their own names (dtype, max_model_len, tensor_parallel_size, …)."""
    env: dict[str, str] = {}
    """Environment of the engine's process, as VLLM_CPU_KVCACHE_SPACE."""


class Weights(Section):
    helpfulness: float = Field(1.0, ge=0)
    """Weight of helpfulness in the reward."""
    logicality: float = Field(1.0, ge=0)
    """Weight of logicality in the reward."""
    faithfulness: float = Field(1.0, ge=0)
    """Weight of faithfulness in the reward."""
    completeness: float = Field(1.0, ge=0)
    """Weight of completeness in the reward."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not any(getattr(self, name) for name in DIMENSIONS):
            raise ValueError("at least one dimension needs a weight above 0")
        return self


class Retrieval(Section):
    chunk_tokens: int = Field(128, ge=8)
    """Tokens of a passage, without overlap (paper: 128)."""
    top_k: int = Field(5, ge=1)
    """Passages a statement is checked against (paper: 5)."""
    embedding_model: str | None = None
    """A model of an OpenAI-compatible /v1/embeddings (the paper's way); none: BM25."""
    embedding_base_url: str | None = None
    """Where that model is served; none: judge.base_url."""


class Repeats(Section):
    samples: int = Field(0, ge=0, le=100)
    """More samples of each rating (at temperature 0.95) where best and worst are close; 0: none.
    With the first they make a mean; verdicts on statements are not repeated."""
    margin: float = Field(0.5, ge=0, le=10)
    """Best and worst of a prompt are close when their rewards differ by at most this."""


class Prices(Section):
    prompt: float = Field(0.0, ge=0)
    """Money a million prompt tokens."""
    cached_prompt: float | None = Field(None, ge=0)
    """Money a million prompt tokens read from the endpoint's cache; none: as `prompt`."""
    completion: float = Field(0.0, ge=0)
    """Money a million completion tokens."""


class Judge(Section):
    model: str = ""
    """The judge's model name at the endpoint."""
    base_url: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Any OpenAI-compatible endpoint, or a list of its replicas (one model, one key), which share the calls;
    none: OPENAI_BASE_URL, then the openai package's default."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    actors: int = Field(1, ge=1)
    """Judge actors; each keeps many calls in flight."""
    num_cpus: float = Field(0.1, ge=0)
    """Ray CPUs a judge actor takes."""
    resources: Resources = {}
    """Resources of your own that a judge actor takes, as {lr_judge: 1}."""
    rows_in_flight: int = Field(8, ge=1)
    """Prompts a judge actor works on at once."""
    concurrency: int = Field(64, ge=1)
    """Most calls in flight, all actors together. How many the endpoint takes, and how fast, is learned."""
    requests_per_minute: float | None = Field(None, gt=0)
    """Most requests a minute, all actors together; none: learned alone."""
    tokens_per_minute: float | None = Field(None, gt=0)
    """Most tokens a minute, prompts and answers, all actors together; none: learned alone."""
    timeout: float = Field(120.0, gt=0)
    """Seconds until a call is given up and tried again."""
    attempts: int = Field(5, ge=1)
    """Attempts a call before its unit is unscored (paper: 5)."""
    max_tokens: int = Field(2048, ge=16)
    """Longest judge answer, in tokens."""
    structured_output: Literal["json_schema", "prompt"] = "json_schema"
    """How the answer's schema is enforced: by the endpoint, or by the prompt and strict parsing."""
    parameters: dict[str, Any] = {}
    """Further parameters of the chat request under their own names (top_p, extra_body, …)."""
    extract_chunk_tokens: int = Field(4096, ge=16)
    """Tokens of a chunk that completeness takes an extract of, without overlap (paper: 4,096)."""
    tokenizer: str | None = None
    """Tokenizer folder that counts tokens for chunks; none: one token per four UTF-8 bytes."""
    statements_per_call: int = Field(1, ge=1, le=20)
    """Statements of an answer verified by one call (paper: 1); more costs less, and verdicts may change."""
    no_statements_score: float | None = Field(None, ge=0, le=10)
    """Faithfulness of an answer without factual statements; none: unscored."""
    budget: float | None = Field(None, gt=0)
    """Money for judging in the unit of `prices`, over all calls on the run directory; the run stops there."""
    max_error_rate: float = Field(0.5, gt=0, le=1)
    """Share of the last 200 tries, or of the last 50 prompts for one reason, that may fail before the run
    stops; 1: never. Refusals for the rate (429) are no failures."""
    weights: Weights = Weights()
    """Weights of the dimensions in the reward (paper: equal)."""
    retrieval: Retrieval = Retrieval()
    """How a statement finds its passages."""
    repeats: Repeats = Repeats()
    """More samples of the ratings where one would not decide (not in the paper)."""
    reuse: list[str] = []
    """Other run directories whose paid answers are taken where the question is the same, as after a change
    of weights or rules of pairs; they are only read, and what is taken is copied."""
    prices: Prices = Prices()
    """What tokens cost, for the display, the report, `plan` and `budget`."""

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.budget is not None and not (
            self.prices.prompt or self.prices.cached_prompt or self.prices.completion
        ):
            raise ValueError("budget needs prices: set judge.prices")
        return self


class Serving(Section):
    model: str = ""
    """Open-weights judge for `serve-judge`: a Hugging Face model folder (or name) with a chat template.
    At the endpoint it is called judge.model; without one, by the last part of this."""
    replicas: int = Field(1, ge=1)
    """vLLM engines behind the endpoint."""
    num_cpus: float = Field(1.0, ge=0)
    """Ray CPUs a worker of an engine takes."""
    num_gpus: float = Field(0, ge=0)
    """GPUs a worker takes; an engine has tensor_parallel_size times pipeline_parallel_size workers."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than the loopback needs a key in judge.api_key_env."""
    port: int = Field(8100, ge=1, le=65535)
    """Port; judge.base_url is then http://127.0.0.1:PORT/v1."""
    engine: dict[str, Any] = {}
    """vLLM engine arguments under their own names (dtype, max_model_len, tensor_parallel_size, …)."""
    router: dict[str, Any] = {}
    """Arguments of Ray Serve's PrefixCacheAffinityRouter under their own names."""
    env: dict[str, str] = {}
    """Environment of the engines, as VLLM_CPU_KVCACHE_SPACE."""


class Pairs(Section):
    min_candidates: int = Field(5, ge=2)
    """Candidates with all weighted dimensions scored that a prompt needs (paper: 5)."""
    margin: float = Field(0.0, ge=0)
    """Least reward difference of best and worst; a tie never pairs (not published)."""
    max_length_ratio: float | None = Field(None, gt=1)
    """Longest over shortest answer of a pair, in characters; none: no limit (not published)."""


class Mix(Section):
    data: Annotated[list[str], Field(min_length=1)]
    """Short-context pairs in TRL's preference format: jsonl or parquet with prompt, chosen and rejected, as
    text or as messages."""
    ratio: float = Field(0.2, gt=0, lt=1)
    """Share of them in an epoch; each epoch goes on with the next ones."""


class Training(Section):
    method: Literal["dpo", "sft"] = "dpo"
    """Preference training on pairs, or supervised fine-tuning on `data`."""
    model: str | None = None
    """Folder to start from; none: sampling.model."""
    data: list[str] = []
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
    def _loss(self) -> Self:
        if self.label_smoothing and self.loss_type in ("hinge", "ipo"):
            raise ValueError(f"label_smoothing has no meaning for loss_type {self.loss_type}")
        if self.margin_scale and self.loss_type == "ipo":
            raise ValueError("margin_scale has no meaning for loss_type ipo")
        return self


class Evaluation(Section):
    prompts: list[str] = []
    """Held-out prompts; none: no evaluation."""
    n: int = Field(1, ge=1)
    """Answers a prompt and model."""
    baseline: str | None = None
    """The model before; none: sampling.model."""
    model: str | None = None
    """The model after; none: the run's own model."""


class Config(Section):
    run_dir: str
    """Where everything of the run lies: a path, or s3://…, gs://…"""
    wait_for_nodes: float = Field(0.0, ge=0)
    """Seconds a stage waits for a cluster that grows to hold all its actors; then it starts with fewer."""
    data: Data = Data()
    """What goes in."""
    sampling: Sampling = Sampling()
    """The policy and how it is sampled."""
    judge: Judge = Judge()
    """The endpoint that scores, and how."""
    serving: Serving = Serving()
    """An open-weights judge served inside the cluster by `lr-ray serve-judge`."""
    pairs: Pairs = Pairs()
    """Which candidates make a preference pair."""
    training: Training = Training()
    """DPO or SFT."""
    evaluation: Evaluation = Evaluation()
    """Before and after on held-out prompts."""


def load(path: str, overrides: list[str] | None = None) -> Config:
    """The config in the YAML file at `path`, with ``section.key=value`` overrides applied.

    Values of overrides are YAML. ``~`` and relative paths stay as written.

    Raises:
        ValueError: one sentence naming the file and the key.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot read the config: {error.strerror}") from error
    try:
        tree = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config is a mapping of sections, this is a {type(tree).__name__}")
    for override in overrides or []:
        _apply(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "(top)"
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ValueError(f"{path}: {key}: {what}{more}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected section.key=value")
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ValueError(f"override {override!r}: {section} is not a section")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML") from error


def dump(config: Config) -> str:
    """The resolved config as YAML, as saved in the run directory. Holds no secret by construction."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def api_key(config: Config) -> str | None:
    """The judge's key from the environment; None when the variable is not set."""
    return os.environ.get(config.judge.api_key_env)
