"""LongBench-Chat, LongBench's question answering and summaries, and LongBench v2, from their files."""

import re
from collections.abc import Iterator
from typing import Any

from lr_ray.benchmarks import files
from lr_ray.benchmarks.case import Case, Example
from lr_ray.config import Benchmark

CHAT_SOURCE = (
    "LongBench-Chat's test_cases.json, with few_shots.json beside it, is in THUDM/LongReward on GitHub "
    "(evaluation/LongBench_Chat)"
)
SOURCE = "LongBench's data.zip is in the data set THUDM/LongBench on the Hugging Face hub"
V2_SOURCE = "LongBench v2's data.json is in the data set THUDM/LongBench-v2 on the Hugging Face hub"
SINGLE, SEVERAL, SUMMARY = "single-document QA", "multi-document QA", "summaries"
SETS = {
    **dict.fromkeys(("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"), SINGLE),
    **dict.fromkeys(("hotpotqa", "2wikimqa", "musique", "dureader"), SEVERAL),
    **dict.fromkeys(("gov_report", "qmsum", "multi_news", "vcsum"), SUMMARY),
}
"""The 12 data sets that a judge can grade, as the authors use them, and their classes."""
REQUESTS = {
    "gov_report": "Summarise the report above on about one page.",
    "multi_news": "Summarise all the news articles above on about one page.",
    "vcsum": "请总结以上会议记录的主要内容。",
}
"""Of the sets whose cases carry no question, in our own words."""
LETTERS = "ABCD"
FORM = "Explain briefly if you need to, then end with a line of its own: Answer: followed by the letter."
# A statement of the final answer; a letter that merely occurs in the text is none. What stands between its
# parts is bounded: unbounded runs of the same signs next to each other take time in their length's square.
_OPEN, _CLOSE = r"[*_`\"'“(（\[\s]{0,20}", r"[*_`\"'”)）\].\s]{0,20}"
# "A" before a word may be the article: "Answer: A decrease in salt" states no choice, "A because" does.
_ARTICLE = r"(?![ \t](?!(?:or|and|because|since|as|is|but|for|given|while|which|not)\b)[a-z])"
_LETTER = rf"(A{_ARTICLE}(?![A-Za-z0-9])|[B-D](?![A-Za-z0-9]))"
_STATED = re.compile(
    r"(?:(?i:answer|choice|option)[*_]{0,8}\s{0,8}(?i:is|:|：)[*_]{0,8}\s{0,8}(?i:option\s{0,8}|choice\s{0,8})?"
    rf"|(?:答案|选项)\s{{0,8}}(?:是|为|应选|选|:|：){{0,4}}){_OPEN}{_LETTER}"
    rf"(?:{_CLOSE}(?i:or|and|/|,|或|和|、){_OPEN}{_LETTER})?"
)
_ALONE = re.compile(r"[\s*_`\"'“”(（\[]*([A-D])(?![A-Za-z0-9])[\s*_`\"'“”)）\].:：]*")
_LED = re.compile(r"[\s*_`(（\[]*([A-D])(?:[)）\].:：]|\*\*)\s*\S")


def chat(benchmark: Benchmark) -> Iterator[Case]:
    """LongBench-Chat: `idx, prompt, query, answer`, and up to three scored example answers a case."""
    url = files.within(benchmark.path, "test_cases.json", "test_cases.jsonl")
    shots = url.rpartition("/")[0] + "/few_shots.json"
    if not files.exists(shots):
        raise ValueError(f"{shots}: no such file; {CHAT_SOURCE}")
    scored = files.parse(shots)
    if not isinstance(scored, list):
        raise ValueError(f"{shots}: a {type(scored).__name__}, not a JSON list")
    for row in files.spread(files.rows(url, CHAT_SOURCE), benchmark.limit):
        number, query, prompt = row.raw.get("idx"), row.text("query"), row.text("prompt")
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{row.place}: idx is no integer")
        of_case = scored[number - 1] if 1 <= number <= len(scored) else []
        context = prompt.strip().removesuffix(query.strip()).strip() or prompt
        yield Case(
            key=str(number),
            # The whole prompt is published, so it is asked as it is.
            prompt={
                "messages": [{"role": "user", "content": prompt}],
                "context": context,
                "question": query,
            },
            grade="chat",
            question=query,
            references=[row.text("answer")],
            examples=_examples(of_case, f"{shots}: case {number}"),
        )


def _examples(scored: Any, place: str) -> list[Example]:
    if not isinstance(scored, list):
        raise ValueError(f"{place}: no list of scored answers")
    rows = [files.Row(place, one if isinstance(one, dict) else {}) for one in scored]
    return [{"answer": row.text("answer"), "score": row.text("score")} for row in rows]


def sets(benchmark: Benchmark) -> Iterator[Case]:
    """LongBench: SET.jsonl with `input, context, answers, _id`; question answering and summaries."""
    for name in benchmark.tasks or SETS:
        if name not in SETS:
            raise ValueError(f"evaluation.benchmarks: {benchmark.label}: {name} is none of {', '.join(SETS)}")
        url = f"{benchmark.path.rstrip('/')}/{name}.jsonl"
        for number, row in enumerate(files.spread(files.rows(url, SOURCE), benchmark.limit)):
            asked = str(row.raw.get("input") or "").strip() or REQUESTS.get(name, "")
            if not asked:
                raise ValueError(f"{row.place}: input is empty, and {name} needs a question")
            yield Case(
                key=f"{name}/{row.raw.get('_id') or number}",
                prompt={"context": row.text("context"), "question": asked},
                grade="summary" if SETS[name] == SUMMARY else "answer",
                question=asked,
                groups=[name],
                references=row.texts("answers"),
            )


def choices(benchmark: Benchmark) -> Iterator[Case]:
    """LongBench v2: `context, question, choice_A` to `choice_D, answer`, with difficulty and length class."""
    url = files.within(benchmark.path, "data.json", "data.jsonl")
    rows = [
        row
        for row in files.rows(url, V2_SOURCE)
        if not benchmark.lengths or row.raw.get("length") in benchmark.lengths
    ]
    for row in files.spread(rows, benchmark.limit):
        correct = row.text("answer").strip().upper()
        if correct not in tuple(LETTERS):
            raise ValueError(f"{row.place}: answer is {correct[:20]!r}, none of A, B, C, D")
        listed = "\n".join(f"{letter}. {row.text(f'choice_{letter}').strip()}" for letter in LETTERS)
        asked = f"{row.text('question').strip()}\n\n{listed}\n\n{FORM}"
        yield Case(
            key=row.text("_id"),
            prompt={"context": row.text("context"), "question": asked},
            grade="choice",
            question=asked,
            groups=[str(row.raw[name]) for name in ("difficulty", "length") if row.raw.get(name)],
            references=[correct],
        )


def chosen(answer: str) -> str | None:
    """The letter that an answer states as its choice; None where it states none, or several.

    It counts as stated after "answer:" or "answer is" (答案), or alone on the first or the last line, or
    where the whole answer begins with it, as in "B) Because".
    """
    stated = {letter for pair in _STATED.findall(answer) for letter in pair if letter}
    if not stated:
        lines = [line for line in answer.splitlines() if line.strip()]
        alone = (_ALONE.fullmatch(line) for line in (lines[:1] + lines[-1:]))
        stated = {match[1] for match in alone if match}
    if not stated:
        led = _LED.match(answer)
        stated = {led[1]} if led else set()
    return stated.pop() if len(stated) == 1 else None
