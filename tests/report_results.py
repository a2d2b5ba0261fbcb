"""What comparisons, agreements, benchmarks and synthesis leave in a run directory, for the report's tests.

Made by the functions that make it in a run, of made-up scores, with hostile text wherever some may come."""

import json
import random
from typing import Any

import orjson

from lr_ray import agreement, compare, config, schemas
from lr_ray.agreement import cases, figures
from lr_ray.agreement.inputs import Item, Label
from lr_ray.benchmark_runs import HELD_OUT
from lr_ray.benchmarks import table, wins
from lr_ray.benchmarks.grades import Given, Graded, given
from lr_ray.config import Config, Weights
from lr_ray.data import Place, Pointer
from lr_ray.judge.together import Missing
from lr_ray.rows import no_usage
from lr_ray.store import Store
from lr_ray.synthesis import outputs
from tests.report_run import HOSTILE, judged
from tests.sampled_row import sampled_row

RUNS = {"longreward": 0.3, "length": 0.02, "random": -0.1, "direct": 0.2}
SEEDS = [0, 1, 2]
PROMPTS = 20


def moved(number: int, name: str, quality: float, answers: int = 2) -> dict[str, Any]:
    """The judged row of a held-out prompt whose answers are this much better than as they come."""
    chance = random.Random(f"{number}/{name}")
    row = judged(number, random.Random(number))
    row["candidates"] = row["candidates"][:answers]
    for candidate in row["candidates"]:
        candidate["text"] = f"[{name}] {candidate['text']}"
        scores = candidate["scores"]
        for dimension, score in scores.items():
            if score is not None:
                scores[dimension] = min(10.0, max(0.0, round(score + 10 * quality + chance.gauss(0, 1))))
        known = [score for score in scores.values() if score is not None]
        candidate["reward"] = sum(known) / 4 if len(known) == 4 else None
    return row


def answered(there: Store, name: str, quality: float, prompts: int) -> None:
    """The folder of one side of an evaluation."""
    rows = [moved(number, name, quality) for number in range(prompts)]
    for start in range(0, prompts, 8):
        there.write_rows("judged", rows[start : start + 8], schemas.JUDGED)
    answers = ("index", "text", "finish_reason")
    sampled = [
        {
            **{key: row[key] for key in ("prompt_id", "context", "question", "reference_answer", "prompt")},
            "candidates": [{key: one[key] for key in answers} for one in row["candidates"]],
            **{"prompt_tokens": 1, "cached_tokens": 0, "truncated": False, "sampled_at": 0.0},
        }
        for row in rows
    ]
    there.write_rows("sampled", sampled, schemas.SAMPLED)


def comparison(store: Store, prompts: int = PROMPTS) -> Config:
    """compare.json and the evaluations that it is made of."""
    runs = {name: {"pairs.reward": name, "pairs.margin": HOSTILE} for name in RUNS}
    sections: dict[str, Any] = {"runs": runs, "seeds": SEEDS, "against": "longreward"}
    ids = (judged(number, random.Random(number))["prompt_id"] for number in range(prompts))
    rows = (json.dumps({"prompt_id": one, "context": "C.", "question": "Q?"}) + "\n" for one in ids)
    store.write("".join(rows).encode(), "held_out.jsonl")
    evaluation = {"prompts": [f"{store.url}/held_out.jsonl"]}
    made = Config.model_validate({"run_dir": store.url, "compare": sections, "evaluation": evaluation})
    # The margin is text to be hostile, which a config would refuse.
    plain = {name: {"pairs.reward": name} for name in RUNS}
    asked = made.model_copy(update={"compare": made.compare.model_copy(update={"runs": plain})})
    answered(store.sub("evaluation", "before"), "before", 0.0, prompts)
    for name, quality in RUNS.items():
        for seed in SEEDS:
            there = store.sub("compare", f"{name}-seed{seed}")
            answered(there.sub("evaluation", "after"), f"{name} {seed}", quality + 0.02 * seed, prompts)
            audit = {"prompts": 40, "pairs": 37, "dropped": {"a tie": 3}}
            there.write(json.dumps(audit).encode(), "pairs.json")
            there.write(b'{"step": 45, "rows": 37}\n', "metrics.jsonl")
    result = compare.written(asked, {f"truth {HOSTILE}"[:90]: lambda _, text: len(text) % 7 / 7})
    for run in result["runs"]:
        run["changes"]["pairs.margin"] = HOSTILE
    store.write(json.dumps(result).encode(), "compare.json")
    return asked


