"""What synthesis would take, before anything is spent: its calls and tokens, counted on the documents.

Contexts are planned as in the run, on the documents themselves (a spread sample of large collections), so
that their lengths are those it would have. Assumed is what nobody can know before: how much is written, and
how many questions fail a check; contexts that are done say how many.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from lr_ray.config import Config
from lr_ray.judge.chunks import measure
from lr_ray.llm.messages import template
from lr_ray.llm.usage import Used
from lr_ray.meter import cost
from lr_ray.store import Store
from lr_ray.synthesis import contexts, documents, run
from lr_ray.synthesis.contexts import Known, Plan
from lr_ray.synthesis.questions import PACKAGE, SPARE

FILES = 200  # read at most; the rest are taken to be alike
PLANS = 2000
LOOKED_AT = 1.4  # questions of a context until one is kept
QUESTION, REFERENCE, ANSWER, ANALYSIS, UNAIDED = 40, 60, 350, 80, 60  # tokens


@dataclass
class Forecast:
    """Of a whole synthesis, by kind of call; `counted` of about `documents` documents were read for it."""

    documents: int
    counted: int
    contexts: int
    context_tokens: float
    kinds: dict[str, Used] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def make(config: Config) -> Forecast:
    """The forecast; reads documents, and asks nobody.

    Raises:
        ValueError: bad documents or config.
    """
    settings, store = config.synthesis, Store(config.run_dir)
    known, of_all = _documents(config, store)
    if not known:
        raise ValueError("synthesis.documents: none of them can be used")
    count = settings.contexts or of_all
    tried = settings.model_copy(update={"contexts": min(count, PLANS)})
    plans = contexts.plans(known, tried)
    tokens = {one.key: one.tokens for one in known}
    lengths = [_length(plan, tokens, asked=False) for plan in plans]
    made = Forecast(of_all, len(known), count, fmean(lengths))
    looked, note = _looked_at(config, store)
    made.notes.append(note)
    for plan, length in zip(plans, lengths, strict=True):
        _count(config, made, plan, (_length(plan, tokens, asked=True), length), looked, count / len(plans))
    return made


def _documents(config: Config, store: Store) -> tuple[Sequence[Known], int]:
    """Documents that can be used, and how many there would be of all files."""
    if store.exists(run.READ):
        usable, *_ = run.known(store)
        return usable, len(usable)
    found = documents.files(config.synthesis.documents).found
    sample = found[:: -(-len(found) // FILES)]
    measured = measure(config.judge.tokenizer)
    known: dict[str, Known] = {}
    for file in sample:
        for row in documents.read(file, config.synthesis, measured):
            if not row["dropped"]:
                one = Known(row["prompt_id"], row["digest"], row["language"], row["tokens"])
                known.setdefault(row["digest"], one)
    return list(known.values()), round(len(known) * len(found) / len(sample))


def _length(plan: Plan, tokens: dict[str, int], *, asked: bool) -> int:
    pieces = [piece for piece in plan.pieces if piece.asked or not asked]
    return sum(min(piece.tokens, tokens[piece.key]) for piece in pieces)


def _looked_at(config: Config, store: Store) -> tuple[float, str]:
    """Questions of a context that are checked."""
    rows = [row["questions"] for row in store.rows("synthesized", ["prompt_id", "questions"])]
    checked = [sum(one["outcome"] not in (SPARE, "duplicate") for one in row) for row in rows]
    if checked:
        return fmean(
            checked
        ), f"{fmean(checked):.2f} questions of a context are checked, as in {len(rows)} done"
    if config.synthesis.keep == "all":
        return config.synthesis.questions, "assumed: all questions of a context are checked"
    return min(LOOKED_AT, config.synthesis.questions), f"assumed: {LOOKED_AT} questions until one is kept"


def _count(
    config: Config, made: Forecast, plan: Plan, lengths: tuple[int, int], looked: float, times: float
) -> None:
    """Add the calls of a context, `times` over, whose asked documents and whole have these `lengths`."""
    settings, fixed = config.synthesis, functools.partial(_fixed, plan.language, config.judge.tokenizer)
    asked, whole = lengths
    gaps = plan.gaps if settings.keep == "all" else settings.questions * bool(plan.gaps)
    answered = looked * (settings.questions - gaps) / settings.questions
    pair = QUESTION + REFERENCE
    calls: list[tuple[str, float, int, int]] = [
        ("questions", gaps < settings.questions, asked, pair * (settings.questions - gaps)),
        ("gaps", bool(gaps), asked, pair * gaps),
        ("unaided", answered * settings.closed_book, QUESTION, UNAIDED),
        ("reading", looked, whole + QUESTION, ANALYSIS + ANSWER),
        ("same", answered, pair + ANSWER, ANALYSIS),
    ]
    for kind, number, prompt, completion in calls:
        if number:
            each = Used(1, prompt + fixed(kind), 0, completion)
            made.kinds.setdefault(kind, Used()).add(each, number * times)


@functools.cache
def _fixed(language: str, tokenizer: str | None, kind: str) -> int:
    measured = measure(tokenizer)
    return sum(int(measured.upto(text)[-1]) // measured.unit for text in template(PACKAGE, kind, language))


def render(made: Forecast, config: Config) -> str:
    """The forecast as text."""
    prices, total = config.judge.prices, Used()

    def line(name: str, used: Used) -> str:
        money = cost(vars(used), prices)
        shown = "–" if money is None else f"{money:,.2f}"
        tokens = f"{used.prompt_tokens:>16,.0f}{used.completion_tokens:>14,.0f}"
        return f"{name:<13}{used.calls:>12,.0f}{tokens}{shown:>12}"

    lines = [
        f"documents    {made.documents:>14,}   read for this: {made.counted:,}",
        f"contexts     {made.contexts:>14,}   {made.context_tokens:,.0f} tokens each",
        "",
        f"{'call':<13}{'calls':>12}{'prompt tokens':>16}{'completion':>14}{'money':>12}",
    ]
    for kind, used in made.kinds.items():
        total.add(used)
        lines.append(line(kind, used))
    return "\n".join([*lines, line("all", total), "", *made.notes])
