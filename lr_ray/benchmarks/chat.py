"""Short instructions without a document, from their files: MT-Bench, AlpacaEval, IFEval; and any prompts."""

from collections.abc import Iterator

from lr_ray import data
from lr_ray.benchmarks import files
from lr_ray.benchmarks.case import Case, Check, asked
from lr_ray.config import Benchmark

MT_SOURCE = "MT-Bench's question.jsonl is in lm-sys/FastChat on GitHub (fastchat/llm_judge/data/mt_bench)"
ALPACA_SOURCE = (
    "AlpacaEval's alpaca_eval.json is in tatsu-lab/alpaca_eval on the Hugging Face hub (data sets)"
)
IFEVAL_SOURCE = (
    "IFEval's input_data.jsonl is in google-research/google-research on GitHub (instruction_following_eval)"
)


def mt_bench(benchmark: Benchmark) -> Iterator[Case]:
    """MT-Bench: `question_id, category, turns`, and `reference` answers, one a turn, where there are any."""
    url = files.within(benchmark.path, "question.jsonl")
    for row in files.spread(files.rows(url, MT_SOURCE), benchmark.limit):
        turns = row.texts("turns")
        if len(turns) > 2:
            raise ValueError(f"{row.place}: {len(turns)} turns, and MT-Bench has two")
        yield Case(
            key=row.text("question_id"),
            prompt=asked(turns[0]),
            grade="turn",
            question=turns[0],
            groups=["turn 1", row.text("category")],
            references=row.texts("reference") if row.raw.get("reference") else [],
            follow_up=turns[1] if len(turns) > 1 else None,
        )


def alpaca(benchmark: Benchmark) -> Iterator[Case]:
    """AlpacaEval: `instruction`, and `output`, where there is one, as the answer to win against."""
    url = files.within(benchmark.path, "alpaca_eval.json", "alpaca_eval_gpt4_baseline.json")
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
