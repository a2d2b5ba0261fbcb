"""Candidates from the policy: n samples a prompt through vLLM actors, the prompt prefilled once.

`ray.data.llm` keeps one of n samples, so this is an actor of our own on vLLM's `AsyncLLM`. All n samples
of a prompt are requests with the same token ids: the first fills the prefix cache, the others read it.
Placement of tensor and pipeline parallel engines, and the exit of an actor whose engine died, follow
`ray.data.llm` (ray.llm._internal.batch.stages.vllm_engine_stage).
"""

import asyncio
import hashlib
import os
import time
from typing import TYPE_CHECKING, Any

from lr_ray import journal, models
from lr_ray.config import Config
from lr_ray.config import Sampling as Settings
from lr_ray.placement import Groups, Need
from lr_ray.rows import Candidate, Load, Message, Packed, Prompt, Sampled, failed, opened, pack, unpack

if TYPE_CHECKING:
    import ray.data


class Sampler:
    """One vLLM engine. Rows of kind "prompt" become "sampled" or "failed"; others pass through."""

    def __init__(
        self,
        settings: Settings,
        load: Load | None = None,
        tally: Any = None,
        log: journal.Journal = journal.SILENT,
    ) -> None:
        os.environ.update(settings.env)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        options: dict[str, Any] = {"enable_prefix_caching": True, **settings.engine}
        if _by_ray(settings):
            options["distributed_executor_backend"] = "ray"
        arguments = AsyncEngineArgs(model=models.local(settings.model), **options)
        self.engine = AsyncLLM.from_engine_args(arguments)
        self.tokenizer: Any = self.engine.get_tokenizer()
        self.window: int = self.engine.model_config.max_model_len
        self.settings = settings
        self.load, self.tally, self.journal = load, tally, log
        self.requests = 0

    async def __call__(self, packed: Packed) -> Packed:
        packed = await opened(packed, self.load)
        if packed["kind"] != "prompt":
            return packed
        row: Any = unpack(packed)
        limit = self.window - self.settings.max_tokens
        fitted = await asyncio.to_thread(fit, self.tokenizer, row["prompt"], limit, self.settings.truncate)
        if isinstance(fitted, str):
            self._count({"failed": 1})
            self.journal.warning("failed", prompt_id=packed["prompt_id"], stage="sample", reason=fitted)
            return failed(packed["prompt_id"], "sample", fitted)
        prompt, token_ids, truncated = fitted
        prompt_row: Prompt = {**row, "prompt": prompt}
        began = time.perf_counter()
        sampled = await self._sample(prompt_row, token_ids, truncated)
        self._log(sampled, time.perf_counter() - began)
        tokens = sampled["prompt_tokens"] - sampled["cached_tokens"]
        self._count({"sampled": 1, "candidates": self.settings.n, "sample_tokens": tokens})
        return pack("sampled", sampled)

    async def _sample(self, prompt: Prompt, token_ids: list[int], truncated: bool) -> Sampled:
        outputs = await asyncio.gather(
            *(self._generate(token_ids, seed) for seed in seeds(self.settings, prompt["prompt_id"]))
        )
        candidates: list[Candidate] = [
            {"index": index, "text": output.outputs[0].text, "finish_reason": output.outputs[0].finish_reason}
            for index, output in enumerate(outputs)
        ]
        return Sampled(
            **prompt,
            candidates=candidates,
            prompt_tokens=len(token_ids) * len(outputs),
            cached_tokens=sum(output.num_cached_tokens or 0 for output in outputs),
            truncated=truncated,
            sampled_at=time.time(),
        )

    async def _generate(self, token_ids: list[int], seed: int | None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        self.requests += 1
        parameters = SamplingParams(
            temperature=self.settings.temperature,
            top_p=self.settings.top_p,
            max_tokens=self.settings.max_tokens,
            seed=seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        try:
            last = None
            async for output in self.engine.generate(
                {"prompt_token_ids": token_ids}, parameters, f"{os.getpid()}-{self.requests}"
            ):
                last = output
        except EngineDeadError:
            # An exception would send the retry to this same dead actor. Dying with a system error makes
            # Ray start a new actor and retry there (ray-project/ray#59522).
            os._exit(1)
        assert last is not None
        assert last.finished
        return last

    def _log(self, sampled: Sampled, seconds: float) -> None:
        self.journal.info(
            "sampled",
            prompt_id=sampled["prompt_id"],
            seconds=seconds,
            candidates=len(sampled["candidates"]),
            prompt_tokens=sampled["prompt_tokens"],
            cached_tokens=sampled["cached_tokens"],
            truncated=sampled["truncated"] or None,
            texts=[candidate["text"] for candidate in sampled["candidates"]],
        )

    def _count(self, counts: dict[str, float]) -> None:
        if self.tally is not None:
            self.tally.add.remote(counts)

    def __del__(self) -> None:
        # Without it the engine's own processes outlive the actor.
        if hasattr(self, "engine"):
            self.engine.shutdown()


def seeds(settings: Settings, prompt_id: str) -> list[int | None]:
    """A seed for each candidate of a prompt, or none."""
    if settings.seed is None:
        return [None] * settings.n
    named = (f"{settings.seed}/{index}/{prompt_id}".encode() for index in range(settings.n))
    return [int.from_bytes(hashlib.sha256(name).digest()[:4], "big") for name in named]


def fit(
    tokenizer: Any, prompt: list[Message], limit: int, truncate: str
) -> tuple[list[Message], list[int], bool] | str:
    """The prompt, its token ids and whether it was cut, or why it does not fit in `limit` tokens.

    With `truncate` "middle" the last message keeps the head and the tail half of the tokens that fit
    (the authors' rule for inputs over the model's limit); the template's own tokens stay whole.
    """
    token_ids = render(tokenizer, prompt)
    if len(token_ids) <= limit:
        return prompt, token_ids, False
    reason = f"the prompt has {len(token_ids)} tokens; the model's window leaves room for {limit}"
    if truncate == "refuse":
        return f"{reason} (sampling.truncate=middle would cut it)"
    *before, last = prompt
    offsets = tokenizer(
        last["content"], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )["offset_mapping"]
    keep = len(offsets) - (len(token_ids) - limit)
    while keep >= 2:
        head, tail = offsets[keep // 2 - 1][1], offsets[len(offsets) - (keep - keep // 2)][0]
        text = last["content"][:head] + last["content"][tail:]
        shorter: list[Message] = [*before, {"role": last["role"], "content": text}]
        token_ids = render(tokenizer, shorter)
        if len(token_ids) <= limit:
            return shorter, token_ids, True
        keep -= len(token_ids) - limit  # the seam may tokenise into more tokens than were kept
    return f"{reason}, and cutting its last message cannot help"


def render(tokenizer: Any, prompt: list[Message]) -> list[int]:
    """Token ids of the conversation under the model's chat template, ready for the answer."""
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)


def check_model(model: str, key: str) -> None:
    """Refuse a local model folder that cannot be sampled, before anything is started.

    Raises:
        ValueError: no such folder, no config.json, or a tokenizer without chat template.
    """
    if not model:
        raise ValueError(f"{key} is not set: name a Hugging Face model folder")
    folder = models.local(model, weights=False)
    if not os.path.isdir(folder):
        if model.startswith((".", "/", "~")):
            raise ValueError(f"{key}: {model}: no such model folder")
        return  # a hub name: vLLM resolves it
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise ValueError(f"{key}: {model}: no config.json in this model folder")
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise ValueError(f"{key}: {model}: its tokenizer has no chat template")


def sample_stage(
    dataset: "ray.data.Dataset",
    config: Config,
    groups: Groups,
    load: Load | None = None,
    tally: Any = None,
) -> "ray.data.Dataset":
    """Rows of kind "prompt", or pointers to such for `load` → "sampled" or "failed", on `sampling.actors`
    engines, whose placement is in `groups` for as long as the rows flow."""
    import ray.data

    settings, asked = config.sampling, need(config.sampling)
    placement: dict[str, Any]
    if _by_ray(settings):
        # vLLM's Ray executor takes its workers from the actor's placement group.
        placement = {"ray_remote_args_fn": lambda: groups.options(asked)}
    else:
        placement = {"num_cpus": asked.each["CPU"], "num_gpus": asked.each["GPU"] or None}
        placement["resources"] = dict(settings.resources)
    sampler: Any = Sampler  # an async callable class, which map takes and its annotation forgets
    return dataset.map(
        sampler,
        fn_constructor_kwargs={
            "settings": settings,
            "load": load,
            "tally": tally,
            "log": journal.of(config),
        },
        compute=ray.data.ActorPoolStrategy(
            size=settings.actors, max_tasks_in_flight_per_actor=2 * settings.rows_in_flight
        ),
        max_concurrency=settings.rows_in_flight,
        **placement,
    )


def need(settings: Settings) -> Need:
    """What the engines ask Ray for: an actor each, or for vLLM's Ray executor a bundle a worker."""
    workers, each = _workers(settings), {"CPU": settings.num_cpus, "GPU": settings.num_gpus}
    if _by_ray(settings):
        # That executor takes bundles with a GPU alone.
        each = {"CPU": settings.num_cpus or 1.0, "GPU": settings.num_gpus or 1.0, **settings.resources}
        return Need("sampling", settings.actors, each, workers)
    each = {**each, "GPU": settings.num_gpus * workers, **settings.resources}
    return Need("sampling", settings.actors, each)


def _workers(settings: Settings) -> int:
    """Workers of one engine, each on `num_gpus` GPUs."""
    sizes = (settings.engine.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline"))
    tensor, pipeline = sizes
    return tensor * pipeline


def _by_ray(settings: Settings) -> bool:
    """Whether Ray places an engine's workers, maybe on several nodes; else the engine's actor holds all."""
    several = "ray" if _workers(settings) > 1 else None
    return settings.engine.get("distributed_executor_backend", several) == "ray"
