"""What a run would take, from the data itself, before anything is spent.

Chunk counts and prompt lengths are counted on the data (a spread sample where it is large); what cannot
be counted before is an assumption, and `render` says so beside the figure.
"""

import json
import math
import os
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from lr_ray import data
from lr_ray.config import Config
from lr_ray.judge import chunks, requests
from lr_ray.meter import cost
from lr_ray.store import Store

SAMPLE = 200  # prompts counted in full; the rest are taken to be alike
STATEMENTS = 10.0  # a candidate, as the paper's estimate of its calls has it
ANSWER_TOKENS = 300.0  # a candidate that is not there yet
COMPLETION = {  # tokens of a judge's answer
    "helpfulness": 120.0,
    "logicality": 120.0,
    "statements": 250.0,
    "support": 80.0,
    "extract": 200.0,
    "completeness": 120.0,
}
LATENCY = 3.0  # seconds a judge call takes


@dataclass
class Forecast:
    """Counts of one run; tokens and calls by kind of call, money None without prices."""

    prompts: int
    counted: int
    candidates: float
    context_tokens: float
    chunks: float
    statements: float
    calls: dict[str, float] = field(default_factory=dict)
    prompt_tokens: dict[str, float] = field(default_factory=dict)
    completion_tokens: dict[str, float] = field(default_factory=dict)
    money: float | None = None
    judge_hours: float = 0.0
    notes: list[str] = field(default_factory=list)


def forecast(config: Config) -> Forecast:
    """The forecast for the config's prompts and candidates; rows already done are counted too.

    Raises:
        ValueError: bad input or config.
    """
    if not config.data.prompts and not config.data.candidates:
        raise ValueError("data.prompts is not set: name jsonl or parquet files of prompts")
    pointers = data.scan(config.data.prompts, config.data.candidates)
    step = max(1, math.ceil(len(pointers) / SAMPLE))
    rows = [data.load(pointer, config.data.prompt_template) for pointer in pointers[::step]]
    result = _count(config, pointers, rows)
    _price(config, result)
    _training(config, result)
    return result


def _count(config: Config, pointers: list[data.Pointer], rows: list[Any]) -> Forecast:
    measure = chunks.measure(config.judge.tokenizer)

    def tokens(text: str) -> float:
        return float(measure.upto(text)[-1]) / measure.unit

    answers = [tokens(c["text"]) for row in rows for c in row.get("candidates", [])]
    statements = _known_statements(Store(config.run_dir))
    result = Forecast(
        prompts=len(pointers),
        counted=len(rows),
        candidates=len(answers) / len(rows) if answers else float(config.sampling.n),
        context_tokens=fmean(tokens(row["context"]) for row in rows),
        chunks=fmean(len(_chunks(row, config)) for row in rows),
        statements=STATEMENTS if statements is None else statements,
    )
    answer = fmean(answers) if answers else ANSWER_TOKENS
    question = fmean(tokens(row["question"]) for row in rows)
    passage = min(result.context_tokens, config.judge.retrieval.top_k * config.judge.retrieval.chunk_tokens)
    weights, m = config.judge.weights, result.candidates
    shapes = {  # kind: (calls a prompt, tokens of the texts in one call)
        "helpfulness": (m if weights.helpfulness else 0, question + answer),
        "logicality": (m if weights.logicality else 0, question + answer),
        "statements": (m if weights.faithfulness else 0, question + answer),
        "support": (m * result.statements if weights.faithfulness else 0, passage + answer / 10),
        "extract": (
            result.chunks if weights.completeness else 0,
            question + result.context_tokens / result.chunks,
        ),
        "completeness": (
            m if weights.completeness else 0,
            question + answer + result.chunks * COMPLETION["extract"],
        ),
    }
    for kind, (calls, texts) in shapes.items():
        fixed = sum(tokens(part) for part in requests.template(kind, "en"))
        result.calls[kind] = calls * len(pointers)
        result.prompt_tokens[kind] = result.calls[kind] * (fixed + texts)
        result.completion_tokens[kind] = result.calls[kind] * COMPLETION[kind]
    result.notes.append(
        f"assumed: {LATENCY:g} s a judge call, "
        + (
            "statements as judged so far"
            if statements is not None
            else f"{STATEMENTS:g} statements an answer"
        )
        + ("" if answers else f", {ANSWER_TOKENS:g} tokens an answer")
    )
    return result


