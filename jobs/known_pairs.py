"""Candidates of known quality → labelled pairs for `lr-ray agreement`.

    python -m jobs.known_pairs PROMPTS.jsonl CANDIDATES.jsonl PAIRS.jsonl [BEST]

Each candidate has a `text` and a `quality`; those of quality BEST (default: good) are chosen over each other
one of their prompt, whose quality is the pair's subset.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson


def pairs(prompts: str, candidates: str, best: str = "good") -> Iterator[dict[str, Any]]:
    """The pairs of the prompts that have candidates, in the candidates' order."""
    asked = {row["prompt_id"]: row for row in _rows(prompts)}
    for row in _rows(candidates):
        prompt = {key: asked[row["prompt_id"]][key] for key in ("prompt_id", "context", "question")}
        for good in row["candidates"]:
            for worse in row["candidates"]:
                if good["quality"] == best != worse["quality"]:
                    texts = {"chosen": good["text"], "rejected": worse["text"]}
                    yield {**prompt, **texts, "subset": worse["quality"]}


def _rows(path: str) -> Iterator[dict[str, Any]]:
    with Path(path).open("rb") as file:
        yield from map(orjson.loads, file)


def main(prompts: str, candidates: str, out: str, best: str = "good") -> None:
    """Write the pairs to the file `out`."""
    lines = (
        orjson.dumps(pair, option=orjson.OPT_APPEND_NEWLINE) for pair in pairs(prompts, candidates, best)
    )
    Path(out).write_bytes(b"".join(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
