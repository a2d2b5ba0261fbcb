"""What an agreement would take, before anything is spent: calls and tokens, counted on the labelled pairs.

All answers are there, so that the texts of the calls are those of the run. Assumed is what the judge writes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lr_ray import labelled
from lr_ray.agreement import cases, direct, inputs
from lr_ray.config import Config, Judge
from lr_ray.judge import chunks, forecast
from lr_ray.labelled import Labels, Pair
from lr_ray.llm.usage import Used
from lr_ray.meter import cost
from lr_ray.plan.bounds import HIGH, LOW, end, total
from lr_ray.rows import Sampled

SAMPLE = 200  # prompts counted in full; the rest are taken to be alike


@dataclass
class Forecast:
    """Of a whole agreement, by kind of call; `counted` of its `prompts` prompts were looked at in full.

    `ends` are the least and the most of all kinds together.
    """

    prompts: int
    counted: int
    answers: int
    judgings: int
    kinds: dict[str, Used] = field(default_factory=dict)
    ends: tuple[Used, Used] = (Used(), Used())
    unlabelled: int = 0


def make(config: Config) -> Forecast:
    """The forecast; reads the labelled pairs, and asks nobody.

    Raises:
        ValueError: bad pairs or config.
    """
    labels = labelled.scan(config)
    settings, measure = config.agreement, chunks.measure(config.judge.tokenizer)
    made = Forecast(len(labels.places), 0, 0, settings.repeats + 1, unlabelled=labels.unlabelled)
    cached: set[int] | None = None if config.judge.prices.cached_prompt is None else set()
    for pairs in _spread(labels):
        row: Any = inputs.row(pairs, settings.seed, measure)
        made.counted += 1
        made.answers += len(row["candidates"])
        for kind, used in _of_row(config, row, cached).items():
            made.kinds.setdefault(kind, Used()).add(used)
    times = made.prompts / made.counted
    made.answers = round(made.answers * times)
    for kind, used in made.kinds.items():
        made.kinds[kind] = Used()
        made.kinds[kind].add(used, times)
    low, high = (total(end(made.kinds, one, {}, made.prompts * made.judgings)) for one in (LOW, HIGH))
    made.ends = low, high
    return made


def _spread(labels: Labels) -> Iterator[list[Pair]]:
    step = -(-len(labels.places) // SAMPLE)
    chosen = list(labels.places)[::step]
    return iter(Labels({one: labels.places[one] for one in chosen}))


def _of_row(config: Config, row: Any, cached: set[int] | None) -> dict[str, Used]:
    """Every judging of the row's answers, and what is asked about them outright."""
    judge, short = config.judge, row["short"]
    once = judge.model_copy(
        update={
            "repeats": judge.repeats.model_copy(update={"samples": 0}),
            "weights": cases.contextless(judge.weights) if short else judge.weights,
        }
    )
    sampled: Any = {
        **{key: row[key] for key in ("prompt_id", "context", "question")},
        **{"reference_answer": None, "prompt": [], "sampled_at": 0.0},
        "candidates": [
            {"index": index, "text": text, "finish_reason": None}
            for index, text in enumerate(row["candidates"])
        ],
    }
    found: dict[str, Used] = {}
    for _ in range(config.agreement.repeats + 1):  # with other parameters: nothing is paid already
        for kind, used in forecast.of_row(sampled, once, cached).items():
            found.setdefault(kind, Used()).add(used)
    if config.agreement.direct:
        found["direct"] = _direct(sampled, row, judge, cached)
    return found


def _direct(sampled: Sampled, row: Any, judge: Judge, cached: set[int] | None) -> Used:
    texts = row["candidates"]
    couples = [(texts[first], texts[second]) for first, second in direct.orders(row["labels"])]
    return forecast.of_couples(sampled, couples, judge, cached, context=not row["short"])


def render(made: Forecast, config: Config) -> str:
    """The forecast as text."""
    prices = config.judge.prices

    def line(name: str, used: Used) -> str:
        money = cost(vars(used), prices)
        shown = "–" if money is None else f"{money:,.2f}"
        tokens = f"{used.prompt_tokens:>16,.0f}{used.completion_tokens:>14,.0f}"
        return f"{name:<13}{used.calls:>12,.0f}{tokens}{shown:>12}"

    lines = [
        f"prompts      {made.prompts:>14,}   counted in full: {made.counted:,}",
        f"answers      {made.answers:>14,}   labelled",
        f"judgings     {made.judgings:>14,}   of each",
        "",
        f"{'call':<13}{'calls':>12}{'prompt tokens':>16}{'completion':>14}{'money':>12}",
        *(line(kind, used) for kind, used in made.kinds.items()),
        line("all", total(made.kinds)),
        *(line(name, one) for name, one in zip(("at least", "at most"), made.ends, strict=True)),
        "",
        "assumed: a judge that writes as much as the examples in its prompt (ends: a third, twice), every "
        "sentence a statement (half, one and a half)",
    ]
    if config.judge.tokenizer is None:
        lines.append("estimated: a token for every four bytes of text, as judge.tokenizer is not set")
    if made.unlabelled:
        lines.append(f"left out: {made.unlabelled:,} rows whose label does not tell the answers apart")
    if config.agreement.other:
        lines.append(f"the other judge's calls are those of {config.agreement.other}, which is there")
    return "\n".join(lines)
