"""Labelled pairs as rows for the judge: one row a prompt, its answers in an order that tells no label.

A prompt's answers are judged once, in however many pairs they stand. The rows lie in agreement/input/, where
rollouts read them as they read candidates from any file.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from lr_ray.data import Place, Pointer
from lr_ray.judge import chunks
from lr_ray.labelled import Labels, Pair
from lr_ray.store import Store

FILE_BYTES = 32 << 20
FOLDER = "input"
INDEX = "input.json"
"""Holds a hash of each prompt's row."""


class Label(NamedTuple):
    """Indexes of a row's answers: each of `chosen` is better than each of `rejected`."""

    chosen: list[int]
    rejected: list[int]
    subset: str

    @property
    def answers(self) -> list[int]:
        """All of them, in the row's order."""
        return sorted([*self.chosen, *self.rejected])


@dataclass(frozen=True)
class Item:
    """A prompt with labelled pairs: where its row lies, and what is said of its answers.

    `tokens` are the context's, 0 without one; `lengths` are characters, `hashes` are of the answers' texts.
    """

    pointer: Pointer
    short: bool
    tokens: int
    lengths: list[int]
    hashes: list[str]
    labels: list[Label]

    @property
    def prompt_id(self) -> str:
        return self.pointer.prompt_id


def write(store: Store, labels: Labels, seed: int, tokenizer: str | None, done: set[str]) -> list[Item]:
    """Write the rows into `store` as far as they are not there; `done` prompts are judged already.

    Raises:
        ValueError: a prompt was judged with other answers or labels, or in another order.
    """
    known: dict[str, str] = json.loads(store.read(INDEX) or b"{}")
    digests = {prompt_id: known[prompt_id] for prompt_id in done & known.keys()}
    items: list[Item] = []
    for number, lines in enumerate(_files(labels, seed, chunks.measure(tokenizer))):
        name = f"{number:05d}.jsonl"
        place, start = store.sub(FOLDER, name).absolute, 0
        for at, line in enumerate(lines, 1):
            item = _item(orjson.loads(line), Place(place, -1, start, len(line), at))
            if digests.setdefault(item.prompt_id, digest := _hash(line)) != digest:
                raise ValueError(
                    f"{store.url}: prompt {item.prompt_id!r} was judged with other answers, labels or seed; "
                    "use another run_dir"
                )
            items.append(item)
            start += len(line)
        content = b"".join(lines)
        if store.read(FOLDER, name) != content:
            store.write(content, FOLDER, name)
    store.write(json.dumps(digests).encode(), INDEX)
    return items


def _files(labels: Labels, seed: int, measure: chunks.Measure) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    size = 0
    for pairs in labels:
        line = orjson.dumps(row(pairs, seed, measure), option=orjson.OPT_APPEND_NEWLINE)
        if lines and size + len(line) > FILE_BYTES:
            yield lines
            lines, size = [], 0
        lines.append(line)
        size += len(line)
    yield lines


def row(pairs: list[Pair], seed: int, measure: chunks.Measure) -> dict[str, Any]:
    """The row of one prompt's pairs: its different answers as candidates, and the labels by their indexes."""
    first = pairs[0]
    texts = dict.fromkeys(text for pair in pairs for text in (*pair.chosen, *pair.rejected))
    order = sorted(texts, key=lambda text: _hash(f"{seed}\0{first.prompt_id}\0{text}".encode()))
    index = {text: number for number, text in enumerate(order)}
    short = first.context is None
    return {
        "prompt_id": first.prompt_id,
        # Every row of the judge has a context; which dimensions look at it is another matter.
        "context": first.question if short else first.context,
        "question": first.question,
        "short": short,
        "tokens": 0 if short else int(measure.upto(first.context or "")[-1]) // measure.unit,
        "candidates": order,
        "labels": [
            {
                "chosen": sorted(index[text] for text in pair.chosen),
                "rejected": sorted(index[text] for text in pair.rejected),
                "subset": pair.subset,
            }
            for pair in pairs
        ],
    }


def _item(row: dict[str, Any], place: Place) -> Item:
    return Item(
        pointer=Pointer(row["prompt_id"], place, [place]),
        short=row["short"],
        tokens=row["tokens"],
        lengths=[len(text) for text in row["candidates"]],
        hashes=[_hash(text.encode("utf-8", "surrogatepass")) for text in row["candidates"]],
        labels=[Label(**label) for label in row["labels"]],
    )


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()
