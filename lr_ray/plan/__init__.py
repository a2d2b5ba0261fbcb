"""What a run would take, from the data itself, before anything is spent.

The calls are those that the judge would make (`judge.forecast`), counted on the data, a spread sample where
it is large: real chunks, prompts and retrieved passages, and of answers that are there (`data.candidates`, or
sampled already) the real texts. Assumed is what nobody can know before: answers that are not there, and what
a judge says; there the forecast has two ends (`bounds`). The first answers that are paid say how much the
judge writes; as soon as prompts are judged, their ledger says how far all of it was off, and the forecast is
corrected by it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lr_ray.benchmarks import forecast as benchmarked
from lr_ray.config import Config
from lr_ray.judge import chunks, direct, forecast, repeats
from lr_ray.llm import usage
from lr_ray.llm.usage import Used
from lr_ray.meter import cost
from lr_ray.plan import bounds, inputs, pairwise, training
from lr_ray.plan.bounds import HIGH, LOW, POINT, Supposed, total
from lr_ray.plan.inputs import Inputs
from lr_ray.plan.rows import SAMPLE, Answers, Part, made_up, shared, spread, stored
from lr_ray.store import Store

JUDGED = 50  # judged prompts whose forecast is compared with what they used
LATENCY = 3.0  # seconds a judge call takes
FEW = 10  # prompts counted again at each end, while no answers are there
HEARD = 10  # answers of one kind that say how much a judge writes
DIMENSION = {
    "helpfulness": "helpfulness",
    "logicality": "logicality",
    "statements": "faithfulness",
    "embeddings": "faithfulness",
    "support": "faithfulness",
    "extract": "completeness",
    "completeness": "completeness",
    direct.KIND: "reward",
}


@dataclass
class Forecast:
    """Of a whole run. `kinds` is judging by kind of call; `evaluation` both models on the held-out prompts.

    `money` is for both, None without prices; `spent` of it the ledger holds already, for `done` prompts.
    `ends` are the least and the most of both together, None where judged prompts have told the way between.
    """

    prompts: int
    counted: int
    candidates: float
    context_tokens: float
    chunks: float
    kinds: dict[str, Used]
    evaluation: Used
    ends: tuple[Used, Used] | None = None
    money: float | None = None
    spent: float = 0.0
    done: int = 0
    judge_hours: float = 0.0
    judged: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def all(self) -> Used:
        """Judging and evaluation together."""
        return total(self.kinds, {"": self.evaluation})


def make(config: Config, runs: Sequence[Config] = ()) -> Forecast:
    """The forecast for the config's prompts and candidates, those already done included.

    `runs` are the configs of several trainings on the same candidates, each evaluated (none: the config's).

    Raises:
        ValueError: bad input or config.
    """
    runs = runs or [config]
    with inputs.found(config) as given:
        asked = config.evaluation.model_copy(update={"benchmarks": given.benchmarks})
        return _make(config.model_copy(update={"evaluation": asked}), runs, given)


def _make(config: Config, runs: Sequence[Config], given: Inputs) -> Forecast:
    store = Store(config.run_dir)
    answers = Answers(config, store)
    learned = _learned(config, store)
    prompts = Part(given.prompts, given.count, more=pairwise.of_rewards(runs))
    evaluated = Part(
        given.held_out,
        given.held_out_count,
        config.evaluation.n,
        SAMPLE // 2,
        pairwise.of_wins(config, len(runs)),
        len(runs) + 1,  # the model before answers them, and that of each run
    )
    parts = [part for part in (prompts, evaluated) if part.pointers]
    rows = prompts.rows(answers)
    measure = chunks.measure(config.judge.tokenizer)
    kinds = [_count(config, part, part.rows(answers), learned) for part in parts]
    benchmarks = benchmarked.calls(config, made_up(config)[0], len(runs))
    result = Forecast(
        prompts=given.count,
        counted=len(rows),
        candidates=fmean(len(row["candidates"]) for row in rows),
        context_tokens=fmean(measure.upto(row["context"])[-1] / measure.unit for row in rows),
        chunks=fmean(
            len(chunks.split(r["context"], config.judge.extract_chunk_tokens, measure)) for r in rows
        ),
        kinds=kinds[0],
        evaluation=total(*kinds[1:], benchmarks),
        judged=learned.judged,
        done=len({pointer.prompt_id for pointer in given.prompts} & store.index("judged").keys()),
        notes=[*given.notes],
    )
    if not learned.judged or answers.made_up:
        low, high = (_end(config, parts, kinds, answers, learned, one) for one in (LOW, HIGH))
        for end in (low, high):
            end.add(total(benchmarks))  # how far these are off is not known
        result.ends = low, high
    _price(config, store, result)
    _time(config, result, learned.seconds)
    _assumptions(config, result, answers)
    result.notes += _trainings(runs, result.prompts)
    return result


def _trainings(runs: Sequence[Config], prompts: int) -> list[str]:
    """What the trainings take, in words; equal ones once."""
    said = [tuple(training.forecast(one, prompts)) for one in runs]
    if len(said) == 1:
        return [*said[0]]
    times = Counter(line for lines in said for line in lines)
    return [line if line.startswith("supposed") else f"{number} x {line}" for line, number in times.items()]


@dataclass(frozen=True)
class _Learned:
    """What judged prompts and paid answers tell.

    `correction` is used over forecast by kind of call (`cached_tokens`: the share of the prompt tokens) and
    `seconds` are of a prompt, from `judged` prompts. `heard` are all answers by kind, where none is judged.
    """

    correction: Mapping[str, Used] = field(default_factory=dict)
    seconds: float | None = None
    judged: int = 0
    heard: Mapping[str, Used] = field(default_factory=dict)


def _count(config: Config, part: Part, rows: list[Any], learned: _Learned) -> dict[str, Used]:
    """What the part takes when its prompts are like `rows`, by kind of call."""
    once = config.judge.model_copy(update={"repeats": config.judge.repeats.model_copy(update={"samples": 0})})
    cached: set[int] | None = None if config.judge.prices.cached_prompt is None else set()
    kinds: dict[str, Used] = {}
    for row in rows:
        times, judged = part.prompts / len(rows), forecast.of_row(row, once, cached)
        for of_row in (judged, part.more(row, cached)):
            for kind, used in of_row.items():
                kinds.setdefault(kind, Used()).add(used, times * part.models)
        for kind, used in shared(row, judged, once).items() if part.models > 1 else ():
            kinds[kind].add(used, times * (1 - part.models))
    for kind in kinds.keys() & learned.correction.keys():
        one, factor = kinds[kind], learned.correction[kind]
        one.calls *= factor.calls
        one.prompt_tokens *= factor.prompt_tokens
        one.completion_tokens *= factor.completion_tokens
        one.cached_tokens = factor.cached_tokens * one.prompt_tokens
    for kind in kinds.keys() & learned.heard.keys():
        one, heard = kinds[kind], learned.heard[kind]
        one.completion_tokens = one.calls * heard.completion_tokens / heard.calls
        one.cached_tokens = one.prompt_tokens * heard.cached_tokens / heard.prompt_tokens
    return {kind: kinds[kind] for kind in DIMENSION if kind in kinds}


def _end(
    config: Config,
    parts: list[Part],
    points: list[dict[str, Used]],
    answers: Answers,
    learned: _Learned,
    supposed: Supposed,
) -> Used:
    """What all parts, by kind of call `points`, take at one end."""
    if learned.judged:
        supposed = supposed.judge_known
    found = []
    for part, kinds in zip(parts, points, strict=True):
        if answers.made_up:
            few, usual = (
                _count(config, part, part.rows(answers, one, FEW), learned) for one in (supposed, POINT)
            )
            point = bounds.scaled(kinds, few, usual)
        else:
            point = kinds
        found.append(bounds.end(point, supposed, learned.heard, part.prompts))
    return total(*found)


def _learned(config: Config, store: Store) -> _Learned:
    """What the run's own judged prompts tell or, while it has none, those of a run in `judge.reuse`."""
    for judged in (store, *map(Store, config.judge.reuse)):
        where = judged.index("judged")
        ids = spread(sorted(where), JUDGED)
        used = usage.by_kind(judged, set(ids)) if ids else {}
        if used:
            return _compared(config, [stored(judged, "judged", where[one]) for one in ids], used)
    heard = {} if config.judge.reuse else usage.by_kind(store)
    told = {k: one for k, one in heard.items() if one.calls >= HEARD and one.prompt_tokens}
    return _Learned(heard=told)


def _compared(config: Config, rows: list[Any], used: Mapping[str, Used]) -> _Learned:
    correction: dict[str, Used] = {}
    for kind, expected in _count(config, Part((), len(rows)), rows, _Learned()).items():
        got = used.get(kind, Used())
        correction[kind] = Used(got.calls / expected.calls, 1.0, 0.0, 1.0)
        if got.prompt_tokens:  # there are endpoints that do not say
            correction[kind].prompt_tokens = got.prompt_tokens / expected.prompt_tokens
            correction[kind].cached_tokens = got.cached_tokens / got.prompt_tokens
            correction[kind].completion_tokens = got.completion_tokens / max(1.0, expected.completion_tokens)
    fresh = [row["judged_at"] - row["first_call_at"] for row in rows if not row["usage"]["reused"]]
    return _Learned(correction, fmean(fresh) if fresh else None, len(rows))


def _price(config: Config, store: Store, result: Forecast) -> None:
    prices = config.judge.prices
    result.money = cost(vars(result.all), prices)
    if result.money is None:
        result.notes.append("no prices in judge.prices, so no money")
        return
    result.spent = usage.money(store, prices)
    budget = config.judge.budget
    if budget is not None and budget < result.money:
        share = budget / result.money
        result.notes.append(
            f"judge.budget {budget:,.2f} is {share:.0%} of that: the run would stop before its end"
        )


def _time(config: Config, result: Forecast, seconds: float | None) -> None:
    judge, every = config.judge, result.all
    if seconds is None:
        took = every.calls * LATENCY / judge.concurrency
    else:
        at_once = min(result.prompts, judge.rows_in_flight * judge.actors)
        calls = sum(one.calls for kind, one in result.kinds.items() if kind != direct.KIND)
        took = result.prompts * seconds / at_once * every.calls / calls
    tokens = every.prompt_tokens + every.completion_tokens
    known = ((every.calls, judge.requests_per_minute), (tokens, judge.tokens_per_minute))
    minutes = max((amount / limit for amount, limit in known if limit), default=0.0)
    result.judge_hours = max(took / 3600, minutes / 60)
    result.notes.append("hours are those of judging; how long sampling and training take is not forecast")
    if judge.reuse:
        result.notes.append("what judge.reuse holds already costs nothing, and is not taken off above")


def _assumptions(config: Config, result: Forecast, answers: Answers) -> None:
    if result.judged:
        result.notes.append(f"corrected by what {result.judged} judged prompts used")
    else:
        result.notes.append(
            "assumed: a judge that writes as much as the examples in its prompt (ends: a third, twice), "
            f"every sentence a statement (half, one and a half), {LATENCY:g} s a call; corrected as soon as "
            "some prompts are judged"
        )
        if config.judge.prices.cached_prompt is not None:
            result.notes.append("assumed: a prefix cache that keeps what comes again (end: none)")
    if config.judge.tokenizer is None:
        result.notes.append("estimated: a token for every four bytes of text, as judge.tokenizer is not set")
    if answers.made_up:
        result.notes.append(
            "assumed: {1} statements and {0} tokens an answer (ends: a third of it, half of the answers "
            "repeated; three times, no longer than sampling.max_tokens), until some are sampled".format(
                *made_up(config)
            )
        )
    again = config.judge.repeats
    if again.samples:
        most = again.samples * sum(result.kinds[kind].calls for kind in repeats.RATED if kind in result.kinds)
        result.notes.append(
            f"judge.repeats: up to {most:,.0f} calls more, were best and worst of every prompt "
            f"within {again.margin:g}; not counted above"
        )


def render(result: Forecast, config: Config) -> str:
    """The forecast as text."""
    prices = config.judge.prices
    hours = result.judge_hours / max(1.0, result.all.calls)

    def line(dimension: str, kind: str, one: Used) -> str:
        price = cost(vars(one), prices)
        return (
            f"{dimension:<13}{kind:<13}{one.calls:>12,.0f}{one.prompt_tokens:>16,.0f}"
            f"{one.completion_tokens:>14,.0f}{'–' if price is None else f'{price:,.2f}':>12}"
            f"{one.calls * hours:>9,.2f}"
        )

    lines = [
        f"prompts      {result.prompts:>14,}   counted in full: {result.counted:,}; judged: {result.done:,}",
        f"candidates   {result.candidates:>14,.1f}   a prompt",
        f"context      {result.context_tokens:>14,.0f}   tokens a prompt, {result.chunks:.1f} chunks",
        "",
        f"{'dimension':<13}{'call':<13}{'calls':>12}{'prompt tokens':>16}{'completion':>14}"
        f"{'money':>12}{'hours':>9}",
    ]
    lines += [line(DIMENSION[kind], kind, one) for kind, one in result.kinds.items()]
    if result.evaluation.calls:
        lines.append(line("evaluation", "all", result.evaluation))
    lines.append(line("all", "", result.all))
    for name, one in zip(("at least", "at most"), result.ends or (), strict=bool(result.ends)):
        lines.append(line("", name, one))
    lines.append("")
    if result.spent:
        lines.append(f"spent so far {result.spent:,.2f}")
    return "\n".join([*lines, *result.notes])