def labelled(store: Store, pairs: int = 30) -> dict[str, Any]:
    """agreement.json, the outcomes, and the judged answers."""
    chance = random.Random(5)
    there = store.sub("agreement")
    items, judging, again, said = [], {}, {}, {}
    rows = []
    for number in range(pairs):
        row = judged(number, random.Random(number))
        row["candidates"] = row["candidates"][:2]
        rows.append(row)
        name = row["prompt_id"]
        tokens = chance.choice([2000, 6000, 12_000, 40_000, 200_000])
        subset = chance.choice(["plain", f"hostile {HOSTILE}"])
        better = 0 if (row["candidates"][0]["reward"] or 0) > (row["candidates"][1]["reward"] or 0) else 1
        if chance.random() < 0.25:
            better = 1 - better
        lengths = [len(one["text"]) for one in row["candidates"]]
        pointer = Pointer(name, Place("f", -1, 0, 0, 1), [])
        label = Label([better], [1 - better], subset)
        items.append(Item(pointer, number % 7 == 0, tokens, lengths, [f"{name}0", f"{name}1"], [label]))
        judging[name] = [{**one, "repeats": []} for one in row["candidates"]]
        again[name] = [{**one, "repeats": []} for one in judged(number, chance)["candidates"][:2]]
        said[name] = {(0, 1): chance.choice(["first", "second"]), (1, 0): "first"}
    for start in range(0, pairs, 8):
        there.write_rows("judged", rows[start : start + 8], schemas.JUDGED)
    found = list(cases.cases(items, [judging, again], said, Weights()))
    other = {case.key: case.item.hashes[0] for case in found}
    result = {
        "judge": f"judge {HOSTILE}",
        **figures.figures(found, said, other),
        **{"unlabelled": 2, "failed": 1, "other": f"runs/{HOSTILE}", "seed": 0},
    }
    there.write(
        b"".join(orjson.dumps(agreement._line(case), option=orjson.OPT_APPEND_NEWLINE) for case in found),
        "outcomes.jsonl",
    )
    store.write(orjson.dumps(result), "agreement.json")
    return result


def graded(unit: str, label: str, groups: list[str], *grades: Given) -> Graded:
    row = {"prompt_id": unit, "unit": unit, "benchmark": label, "groups": groups, "grades": list(grades)}
    return {**row, "usage": no_usage(), "graded_at": 0.0}  # type: ignore[typeddict-item]


def benchmarks(store: Store) -> dict[str, Any]:
    """evaluation.json with benchmarks, on top of the one that is there."""
    chance = random.Random(8)
    written = json.loads(store.read("evaluation.json") or b"")

    def needles(right: float) -> list[Graded]:
        return [
            graded(f"r{size}/{task}/{n}", "ruler", [task, f"{size} tokens"], _found(chance, right, size))
            for size in (4096, 8192, 16384, 32768, 65536)
            for task in ("single", "multi_key")
            for n in range(8)
        ]

    def chat(quality: float) -> list[Graded]:
        return [
            graded(f"c{n}", "chat", [f"type {n % 2} {HOSTILE}"], _rated(chance, quality, n))
            for n in range(40)
        ]

    def sets(quality: float) -> list[Graded]:
        return [
            graded(f"s{name}{n}", "longbench", [name], given(0, "score", 100 * chance.random() * quality))
            for name in ("qasper", "musique", "gov_report")
            for n in range(10)
        ]

    duels = []
    for number in range(PROMPTS):
        name = judged(number, random.Random(number))["prompt_id"]
        value = chance.choice([100.0, 100.0, 50.0, 0.0])
        grades = [
            given(0, wins.WIN, value, length=chance.gauss(30, 90), analysis=f"One is whole. {HOSTILE}"),
            given(0, wins.FLIPPED, 100.0 * (value == 50)),
        ]
        duels.append(graded(name, HELD_OUT, [], *grades))
    store.sub("evaluation", "wins").write_rows("graded", [dict(row) for row in duels], schemas.GRADED)
    sides = {"ruler": (needles(0.6), needles(0.8)), "chat": (chat(0.5), chat(0.7))}
    kinds = {"ruler": "ruler", "chat": "longbench_chat", "longbench": "longbench"}
    sides["longbench"] = (sets(0.6), sets(0.7))
    for label, (before, after) in sides.items():
        written["table"] += table.rows(kinds[label], label, before, after)
        written["benchmarks"] = written.get("benchmarks", {}) | {
            label: {
                "kind": kinds[label],
                "cases": len(before),
                "truncated": {"before": 2, "after": 2},
                "failed": {"before": 0, "after": 1},
                "unscored": {"before": table.unscored(before), "after": table.unscored(after)},
            }
        }
    written["table"] += table.duels(HELD_OUT, duels)
    written["benchmarks"][HELD_OUT] = {
        "comparisons": {"unscored": table.unscored(duels), "the order decided": table.order_decided(duels)}
    }
    written["failed"] = {"before": 0, "after": 1}
    store.write(json.dumps(written).encode(), "evaluation.json")
    return written


