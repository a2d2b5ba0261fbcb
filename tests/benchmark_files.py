"""Tiny files in the published formats of every benchmark that is read from files."""

import json
from pathlib import Path
from typing import Any

DOCUMENT = "The old mill stands near the river. Mira keeps copper. Toben keeps salt. A cold wind blows. " * 3
LETTERS = "ABCD"


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def listed(path: Path, rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return path


def longbench_chat(folder: Path, count: int = 3) -> Path:
    cases = [
        {
            "idx": number,
            "prompt": f"{DOCUMENT}\n\nWhat does Mira keep, case {number}?",
            "query": f"What does Mira keep, case {number}?",
            "answer": "Mira keeps copper.",
        }
        for number in range(1, count + 1)
    ]
    shots = [[{"answer": f"Example {k} of {n}.", "score": k} for k in (3, 6, 9)] for n in range(1, count + 1)]
    listed(folder / "few_shots.json", shots)
    listed(folder / "test_cases.json", cases)
    return folder


def longbench_row(name: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "input": f"What does Mira keep, {number}?",
        "context": DOCUMENT,
        "answers": ["Mira keeps copper.", "copper"],
        "length": 60,
        "dataset": name,
        "language": "en",
        "all_classes": None,
        "_id": f"{name}{number}",
        **more,
    }


def longbench(folder: Path, names: list[str], count: int = 2) -> Path:
    for name in names:
        asked = {"input": ""} if name in ("gov_report", "multi_news", "vcsum") else {}
        rows = [longbench_row(name, number, **asked) for number in range(count)]
        lines(folder / f"{name}.jsonl", rows)
    return folder


def longbench_v2(path: Path, count: int = 4) -> Path:
    rows = [
        {
            "_id": f"v{number}",
            "domain": "Single-Document QA",
            "sub_domain": "Literary",
            "difficulty": "easy" if number % 2 else "hard",
            "length": "short" if number < 2 else "long",
            "question": f"What does Mira keep, {number}?",
            **{f"choice_{letter}": f"{letter.lower()} thing" for letter in LETTERS},
            "answer": LETTERS[number % 4],
            "context": DOCUMENT,
        }
        for number in range(count)
    ]
    return listed(path, rows)


def mt_bench(path: Path) -> Path:
    return lines(
        path,
        [
            {
                "question_id": 81,
                "category": "writing",
                "turns": ["Tell me of Mira.", "Now say it shorter."],
            },
            {
                "question_id": 101,
                "category": "math",
                "turns": ["What is 2 + 3?", "And twice that?"],
                "reference": ["5", "10"],
            },
        ],
    )


def alpaca(path: Path) -> Path:
    rows = [
        {
            "dataset": "helpful_base",
            "instruction": f"Say what Mira keeps, case {number}.",
            "output": "Mira keeps copper." if number else "No idea.",
            "generator": "someone",
        }
        for number in range(2)
    ]
    return listed(path, rows)


def ifeval(path: Path) -> Path:
    return lines(
        path,
        [
            {
                "key": 1000,
                "prompt": "Say something without a comma, in fewer than 10 words.",
                "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
                "kwargs": [{}, {"relation": "less than", "num_words": 10, "num_sentences": None}],
            },
            {
                "key": 1001,
                "prompt": "Answer as told.",
                "instruction_id_list": ["punctuation:no_comma", "made:up"],
                "kwargs": [{}, {}],
            },
        ],
    )


def prompts(path: Path) -> Path:
    return lines(
        path,
        [{"prompt_id": f"f{n}", "context": DOCUMENT, "question": f"Who keeps what, {n}?"} for n in range(2)],
    )
