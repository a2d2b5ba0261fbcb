"""The benchmarks of a config: every case of each, checked, with an id of its own."""

from collections.abc import Callable, Iterator, Set
from functools import partial

from lr_ray.benchmarks import chat, longbench, ruler
from lr_ray.benchmarks.case import JUDGED, Case
from lr_ray.config import Benchmark, Config
from lr_ray.judge import chunks

LOADERS: dict[str, Callable[[Benchmark], Iterator[Case]]] = {
    "longbench_chat": longbench.chat,
    "longbench": longbench.sets,
    "longbench_v2": longbench.choices,
    "mt_bench": chat.mt_bench,
    "alpaca_eval": chat.alpaca,
    "ifeval": chat.ifeval,
    "facts": chat.prompts,
}
PLAIN = ("longbench_v2", "ifeval", "ruler")
"""The kinds that need no judge."""


def cases(config: Config, benchmark: Benchmark) -> Iterator[Case]:
    """The benchmark's cases, each with an id that changes with anything in it.

    Raises:
        ValueError: a file is missing or a row is not of its format, in one sentence.
    """
    load = LOADERS.get(benchmark.kind) or partial(ruler.cases, measure=_measure(config))
    seen: set[str] = set()
    for case in load(benchmark):
        named = case.named(benchmark.label)
        if case.key in seen:
            raise ValueError(f"evaluation.benchmarks: {benchmark.label} holds two cases called {case.key}")
        seen.add(case.key)
        yield named


def _measure(config: Config) -> chunks.Measure:
    """Tokens as the model before counts them."""
    model = config.evaluation.baseline or config.sampling.model
    if not model:
        raise ValueError("sampling.model is not set: ruler's lengths are in tokens of the model before")
    try:
        return chunks.measure(model)
    except OSError as error:
        raise ValueError(f"{model}: no tokenizer there, which ruler's lengths are counted with") from error


def check(config: Config, taken: Set[str] = frozenset()) -> int:
    """Read all benchmarks once, before anything is sampled or paid.

    Returns:
        How many cases there are.

    Raises:
        ValueError: as `cases`; or a case's id is among those `taken`.
    """
    count = 0
    for benchmark in config.evaluation.benchmarks:
        for case in cases(config, benchmark):
            count += 1
            if case.prompt_id in taken:
                raise ValueError(f"{case.prompt_id}: a held-out prompt and a case have this id")
    return count


def asks(config: Config) -> bool:
    """Whether evaluating needs the judge's endpoint."""
    evaluation = config.evaluation
    return bool(evaluation.prompts) or any(map(asks_of, evaluation.benchmarks))


def asks_of(benchmark: Benchmark) -> bool:
    """Whether one benchmark needs the judge's endpoint."""
    return benchmark.kind not in PLAIN or benchmark.facts or bool(benchmark.win_rate)


def judged(case: Case) -> bool:
    """Whether the judge grades the case's answers."""
    return case.grade in JUDGED
