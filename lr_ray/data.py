"""Prompts and candidates in: every format, checked whole before anything is paid.

`scan` reads each input file once on the driver, refuses bad input in one sentence that names file and
row, and keeps a pointer a row (file, place, length), not the row. Resume is then a set difference over
ids, and a task anywhere loads one row by its pointer.
"""

import hashlib
import itertools
import re
from typing import Any, NamedTuple

from lr_ray.rowfiles import Place, Raw, files, kind_of, row_at, rows
from lr_ray.rows import Candidate, Message, Prompt, Sampled

__all__ = [
    "Place",
    "Pointer",
    "Raw",
    "answers",
    "answers_at",
    "files",
    "load",
    "row_at",
    "rows",
    "scan",
    "to_candidates",
    "to_messages",
    "to_prompt",
]


class Pointer(NamedTuple):
    """One prompt: the place of its row and, where candidates come from files, theirs."""

    prompt_id: str
    prompt: Place
    candidates: list[Place]


def scan(patterns: list[str], candidates: list[str] | None = None) -> list[Pointer]:
    """A pointer a prompt, in input order; with `candidates`, only prompts that have some.

    Prompts on one document follow the first of them, so that engines and judge find its prefix cached.

    Args:
        patterns: files, folders or globs of prompts; may be empty if candidate rows carry the prompt.
        candidates: files of answers sampled elsewhere.

    Raises:
        ValueError: one sentence naming the file, the row and the fault.
    """
    prompts: dict[str, Place] = {}
    documents: dict[str, bytes] = {}
    for place, raw in rows(patterns):
        prompt_id = _prompt_id(raw, place)
        if prompt_id in prompts:
            raise ValueError(f"{place}: prompt_id {prompt_id!r} is there already, at {prompts[prompt_id]}")
        documents[prompt_id] = _document(to_prompt(raw, place))
        prompts[prompt_id] = place
    if not candidates:
        if not prompts:
            raise ValueError(f"{', '.join(patterns) or 'data.prompts'}: no prompts in there")
        return _neighbours([Pointer(prompt_id, place, []) for prompt_id, place in prompts.items()], documents)
    grouped: dict[str, list[Place]] = {}
    for place, raw in rows(candidates):
        prompt_id, _ = _candidate_ids(raw, place)
        if prompt_id not in prompts:
            if "context" not in raw:
                raise ValueError(
                    f"{place}: no prompt {prompt_id!r} in data.prompts, and no context in the row"
                )
            documents[prompt_id] = _document(to_prompt(raw, place, prompt_id))
            prompts[prompt_id] = place
        to_candidates(raw, place)
        grouped.setdefault(prompt_id, []).append(place)
    if not grouped:
        raise ValueError(f"{', '.join(candidates)}: no candidates in there")
    pointers = [Pointer(prompt_id, prompts[prompt_id], places) for prompt_id, places in grouped.items()]
    for pointer in pointers:
        _gather(pointer, {})
    return _neighbours(pointers, documents)


def answers(patterns: list[str]) -> dict[str, Pointer]:
    """Where the answers to each prompt lie, for prompts that are known otherwise; `answers_at` reads them.

    Raises:
        ValueError: one sentence naming the file, the row and the fault.
    """
    grouped: dict[str, list[Place]] = {}
    for place, raw in rows(patterns):
        to_candidates(raw, place)
        grouped.setdefault(_candidate_ids(raw, place)[0], []).append(place)
    if not grouped:
        raise ValueError(f"{', '.join(patterns)}: no candidates in there")
    found = {prompt_id: Pointer(prompt_id, places[0], places) for prompt_id, places in grouped.items()}
    for pointer in found.values():
        answers_at(pointer)
    return found


def answers_at(pointer: Pointer) -> list[Candidate]:
    """The candidates behind a pointer of `answers`, by index."""
    return _gather(pointer, {})