def _chunks(row: Any, config: Config) -> list[Any]:
    measure = chunks.measure(config.judge.tokenizer)
    return chunks.split(row["context"], config.judge.extract_chunk_tokens, measure)


def _known_statements(store: Store) -> float | None:
    for name in store.files("judged")[:1]:
        rows = store.table("judged", name, ["candidates"]).to_pylist()
        return fmean(len(c["statements"] or []) for row in rows for c in row["candidates"])
    return None


def _price(config: Config, result: Forecast) -> None:
    total = {
        "prompt_tokens": sum(result.prompt_tokens.values()),
        "completion_tokens": sum(result.completion_tokens.values()),
    }
    result.money = cost(total, config.judge.prices)
    result.judge_hours = sum(result.calls.values()) * LATENCY / config.judge.concurrency / 3600


def _training(config: Config, result: Forecast) -> None:
    training = config.training
    steps = training.max_steps or math.ceil(training.epochs * result.prompts / training.batch_size)
    result.notes.append(f"training: at most {result.prompts} pairs, {steps} optimizer steps")
    parameters = count_parameters(training.model or config.sampling.model)
    if parameters is None:
        result.notes.append("training memory: unknown, the model is no local folder with safetensors")
        return
    stage = training.deepspeed.get("zero_optimization", {}).get("stage", 0)
    shards = training.num_workers
    # Mixed-precision AdamW (ZeRO, arXiv 1910.02054, section 3.1): 2 bytes of weights, 2 of gradients and
    # 12 of optimizer states a parameter; stages 1, 2 and 3 share out the last, the last two, all.
    parts = (
        12 / (shards if stage >= 1 else 1),
        2 / (shards if stage >= 2 else 1),
        2 / (shards if stage >= 3 else 1),
    )
    gigabytes = parameters * sum(parts) / 2**30
    result.notes.append(
        f"training memory: {gigabytes:.1f} GiB a worker for {parameters / 1e9:.2f}B parameters "
        f"at ZeRO-{stage} over {shards}, activations not counted"
    )


def count_parameters(folder: str) -> int | None:
    """Parameters in a folder's safetensors files, read from their headers alone; None without any."""
    if not os.path.isdir(folder):
        return None
    total = 0
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            with open(os.path.join(folder, name), "rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            header.pop("__metadata__", None)
            total += sum(math.prod(tensor["shape"]) for tensor in header.values())
    return total or None


def render(result: Forecast) -> str:
    """The forecast as text."""
    lines = [
        f"prompts      {result.prompts:>14,}   counted in full: {result.counted:,}",
        f"candidates   {result.candidates:>14,.1f}   a prompt",
        f"context      {result.context_tokens:>14,.0f}   tokens a prompt, {result.chunks:.1f} chunks",
        "",
        f"{'call':<13}{'calls':>14}{'prompt tokens':>18}{'completion tokens':>20}",
    ]
    lines += [
        f"{kind:<13}{result.calls[kind]:>14,.0f}{result.prompt_tokens[kind]:>18,.0f}"
        f"{result.completion_tokens[kind]:>20,.0f}"
        for kind in result.calls
    ]
    sums = [sum(column.values()) for column in (result.calls, result.prompt_tokens, result.completion_tokens)]
    lines += [f"{'all':<13}{sums[0]:>14,.0f}{sums[1]:>18,.0f}{sums[2]:>20,.0f}", ""]
    money = "no prices in judge.prices" if result.money is None else f"{result.money:,.2f}"
    lines += [f"judge money  {money}", f"judge hours  {result.judge_hours:,.2f}", *result.notes]
    return "\n".join(lines)
