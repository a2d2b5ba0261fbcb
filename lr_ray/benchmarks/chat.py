"""Short instructions without a document, from their files: MT-Bench, AlpacaEval, IFEval; and any prompts."""

from collections.abc import Iterator

from lr_ray import data
from lr_ray.benchmarks import files
from lr_ray.benchmarks.case import Case, Check, asked
from lr_ray.config import Benchmark

MT_SOURCE = "MT-Bench's question.jsonl is in lm-sys/FastChat on GitHub (fastchat/llm_judge/data/mt_bench)"
MT_ANSWERS = "reference_answer/gpt-4.jsonl"
MT_REFERRED = ("math", "reasoning", "coding")
ALPACA_SOURCE = (
    "AlpacaEval 2's alpaca_eval_gpt4_baseline.json is in tatsu-lab/alpaca_eval on the Hugging Face hub (data "
    "sets); alpaca_eval.json beside it has the weaker answers of AlpacaEval 1"
)
IFEVAL_SOURCE = (
    "IFEval's input_data.jsonl is in google-research/google-research on GitHub (instruction_following_eval)"
)


def mt_bench(benchmark: Benchmark) -> Iterator[Case]:
    """MT-Bench: `question_id, category, turns`, and `reference` answers, one a turn, where there are any.

    As in FastChat, math, reasoning and coding are graded by `reference_answer/gpt-4.jsonl` beside the
    questions, where that is there.
    """
    url = files.within(benchmark.path, "question.jsonl")
    answers = _reference_answers(files.beside(url, MT_ANSWERS))
    for row in files.spread(files.rows(url, MT_SOURCE), benchmark.limit):
        turns = row.texts("turns")
        if len(turns) > 2:
            raise ValueError(f"{row.place}: {len(turns)} turns, and MT-Bench has two")
        key, category = row.text("question_id"), row.text("category")
        own = row.texts("reference") if row.raw.get("reference") else []
        yield Case(
            key=key,
            prompt=asked(turns[0]),
            grade="turn",
            question=turns[0],
            groups=["turn 1", category],
            references=answers.get(key, own) if category in MT_REFERRED else own,
            follow_up=turns[1] if len(turns) > 1 else None,
        )


def _reference_answers(url: str) -> dict[str, list[str]]:
    """Question id → an answer a turn; nothing where there is no such file."""
    if not files.exists(url):
        return {}
    found = {}
    for row in files.rows(url, MT_SOURCE):
        choices = row.raw.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        choice = files.Row(row.place, first if isinstance(first, dict) else {})
        found[row.text("question_id")] = choice.texts("turns")
    return found


def alpaca(benchmark: Benchmark) -> Iterator[Case]:
    """AlpacaEval: `instruction`, and `output`, where there is one, as the answer to win against.

    In a folder that of AlpacaEval 2, which is GPT-4 Turbo's, comes before that of AlpacaEval 1.
    """
    url = files.within(benchmark.path, "alpaca_eval_gpt4_baseline.json", "alpaca_eval.json")
    rows = list(enumerate(files.rows(url, ALPACA_SOURCE)))
    for number, row in files.spread(rows, benchmark.limit):
        instruction = row.text("instruction")
        yield Case(
            key=str(number),
            prompt=asked(instruction),
            grade="turn",
            question=instruction,
            groups=[str(row.raw["dataset"])] if row.raw.get("dataset") else [],
            against=row.text("output") if row.raw.get("output") else None,
        )


def ifeval(benchmark: Benchmark) -> Iterator[Case]:
    """IFEval: `key, prompt, instruction_id_list, kwargs`, a kwargs mapping an instruction."""
    url = files.within(benchmark.path, "input_data.jsonl")
    for row in files.spread(files.rows(url, IFEVAL_SOURCE), benchmark.limit):
        ids, given = row.texts("instruction_id_list"), row.raw.get("kwargs")
        mappings = isinstance(given, list) and all(isinstance(kwargs, dict) for kwargs in given)
        if not mappings or len(given) != len(ids):
            raise ValueError(f"{row.place}: kwargs is no list of one mapping an instruction")
        # Exports with one table for all instructions hold the arguments of the others as null.
        checks: list[Check] = [
            {"id": one, "kwargs": {k: v for k, v in kwargs.items() if v is not None}}
            for one, kwargs in zip(ids, given, strict=True)
        ]
        prompt = row.text("prompt")
        yield Case(
            key=row.text("key"), prompt=asked(prompt), grade="instructions", question=prompt, checks=checks
        )


def prompts(benchmark: Benchmark) -> Iterator[Case]:
    """Prompts in any format of `lr_ray.data`, whose answers are checked for facts only."""
    found = list(data.rows([benchmark.path]))
    if not found:
        raise ValueError(f"{benchmark.path}: no prompts in there")
    for place, raw in files.spread(found, benchmark.limit):
        prompt = data.to_prompt(raw, place)
        row = {"context": prompt["context"], "question": prompt["question"]}
        yield Case(
            key=prompt["prompt_id"],
            prompt=row | ({"messages": prompt["prompt"]} if "messages" in raw else {}),
            grade="none",
            question=prompt["question"],
        )