def _document(prompt: Prompt) -> bytes:
    return hashlib.blake2b(prompt["context"].encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _neighbours(pointers: list[Pointer], documents: dict[str, bytes]) -> list[Pointer]:
    first: dict[bytes, int] = {}
    for pointer in pointers:
        first.setdefault(documents[pointer.prompt_id], len(first))
    return sorted(pointers, key=lambda pointer: first[documents[pointer.prompt_id]])


def load(pointer: Pointer, template: str) -> Prompt | Sampled:
    """The row at `pointer`: a prompt, or with candidates a sampled row.

    Raises:
        ValueError: the file is not what it was when it was scanned.
    """
    raw = row_at(pointer.prompt)
    prompt = to_prompt(raw, pointer.prompt, pointer.prompt_id, template)
    if not pointer.candidates:
        return prompt
    return Sampled(
        **prompt,
        candidates=_gather(pointer, {pointer.prompt: raw}),
        prompt_tokens=-1,
        cached_tokens=-1,
        truncated=False,
        sampled_at=0.0,
    )


def to_prompt(
    raw: Raw, place: Place, prompt_id: str | None = None, template: str = "{context}\n\n{question}"
) -> Prompt:
    """A prompt row from ours, the authors' (`idx`, `query`, `answer`) or a `messages` row.

    Of `messages` the last must be the user's. Without `question` beside them, its last paragraph is the
    question; without `context`, everything before that is the context.

    Raises:
        ValueError: a field is missing, empty or of the wrong type.
    """
    prompt_id = prompt_id or _prompt_id(raw, place)
    reference = raw.get("reference_answer", raw.get("answer") if "candidates" not in raw else None)
    if reference is not None and not isinstance(reference, str):
        raise ValueError(f"{place}: reference_answer is a {kind_of(reference)}, not text")
    prompt: list[Message] = []
    if "messages" in raw:
        messages = to_messages(raw["messages"], place)
        if messages[-1]["role"] != "user":
            raise ValueError(f"{place}: the last of messages is the {messages[-1]['role']}'s, not the user's")
        before, _, last = messages[-1]["content"].rpartition("\n\n")
        earlier = "\n\n".join(m["content"] for m in messages[:-1])
        question = raw.get("question", last)
        context = raw.get("context", "\n\n".join(filter(None, (earlier, before))))
        if not context:
            raise ValueError(
                f"{place}: no blank line in messages parts the context from the question: put one before the "
                "question, or give context beside messages"
            )
        prompt = messages
    else:
        context, question = raw.get("context"), raw.get("question", raw.get("query"))
    context, question = _text(context, "context", place), _text(question, "question", place)
    if not prompt:
        slots = {"{context}": context, "{question}": question}
        # One pass: a context that holds "{question}" must not be filled in its turn.
        content = re.sub(r"\{context\}|\{question\}", lambda slot: slots[slot.group()], template)
        prompt = [{"role": "user", "content": content}]
    return {
        "prompt_id": prompt_id,
        "context": context,
        "question": question,
        "reference_answer": reference,
        "prompt": prompt,
    }


def to_messages(value: Any, place: object) -> list[Message]:
    """Checked chat messages.

    Raises:
        ValueError: not a non-empty list of {role, content} with known roles and text.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"{place}: messages is not a list with at least one message")
    for message in value:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"{place}: a message needs a role (system, user or assistant) and a content")
        _text(message.get("content"), "content of a message", place)
    return [{"role": m["role"], "content": m["content"]} for m in value]


def to_candidates(raw: Raw, place: Place) -> list[Candidate]:
    """The candidates a row holds: ours nested in it, or the authors' one a row.

    Raises:
        ValueError: no candidates, or one that is not text.
    """
    _, index = _candidate_ids(raw, place)
    if index is not None:
        answer = raw.get("answer")
        if not isinstance(answer, str):
            raise ValueError(f"{place}: answer is a {kind_of(answer)}, not text")
        return [{"index": index, "text": answer, "finish_reason": None}]
    found: list[Candidate] = []
    entries = raw.get("candidates")
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{place}: candidates is not a list with at least one answer")
    for position, entry in enumerate(entries):
        text = entry.get("text") if isinstance(entry, dict) else entry
        index = entry.get("index", position) if isinstance(entry, dict) else position
        if not isinstance(text, str) or not isinstance(index, int) or isinstance(index, bool):
            raise ValueError(f"{place}: candidate {position} has no text, or an index that is no integer")
        found.append({"index": index, "text": text, "finish_reason": None})
    return found


def _gather(pointer: Pointer, read: dict[Place, Raw]) -> list[Candidate]:
    raws = [(place, read.get(place) or row_at(place)) for place in pointer.candidates]
    found = [candidate for place, raw in raws for candidate in to_candidates(raw, place)]
    found.sort(key=lambda candidate: candidate["index"])
    for one, other in itertools.pairwise(found):
        if one["index"] == other["index"]:
            where = pointer.candidates[-1]
            raise ValueError(f"{where}: prompt {pointer.prompt_id!r} has candidate {one['index']} twice")
    return found


def _prompt_id(raw: Raw, place: Place) -> str:
    value = raw.get("prompt_id", raw.get("idx"))
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        kind = "number with a fraction or of over 64 bits" if isinstance(value, float) else kind_of(value)
        raise ValueError(f"{place}: prompt_id (or idx) is a {kind}, not text or an integer")
    return str(value)


def _candidate_ids(raw: Raw, place: Place) -> tuple[str, int | None]:
    """The prompt's id, and the candidate's index where the row is one candidate in the authors' format."""
    prompt_id = _prompt_id(raw, place)
    if "candidates" in raw:
        return prompt_id, None
    found = re.fullmatch(r"(.+)-(\d+)", prompt_id)
    if not found:
        raise ValueError(f"{place}: no candidates, and idx {prompt_id!r} is not of the form prompt-candidate")
    return found[1], int(found[2])


def _text(value: Any, name: str, place: object) -> str:
    if value is None:
        raise ValueError(f"{place}: no {name}")
    if not isinstance(value, str):
        raise ValueError(f"{place}: {name} is a {kind_of(value)}, not text")
    if not value.strip():
        raise ValueError(f"{place}: {name} is empty")
    return value
