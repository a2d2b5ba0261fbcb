"""What the benchmarks of a config would ask of the judge, from their files, before anything is spent.

The calls and the texts in them are real; the answers of the models are not there yet and are assumed, and so
is how much the judge writes.
"""

from collections.abc import Mapping
from typing import Any

from lr_ray.benchmarks import files, grading, sets
from lr_ray.benchmarks.case import Case
from lr_ray.config import Benchmark, Config
from lr_ray.judge import chunks, direct, forecast
from lr_ray.judge.requests import PACKAGE as JUDGE
from lr_ray.llm.messages import Block, compose, language
from lr_ray.llm.usage import Used
from lr_ray.rows import Message

SAMPLE = 20  # cases of a benchmark counted in full; the rest are taken to be alike
WRITTEN = 100  # tokens of a grade with its analysis
SENTENCE = 12  # words of an assumed statement
ONLY_FACTS = {"helpfulness": 0.0, "logicality": 0.0, "faithfulness": 1.0, "completeness": 0.0}


def calls(config: Config, answer_tokens: int, trainings: int = 1) -> dict[str, Used]:
    """Of each kind of call how many, and their tokens, for the model before and that of each training.

    Raises:
        ValueError: a benchmark's file, see `sets`.
    """
    measure = chunks.measure(config.judge.tokenizer)
    found: dict[str, Used] = {}
    for benchmark in config.evaluation.benchmarks:
        if benchmark.kind == "ruler" and not sets.asks_of(benchmark):
            continue  # its texts are made with the tokenizer of a model that may not be there yet
        cases = list(sets.cases(config, benchmark))
        counted = files.spread(cases, SAMPLE)
        for case in counted:
            for kind, one in _of_case(
                config, benchmark, case, _answer(answer_tokens), measure, trainings
            ).items():
                found.setdefault(kind, Used()).add(one, len(cases) / len(counted))
    return found


def _answer(tokens: int) -> str:
    words = max(SENTENCE, tokens * chunks.BYTES_A_TOKEN // 6)
    texts = (" ".join(["words"] * (SENTENCE - 1)) + f" {number}." for number in range(words // SENTENCE))
    return " ".join(texts)


def _of_case(
    config: Config,
    benchmark: Benchmark,
    case: Case,
    answer: str,
    measure: chunks.Measure,
    trainings: int,
) -> Mapping[str, Used]:
    context, n = str(case.prompt.get("context", "")), config.evaluation.n
    answers = (trainings + 1) * n
    lang = language(context)
    found: dict[str, Used] = {}

    def add(kind: str, messages: list[Message], times: int) -> None:
        tokens = sum(measure.upto(message["content"])[-1] for message in messages) / measure.unit
        found.setdefault(kind, Used()).add(Used(1, float(tokens), 0, WRITTEN), times)

    turns = [case, case.then(answer)] if case.follow_up else [case]
    for turn in turns if sets.judged(case) else []:
        for reference in grading.references(turn):
            add(grading.KINDS[turn.grade], grading.messages(turn, lang, answer, reference), answers)
    if case.against is not None:
        add(direct.KIND, _pair(case, lang, [answer, case.against]), 2 * answers)
    if benchmark.win_rate:
        shown = context if benchmark.win_rate == "document" else None
        add(direct.KIND, _pair(case, lang, [answer, answer], shown), 2 * trainings * n)
    if benchmark.facts or benchmark.kind == "facts":
        for kind, one in _facts(config, case, context, answer).items():
            found.setdefault(kind, Used()).add(one, answers)
    return found


def _pair(case: Case, lang: str, answers: list[str], context: str | None = None) -> list[Message]:
    blocks = [Block("document", context)] if context else []
    blocks += [Block("question", case.question), Block("first", answers[0]), Block("second", answers[1])]
    return compose(JUDGE, direct.KIND, lang, blocks)


def _facts(config: Config, case: Case, context: str, answer: str) -> dict[str, Used]:
    weights = config.judge.weights.model_copy(update=ONLY_FACTS)
    row: Any = {
        "prompt_id": case.prompt_id,
        "context": context,
        "question": case.question,
        "reference_answer": None,
        "prompt": [],
        "candidates": [{"index": 0, "text": answer, "finish_reason": None}],
        "sampled_at": 0.0,
    }
    return forecast.of_row(row, config.judge.model_copy(update={"weights": weights}))