def tried(store: Store) -> None:
    """Answers of both sides to cases of two benchmarks, and the judge's grades of one of them."""
    for side in ("before", "after"):
        there = store.sub("evaluation", f"benchmarks_{side}")
        ids = [f"{label}/{number}-abc" for label in ("chat", "ruler") for number in range(5)]
        answer = f"{side} says {HOSTILE}"
        rows = [dict(sampled_row(one, f"C. {HOSTILE}", f"Q? {HOSTILE}", [answer])) for one in ids]
        there.write_rows("sampled", rows, schemas.SAMPLED)
        grade = given(0, "score", 70.0, analysis=f"Because. {HOSTILE}")
        lost = given(0, "other", Missing(f"no answer {HOSTILE}"))
        marks = [dict(graded(one, "chat", [], grade, lost)) for one in ids[:5]]
        there.write_rows("graded", marks, schemas.GRADED)


def _found(chance: random.Random, right: float, size: int) -> Given:
    return given(0, "found", 100.0 * (chance.random() < right - size / 200_000))


def _rated(chance: random.Random, quality: float, number: int) -> Given:
    if number % 9 == 0:
        return given(0, "score", Missing(f"no valid answer in 5 attempts {HOSTILE}"))
    return given(0, "score", 100 * min(1.0, max(0.0, chance.gauss(quality, 0.2))))


def synthesis(store: Store) -> dict[str, Any]:
    """synthesis.json."""
    chance = random.Random(2)
    outcomes = ["kept", "kept", "spare", "context_free", "unanswerable", "disputed", f"odd {HOSTILE}"]
    kinds = ["fact", "summary", "reasoning", f"kind {HOSTILE}"]
    rows = []
    for number in range(30):
        length = chance.choice([8192, 16384, 32768])
        questions = [
            {
                **{
                    "number": n,
                    "kind": chance.choice(kinds),
                    "question": f"What of {number} and {n}, {chance.random()}?",
                },
                **{"reference": "It.", "answerable": True, "answer": "It.", "reason": None},
                "outcome": chance.choice(outcomes),
            }
            for n in range(4)
        ]
        part = {"name": "a.txt", "asked": True, "start": 0, "end": 1}
        rows.append(
            {
                **{"prompt_id": f"s-{number}", "language": chance.choice(["en", "zh"]), "context": "C."},
                **{"target_tokens": length, "tokens": int(length * chance.uniform(0.7, 1.0)), "gaps": 0},
                **{"parts": [part] * chance.choice([1, 3]), "questions": questions},
                **{"unwritten": f"broken {HOSTILE}" if number == 3 else None, "usage": no_usage()},
            }
        )
    store.write_rows("synthesized", rows, schemas.SYNTHESIZED)
    documents = {"files": 41, "other_files": 2, "documents": 50, "used": 44}
    dropped = {"no text": 4, f"not readable: {HOSTILE}": 2}
    contexts = {"asked_for": 31, "failed": 1, "made_of_several_because_no_document_is_long_enough": 3}
    asked = config.Config(run_dir=store.url)
    return outputs.write(asked, store, {**documents, "dropped": dropped}, contexts)[0]


def everything(store: Store) -> None:
    """All of it, on top of the run that is there."""
    comparison(store, PROMPTS)
    answered(store.sub("evaluation", "after"), "after", 0.25, PROMPTS)
    benchmarks(store)
    tried(store)
    labelled(store)
    synthesis(store)
