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
_OPEN = r"(?:[*_`\"'“(（\[{$\s]|\\[(\[]|\\[a-z]{2,8}\{){0,20}"
_CLOSE = r"[*_`\"'”)）\]}$\\.\s]{0,20}"
# "A" before a word may be the article: "Answer: A decrease in salt" states no choice, "A because" does.
_ARTICLE = r"(?![ \t](?!(?:or|and|because|since|as|is|but|for|given|while|which|not)\b)[a-z])"
_END = r"(?![A-Za-z0-9+#]|-[A-Za-z])"
_LETTER = rf"(A{_ARTICLE}{_END}|[B-D]{_END})"
_IS = r"is|(?:should|must|would|will|has\sto)\sbe|(?:seems|appears)\sto\sbe"
_SURELY = "(?:most|very)\\s{1,8}likely|likely|probably|therefore|thus|hence|then|clearly|definitely|indeed"
_STATED = re.compile(
    rf"(?:(?i:answer|choice|option)[*_]{{0,8}}\s{{0,8}}(?:(?i:{_IS})\b|[:：–—-])(?:\s{{1,8}}(?i:{_SURELY})\b)?"
    rf"[*_]{{0,8}}\s{{0,8}}[:：]?[*_]{{0,8}}\s{{0,8}}(?i:(?:option|choice|letter)\b\s{{0,8}})?"
    r"|\\boxed\{"
    rf"|(?:答案|选项)\s{{0,8}}(?:应该|应|是|为|选|:|：){{1,4}}|答案\s{{0,8}}){_OPEN}{_LETTER}"
    rf"(?:{_CLOSE}(?i:or|and|/|,|或|和|、){_OPEN}{_LETTER})?"
)
# "Option B is correct", where a sentence begins, so that none who asks or doubts whether it is states it.
_CALLED = re.compile(
    rf"(?:^(?!\n)|[.!?:;]\s{{1,8}}|\b(?i:so|and|but|thus|hence|therefore),?\s{{1,8}})[#>*_\s-]{{0,8}}"
    rf"(?:(?i:(?:option|choice|answer|letter)\s{{1,8}}){_OPEN}|{_OPEN}){_LETTER}{_CLOSE}"
    r"(?i:is\s{1,8}(?:also\s{1,8})?(?:the\s{1,8})?(?:most\s{1,8})?(?:correct|right|best)\b)"
    rf"|选项\s{{0,8}}{_OPEN}{_LETTER}{_CLOSE}[是为]{{0,2}}(?:正确|对的|最佳|最合适)",
    re.MULTILINE,
)
_ALONE = re.compile(r"[\s*_`\"'“”(（\[$]*([A-D])(?![A-Za-z0-9])[\s*_`\"'“”)）\].:：$]*")
_LED = re.compile(r"[\s*_`(（\[]*([A-D])(?:[)）\].:：]|\*\*)\s*\S")
_HEADING = re.compile(
    r"^[#*_ ]{0,16}(?:(?:the|my|final|correct)[ ]){0,3}answer[*_:： ]{0,8}$", re.IGNORECASE | re.MULTILINE
)


def chat(benchmark: Benchmark) -> Iterator[Case]:
    """LongBench-Chat: `idx, prompt, query, answer`, and up to three scored example answers a case."""
    url = files.within(benchmark.path, "test_cases.json", "test_cases.jsonl")
    shots = files.beside(url, "few_shots.json")
    if not files.exists(shots):
        raise ValueError(f"{shots}: no such file; {CHAT_SOURCE}")
    scored = files.parse(shots)
    if not isinstance(scored, list):
        raise ValueError(f"{shots}: a {type(scored).__name__}, not a JSON list")
    for row in files.spread(files.rows(url, CHAT_SOURCE), benchmark.limit):
        number, query, prompt = row.raw.get("idx"), row.text("query"), row.text("prompt")
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{row.place}: idx is no integer")
        if not 1 <= number <= len(scored):
            raise ValueError(f"{shots}: no scored answers for case {number}")
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
            examples=_examples(scored[number - 1], f"{shots}: case {number}"),
        )


def _examples(scored: Any, place: str) -> list[Example]:
    if not isinstance(scored, list):
        raise ValueError(f"{place}: no list of scored answers")
    rows = [files.Row(place, one if isinstance(one, dict) else {}) for one in scored]
    return [{"answer": row.text("answer"), "score": row.number("score")} for row in rows]


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
                references=_answers(row),
            )


def _answers(row: files.Row) -> list[str]:
    found = [text for text in row.texts("answers") if text.strip()]
    if not found:
        raise ValueError(f"{row.place}: answers are empty")
    return found


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

    It counts as stated after "answer:", "answer is" and their like (答案) or in \\boxed{}; where that is not
    there, in "option B is correct"; then alone on the first or the last line; then where the whole answer,
    or what follows a heading "Answer", begins with it, as in "B) Because".
    """
    for letters in (_said(_STATED, answer), _said(_CALLED, answer), _alone(answer), _led(answer)):
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return None


def _said(pattern: re.Pattern[str], answer: str) -> set[str]:
    return {letter for letters in pattern.findall(answer) for letter in letters if letter}


def _alone(answer: str) -> set[str]:
    lines = [line for line in answer.splitlines() if line.strip()]
    return {match[1] for line in lines[:1] + lines[-1:] if (match := _ALONE.fullmatch(line))}


def _led(answer: str) -> set[str]:
    starts = [0, *(heading.end() for heading in _HEADING.finditer(answer))]
    return {match[1] for start in starts if (match := _LED.match(answer, start))}
