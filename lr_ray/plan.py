"""What a run would take, from the data itself, before anything is spent.

The calls are those that the judge would make (`judge.forecast`), counted on the data, a spread sample where
it is large: real chunks, prompts and retrieved passages, and of answers that are there (`data.candidates`, or
sampled already) the real texts. Assumed is what nobody can know before: answers that are not there, and what
a judge says. As soon as prompts are judged, their ledger says how far that was off, and the forecast of all
is corrected by it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, TypeVar

from lr_ray import data, plan_training
from lr_ray.config import Config
from lr_ray.judge import chunks, forecast, repeats
from lr_ray.llm import usage
from lr_ray.llm.usage import Used
from lr_ray.meter import cost
from lr_ray.preflight import inputs
from lr_ray.rows import Candidate
from lr_ray.store import Store

SAMPLE = 100  # prompts counted in full; the rest are taken to be alike
JUDGED = 50  # judged prompts whose forecast is compared with what they used
STATEMENTS, ANSWER_TOKENS = 10, 300  # of a candidate that is not there yet, as the paper's estimate has it
LATENCY = 3.0  # seconds a judge call takes
DIMENSION = {
    "helpfulness": "helpfulness",
    "logicality": "logicality",
    "statements": "faithfulness",
    "embeddings": "faithfulness",
    "support": "faithfulness",
    "extract": "completeness",
    "completeness": "completeness",
}

T = TypeVar("T")


@dataclass
class Forecast:
    """Of a whole run. `kinds` is judging by kind of call; `evaluation` both models on the held-out prompts.

    `money` is for both, None without prices; `spent` of it the ledger holds already, for `done` prompts.
    """

    prompts: int
    counted: int
    candidates: float
    context_tokens: float
    chunks: float
    kinds: dict[str, Used]
    evaluation: Used
    money: float | None = None
    spent: float = 0.0
    done: int = 0
    judge_hours: float = 0.0
    judged: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def all(self) -> Used:
        """Judging and evaluation together."""
        total = Used()
        for one in (*self.kinds.values(), self.evaluation):
            total.add(one)
        return total


def make(config: Config) -> Forecast:
    """The forecast for the config's prompts and candidates, those already done included.

    Raises:
        ValueError: bad input or config.
    """
    store, pointers = Store(config.run_dir), inputs(config)
    answers = _Answers(config, store)
    rows = [answers.of(pointer) for pointer in _spread(pointers, SAMPLE)]
    correction, seconds, judged = _learned(config, store)
    held_out = data.scan(config.evaluation.prompts) if config.evaluation.prompts else []
    asked = [answers.of(pointer, config.evaluation.n) for pointer in _spread(held_out, SAMPLE // 2)]
    measure = chunks.measure(config.judge.tokenizer)
    evaluation = Used()
    for one in _count(config, asked, 2 * len(held_out), correction).values():
        evaluation.add(one)
    result = Forecast(
        prompts=len(pointers),
        counted=len(rows),
        candidates=fmean(len(row["candidates"]) for row in rows),
        context_tokens=fmean(measure.upto(row["context"])[-1] / measure.unit for row in rows),
        chunks=fmean(
            len(chunks.split(r["context"], config.judge.extract_chunk_tokens, measure)) for r in rows
        ),
        kinds=_count(config, rows, len(pointers), correction),
        evaluation=evaluation,
        judged=judged,
        done=len({pointer.prompt_id for pointer in pointers} & store.index("judged").keys()),
    )
    _price(config, store, result)
    _time(config, result, seconds)
    _assumptions(config, result, answers)
    result.notes += plan_training.forecast(config, result.prompts)
    return result


class _Answers:
    """Rows to forecast. Who has no answers yet gets those of another prompt, or none at all made-up ones."""

    def __init__(self, config: Config, store: Store) -> None:
        self._config, self._store = config, store
        self._sampled = store.index("sampled")
        lenders = _spread(sorted(self._sampled), SAMPLE // 5)
        self._lent = [_row(store, "sampled", self._sampled[one])["candidates"] for one in lenders]
        self.made_up = self.borrowed = 0

    def of(self, pointer: data.Pointer, n: int | None = None) -> Any:
        """The row at `pointer` with its candidates, or with `n` that stand for them."""
        row: Any = data.load(pointer, self._config.data.prompt_template)
        if n is None and pointer.candidates:
            return row
        if n is None and pointer.prompt_id in self._sampled:
            return _row(self._store, "sampled", self._sampled[pointer.prompt_id])
        return {**row, "candidates": self._stand_in(n or self._config.sampling.n), "sampled_at": 0.0}

    def _stand_in(self, n: int) -> list[Candidate]:
        if self._lent:
            self.borrowed += 1
            return self._lent[self.borrowed % len(self._lent)][:n]
        self.made_up += 1
        tokens, statements = _made_up(self._config)
        words = "word " * (tokens * chunks.BYTES_A_TOKEN // statements // 5 - 2)
        texts = (" ".join(f"Point {i} {j} {words.strip()}." for j in range(statements)) for i in range(n))
        return [{"index": i, "text": text, "finish_reason": None} for i, text in enumerate(texts)]


def _made_up(config: Config) -> tuple[int, int]:
    """Tokens and statements of an answer that is not there yet."""
    tokens = min(ANSWER_TOKENS, config.sampling.max_tokens)
    return tokens, max(1, round(STATEMENTS * tokens / ANSWER_TOKENS))


def _spread(items: Sequence[T], most: int) -> Sequence[T]:
    return items[:: max(1, math.ceil(len(items) / most))]


def _row(store: Store, folder: str, place: tuple[str, int]) -> dict[str, Any]:
    name, row = place
    return store.table(folder, name).slice(row, 1).to_pylist()[0]


def _count(config: Config, rows: list[Any], prompts: int, correction: Mapping[str, Used]) -> dict[str, Used]:
    """What `prompts` prompts take when they are like `rows`, by kind of call."""
    once = config.judge.model_copy(update={"repeats": config.judge.repeats.model_copy(update={"samples": 0})})
    kinds: dict[str, Used] = {}
    for row in rows:
        for kind, used in forecast.of_row(row, once).items():
            kinds.setdefault(kind, Used()).add(used, prompts / len(rows))
    for kind, factor in correction.items():
        if kind in kinds:
            one = kinds[kind]
            one.calls *= factor.calls
            one.prompt_tokens *= factor.prompt_tokens
            one.completion_tokens *= factor.completion_tokens
            one.cached_tokens = factor.cached_tokens * one.prompt_tokens
    return {kind: kinds[kind] for kind in DIMENSION if kind in kinds}


def _learned(config: Config, store: Store) -> tuple[dict[str, Used], float | None, int]:
    """Used over forecast by kind of call, seconds a prompt, and the number of judged prompts that say so.

    They are the run's own or, while it has none, those of a run in `judge.reuse`.
    `cached_tokens` of a correction is the share of the prompt tokens.
    """
    for judged in (store, *map(Store, config.judge.reuse)):
        where = judged.index("judged")
        ids = _spread(sorted(where), JUDGED)
        used = usage.by_kind(judged, set(ids)) if ids else {}
        if used:
            return _compared(config, [_row(judged, "judged", where[one]) for one in ids], used)
    return {}, None, 0


def _compared(
    config: Config, rows: list[Any], used: Mapping[str, Used]
) -> tuple[dict[str, Used], float | None, int]:
    correction: dict[str, Used] = {}
    for kind, expected in _count(config, rows, len(rows), {}).items():
        got = used.get(kind, Used())
        correction[kind] = Used(got.calls / expected.calls, 1.0, 0.0, 1.0)
        if got.prompt_tokens:  # there are endpoints that do not say
            correction[kind].prompt_tokens = got.prompt_tokens / expected.prompt_tokens
            correction[kind].cached_tokens = got.cached_tokens / got.prompt_tokens
            correction[kind].completion_tokens = got.completion_tokens / max(1.0, expected.completion_tokens)
    fresh = [row["judged_at"] - row["first_call_at"] for row in rows if not row["usage"]["reused"]]
    return correction, fmean(fresh) if fresh else None, len(rows)


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
    judge = config.judge
    if seconds is None:
        result.judge_hours = result.all.calls * LATENCY / judge.concurrency / 3600
    else:
        at_once = min(result.prompts, judge.rows_in_flight * judge.actors)
        calls = sum(one.calls for one in result.kinds.values())
        result.judge_hours = result.prompts * seconds / at_once * result.all.calls / calls / 3600


def _assumptions(config: Config, result: Forecast, answers: _Answers) -> None:
    if result.judged:
        result.notes.append(f"corrected by what {result.judged} judged prompts used")
    else:
        result.notes.append(
            f"assumed: {forecast.RATING_TOKENS} tokens a rating and {forecast.VERDICT_TOKENS} a verdict, "
            f"every sentence a statement, {LATENCY:g} s a call; corrected as soon as some prompts are judged"
        )
    if answers.made_up:
        result.notes.append(
            "assumed: {1} statements and {0} tokens an answer, until some are sampled".format(
                *_made_up(config)
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
    lines += [line("all", "", result.all), ""]
    if result.spent:
        lines.append(f"spent so far {result.spent:,.2f}")
    return "\n".join([*lines, *result.notes])
