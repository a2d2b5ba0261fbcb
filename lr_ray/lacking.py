"""What a run lacks, as config, inputs and run directory tell: answers for pairs, rows for a stage, models."""

from lr_ray import data
from lr_ray.config import Config
from lr_ray.llm.addresses import address, base_urls
from lr_ray.store import Store


def can_pair(config: Config, prompts: list[data.Pointer]) -> None:
    """Refuse to judge for pairs what has too few answers to give any.

    Raises:
        ValueError: in one sentence.
    """
    if config.training.data:
        return  # pairs of the run are not learned from
    # The stronger model's answer counts beside the policy's.
    least = config.pairs.min_candidates - (config.pairs.reward == "contrast")
    if not config.data.candidates:
        if config.sampling.n < least:
            raise ValueError(f"sampling.n {config.sampling.n} is {_too_few(config, least)}")
    elif not any(_answers(pointer) >= least for pointer in prompts):
        most = max(map(_answers, prompts))
        raise ValueError(f"data.candidates: at most {most} answers a prompt are {_too_few(config, least)}")


def _answers(pointer: data.Pointer) -> int:
    return sum(bool(one["text"].strip()) for one in data.answers_at(pointer))


def _too_few(config: Config, least: int) -> str:
    rules = config.pairs
    beside = "" if least == rules.min_candidates else f" (less the one that {rules.reward} adds)"
    return f"below pairs.min_candidates {rules.min_candidates}{beside}: no prompt could give a pair"


def ready(config: Config, stages: tuple[str, ...]) -> None:
    """Find what the first of the stages lacks in the run directory, before Ray is started for nothing.

    Raises:
        ValueError: in one sentence.
    """
    store, first = Store(config.run_dir), stages[0]
    training, evaluation, judged = config.training, config.evaluation, store.files("judged")
    if first == "judge" and not (config.data.candidates or judged or store.files("sampled")):
        raise ValueError(f"{store.url}: nothing is sampled there: sample first, or name data.candidates")
    if first == "pairs" and not judged:
        raise ValueError(f"{store.url}: nothing is judged there: judge first")
    own_pairs = training.method == "dpo" and not training.data
    if first == "train" and own_pairs and not (store.files("pairs") or store.exists("model")):
        raise ValueError(f"{store.url}: no pairs to train on: judge and pair first, or name training.data")
    if first == "evaluate":
        if not (evaluation.prompts or evaluation.benchmarks):
            raise ValueError("evaluation.prompts is not set: name held-out prompts, or evaluation.benchmarks")
        if not (evaluation.model or store.exists("model")):
            raise ValueError(f"{store.url}: no model to evaluate: train first, or name evaluation.model")


def plannable(config: Config) -> None:
    """Refuse what `run` would refuse, as far as nothing need be asked or read for it.

    Raises:
        ValueError: an endpoint that is no address. A model may be where only the cluster sees it.
    """
    endpoints = {
        "judge.base_url": config.judge.base_url,
        "judge.retrieval.embedding_base_url": config.judge.retrieval.embedding_base_url,
        "rewards.direct.base_url": config.rewards.direct.base_url,
        "synthesis.base_url": config.synthesis.base_url,
    }
    for key, given in endpoints.items():
        for url in base_urls(given):
            if url is not None:
                address(url, key)
