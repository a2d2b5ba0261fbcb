"""Labelled pairs in: answers to one question of which people, or a construction, say which are better.

Read are ours (`prompt_id, context, question, chosen, rejected`), the authors' (`win_response`,
`lose_response`), TRL's conversational form (as in our pairs/), RewardBench and RewardBench 2 (`prompt`, one
or several `chosen` and `rejected`) and Long-RewardBench (`prompt_template`, with `chosen` and `rejected` or
a ranking in `candidates`). Everything is checked before anything is paid.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lr_ray import data
from lr_ray.config import Config
from lr_ray.data import Place, Raw
from lr_ray.judge import attacks
from lr_ray.store import Store

FOLDER = "agreement"
OUTCOMES = "outcomes.jsonl"
CONTEXTLESS = ("helpfulness", "logicality")
"""The dimensions that see no document, and so can be judged where there is none."""
ATTACKS = "the attack set"

Where = Place | Raw
"""Of a row in a file its place; rows of the attack set are small, and are what they are."""


class Pair(NamedTuple):
    """Answers of which each chosen one is better than each rejected one; `context` None: there is none."""

    prompt_id: str
    context: str | None
    question: str
    chosen: list[str]
    rejected: list[str]
    subset: str


@dataclass
class Labels:
    """Where the pairs of each prompt lie, prompts on one document next to each other.

    `unlabelled` counts rows whose label does not tell the answers apart.
    """

    places: dict[str, list[Where]] = field(default_factory=dict)
    unlabelled: int = 0

    def __iter__(self) -> Iterator[list[Pair]]:
        """The pairs of each prompt, read again."""
        for places in self.places.values():
            yield [
                _pair(where, data.row_at(where) if isinstance(where, Place) else where) for where in places
            ]


def scan(config: Config) -> Labels:
    """Find and check all pairs of the config.

    Raises:
        ValueError: one sentence naming the file, the row and the fault, or the key.
    """
    settings = config.agreement
    if not settings.pairs and not settings.attacks:
        raise ValueError("agreement.pairs is not set: name jsonl or parquet files of labelled pairs")
    if settings.other is not None and not Store(settings.other).exists(FOLDER, OUTCOMES):
        raise ValueError(f"agreement.other: no agreement was measured in {settings.other}")
    judged_alone = any(getattr(config.judge.weights, name) for name in CONTEXTLESS)
    found = Labels()
    prompts: dict[str, tuple[bytes, bytes, Where]] = {}
    for where, raw in _rows(settings.pairs, attack_set=settings.attacks):
        pair = _pair(where, raw)
        if not pair.rejected or set(pair.chosen) & set(pair.rejected):
            found.unlabelled += 1
            continue
        if pair.context is None and not judged_alone:
            raise ValueError(f"{_name(where)}: no context, which every dimension with weight needs")
        seen = (_hash(pair.context or ""), _hash(pair.question), where)
        before = prompts.setdefault(pair.prompt_id, seen)
        if before[:2] != seen[:2]:
            raise ValueError(
                f"{_name(where)}: prompt_id {pair.prompt_id!r} has another context or question "
                f"at {_name(before[2])}"
            )
        found.places.setdefault(pair.prompt_id, []).append(where)
    if not found.places:
        raise ValueError(f"{', '.join(settings.pairs)}: no labelled pairs in there")
    first: dict[bytes, int] = {}
    for document, *_ in prompts.values():
        first.setdefault(document, len(first))
    order = sorted(found.places, key=lambda one: first[prompts[one][0]])
    found.places = {prompt_id: found.places[prompt_id] for prompt_id in order}
    return found


def _rows(patterns: list[str], *, attack_set: bool) -> Iterator[tuple[Where, Raw]]:
    yield from data.rows(patterns)
    if attack_set:
        for row in attacks.rows():
            raw = {**row, "subset": f"attack in the {row['carrier']}"}
            yield raw, raw


def _name(where: Where) -> str:
    return str(where) if isinstance(where, Place) else ATTACKS


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _pair(where: Where, raw: Raw) -> Pair:
    if not isinstance(where, Place):
        return to_pair(raw, ATTACKS, "attacks")
    stem = where.url.partition("?")[0].rpartition("/")[2].rpartition(".")[0]
    return to_pair(raw, where, stem, where.number)


def to_pair(raw: Raw, place: object, stem: str, number: int = 0) -> Pair:
    """The pair in a row; `stem` and `number` name its file and its line, where the row has no name.

    Raises:
        ValueError: a field is missing, empty or of the wrong type.
    """
    if "prompt_template" in raw:
        return _long_rewardbench(raw, place, stem, number)
    chosen = _answers(raw, ("chosen", "win_response"), place)
    rejected = _answers(raw, ("rejected", "lose_response"), place)
    asked, context, question = raw.get("prompt"), raw.get("context"), raw.get("question")
    if isinstance(asked, list):
        before, question = _split(_conversation(asked, place), question)
        context = before if context is None else context
    elif asked is None or context is not None:
        context = _text(context, "context", place)
        question = raw.get("query", asked) if question is None else question
    else:
        # RewardBench: what is asked, without a document.
        question = asked
    question = _text(question, "question", place)
    subset = str(raw.get("subset") or stem)
    return Pair(_id(raw, place, stem, number), context, question, chosen, rejected, subset)


def _long_rewardbench(raw: Raw, place: object, stem: str, number: int) -> Pair:
    """Ids are numbers within a file. Of a ranking the first is the best; equal scores tell nothing apart."""
    context, question = _split(_conversation(raw["prompt_template"], place), raw.get("question"))
    question = _text(question, "question", place)
    kind = raw.get("tasktype") or "PairWise"
    if kind == "BestOfN":
        answers = _answers(raw, ("candidates",), place, distinct=False)
        scores = raw.get("candidates_score") or list(range(len(answers), 0, -1))
        if not isinstance(scores, list) or len(scores) != len(answers):
            raise ValueError(f"{place}: candidates_score has not one number a candidate")
        numbers = all(isinstance(one, int | float) and not isinstance(one, bool) for one in scores)
        if not numbers or not all(one <= scores[0] for one in scores):  # NaN is not below anything
            raise ValueError(f"{place}: candidates_score is no list of numbers, highest first")
        others = [one for one, score in zip(answers, scores, strict=True) if score != scores[0]]
        chosen, rejected = answers[:1], list(dict.fromkeys(others))
    else:
        chosen, rejected = (_answers(raw, (name,), place) for name in ("chosen", "rejected"))
    prompt_id = f"{stem}-{kind}-{_id(raw, place, stem, number)}"
    return Pair(prompt_id, context, question, chosen, rejected, f"{stem} {kind}")


def _id(raw: Raw, place: object, stem: str, number: int) -> str:
    """RewardBench's `id` is that of a row of its subset, so the subset is part of it."""
    value = next((raw[key] for key in ("prompt_id", "idx", "id") if key in raw), f"{stem}-{number}")
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{place}: prompt_id is neither text nor an integer")
    within = raw.get("subset") if not {"prompt_id", "idx"} & raw.keys() and "id" in raw else None
    return f"{within}-{value}" if within else str(value)


def _answers(raw: Raw, names: tuple[str, ...], place: object, *, distinct: bool = True) -> list[str]:
    """One answer, several, or a conversation that ends with one."""
    value = next((raw[name] for name in names if raw.get(name) is not None), None)
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        value = value[-1].get("content")
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{place}: {names[0]} is neither a text nor a list of texts")
    return list(dict.fromkeys(found)) if distinct else found


def _conversation(messages: Any, place: object) -> str:
    return "\n\n".join(message["content"] for message in data.to_messages(messages, place))


def _split(text: str, question: Any) -> tuple[str | None, str]:
    """The document and what is asked about it: what the row says, else the last paragraph."""
    if isinstance(question, str) and question.strip():
        before = text.rstrip().removesuffix(question.strip())
    else:
        before, _, question = text.rstrip().rpartition("\n\n")
    return before.strip() or None, question


def _text(value: Any, name: str, place: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place}: {name} is {'empty' if isinstance(value, str) else 'no text'}")
    return value
