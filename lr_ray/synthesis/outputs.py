"""What is made of the synthesized rows: `prompts.jsonl`, `sft.jsonl`, and `synthesis.json`, which counts.

All three follow from `document/` and `synthesized/` alone, and are made anew when those or the settings of
this step change.
"""

import functools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from statistics import fmean
from typing import Any

import orjson

from lr_ray.config import Config
from lr_ray.rows import Asked, Synthesized
from lr_ray.store import Store
from lr_ray.synthesis.filters import duplicates
from lr_ray.synthesis.questions import KEPT, SPARE

PROMPTS, SFT, SUMMARY = "prompts.jsonl", "sft.jsonl", "synthesis.json"
FOLDER = "synthesized"
FILES = 16  # of `synthesized/` in memory at once
CHUNK = 1 << 20  # bytes

Summary = dict[str, Any]


def write(config: Config, store: Store, documents: Summary, contexts: Summary) -> tuple[Summary, bool]:
    """Write the files, unless they are there and made by the same rules of the same rows.

    Args:
        documents, contexts: counts of them, for the summary.

    Returns:
        The summary, and whether it was made now.
    """
    where = store.index(FOLDER)
    rules: dict[str, Any] = {"sft": config.synthesis.sft}
    if config.synthesis.sft:
        rules["prompt_template"] = config.data.prompt_template
    counts = {"documents": documents, "contexts": contexts}
    before = json.loads(store.read(SUMMARY) or b"{}")
    there = all(map(store.exists, [PROMPTS, *[SFT] * config.synthesis.sft]))
    if there and all(before.get(key) == value for key, value in {**counts, "rules": rules}.items()):
        return before, False
    rows = _Rows(store, where)
    twins = _twins(rows, config.synthesis.duplicate)
    summary = {**counts, **_counted(rows, twins), "rules": rules}
    kept = functools.partial(_kept, rows, twins)
    _stream(store, PROMPTS, (_prompt(row, one) for row, one in kept()))
    if config.synthesis.sft:
        template = config.data.prompt_template
        _stream(store, SFT, (_target(row, one, template) for row, one in kept()))
    elif store.exists(SFT):
        store.fs.delete_file(store.path(SFT))
    store.write(json.dumps(summary, indent=2, ensure_ascii=False).encode(), SUMMARY)
    return summary, True


class _Rows:
    """The synthesized rows in order of their ids, which does not depend on when each was made."""

    def __init__(self, store: Store, where: dict[str, tuple[str, int]]) -> None:
        self._store, self._where = store, where
        self._table = functools.lru_cache(FILES)(lambda name: store.table(FOLDER, name))

    def ids(self) -> list[str]:
        return sorted(self._where, key=lambda one: (int(one.rpartition("-")[2]), one))

    def __iter__(self) -> Iterator[Synthesized]:
        for one in self.ids():
            name, row = self._where[one]
            yield self._table(name).slice(row, 1).to_pylist()[0]


def _id(row: Synthesized, one: Asked) -> str:
    return f"{row['prompt_id']}-q{one['number']}"


def _twins(rows: _Rows, share: float) -> set[str]:
    """Kept questions that are nearly those of another context, by their ids."""
    ids, texts = [], []
    for row in rows:
        for one in row["questions"]:
            if one["outcome"] == KEPT:
                ids.append(_id(row, one))
                texts.append(one["question"])
    return {ids[place] for place in duplicates(texts, share)}


def _kept(rows: _Rows, twins: set[str]) -> Iterator[tuple[Synthesized, Asked]]:
    for row in rows:
        for one in row["questions"]:
            if one["outcome"] == KEPT and _id(row, one) not in twins:
                yield row, one


def _counted(rows: _Rows, twins: set[str]) -> Summary:
    """What became of all questions, and what the kept ones are; each question counts once."""
    outcomes, kinds, languages, unwritten = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    several, usage = Counter[str](), Counter[str]()
    tokens: dict[int, list[int]] = {}
    for row in rows:
        usage.update(row["usage"])
        several["several" if len(row["parts"]) > 1 else "one"] += 1
        tokens.setdefault(row["target_tokens"], []).append(row["tokens"])
        if row["unwritten"]:
            unwritten[row["unwritten"]] += 1
        for one in row["questions"]:
            outcome = "duplicate" if _id(row, one) in twins else one["outcome"]
            outcomes[outcome] += 1
            if outcome == KEPT:
                kinds[one["kind"]] += 1
                languages[row["language"]] += 1
    written, kept, spare = outcomes.total(), outcomes.pop(KEPT, 0), outcomes.pop(SPARE, 0)
    return {
        "questions": {
            "written": written,
            "kept": kept,
            "spare": spare,
            "dropped": dict(sorted(outcomes.items())),
            "unwritten": dict(sorted(unwritten.items())),
        },
        "kinds": dict(sorted(kinds.items())),
        "languages": dict(sorted(languages.items())),
        "made_of": dict(sorted(several.items())),
        "lengths": {
            str(length): {
                "contexts": len(found),
                "mean_tokens": round(fmean(found)),
                "under_90_percent": sum(one < 0.9 * length for one in found),
            }
            for length, found in sorted(tokens.items())
        },
        "usage": dict(usage),
    }


def _prompt(row: Synthesized, one: Asked) -> dict[str, Any]:
    return {
        "prompt_id": _id(row, one),
        "context": row["context"],
        "question": one["question"],
        "reference_answer": one["answer"],
        "answerable": one["answerable"],
        "kind": one["kind"],
        "language": row["language"],
        "sources": [{"name": part["name"], "asked": part["asked"]} for part in row["parts"]],
    }


def _target(row: Synthesized, one: Asked, template: str) -> dict[str, Any]:
    slots = {"{context}": row["context"], "{question}": one["question"]}
    # One pass, as `data.to_prompt` does: a context that holds "{question}" must not be filled in its turn.
    content = re.sub(r"\{context\}|\{question\}", lambda slot: slots[slot.group()], template)
    answer = {"role": "assistant", "content": one["answer"]}
    messages = [{"role": "user", "content": content}, answer]
    return {"prompt_id": _id(row, one), "answerable": one["answerable"], "messages": messages}


def _stream(store: Store, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a jsonl file of any size, whole or not at all."""
    # Through a local file: what fails while rows are read must not end an object that is being uploaded.
    with tempfile.TemporaryFile() as file:
        for row in rows:
            file.write(orjson.dumps(row) + b"\n")
        file.seek(0)
        store.write(iter(lambda: file.read(CHUNK), b""), name)
