"""The judge: the endpoint, how it is asked, what it costs, and one of one's own."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lr_ray.config.parameters import checked
from lr_ray.config.section import Paths, Resources, Section

DIMENSIONS = ("helpfulness", "logicality", "faithfulness", "completeness")


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
    parameters: Annotated[dict[str, Any], AfterValidator(checked)] = {}
    """Further parameters of the chat request under their own names (top_p, extra_body, …); extra_headers and
    extra_query go with every request. What judging itself sets, and what it cannot read, is refused."""
    extract_chunk_tokens: int = Field(4096, ge=16)
    """Tokens of a chunk that completeness takes an extract of, without overlap (paper: 4,096)."""
    tokenizer: str | None = None
    """Tokenizer folder that counts tokens for chunks; none: one token per four UTF-8 bytes."""
    statements_per_call: int = Field(1, ge=1, le=20)
    """Statements of an answer verified by one call (paper: 1); more costs less, and verdicts may change."""
    no_statements_score: float | None = Field(None, ge=0, le=10)
    """Faithfulness of an answer without factual statements; none: unscored."""
    retry_unscored: bool = False
    """`retry-failed` also takes up judged prompts that miss a score where new samples may help: after replies
    that were cut off, refused or invalid, up to `attempts` more. Other verbs take no notice of it."""
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
    reuse: Paths = []
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
