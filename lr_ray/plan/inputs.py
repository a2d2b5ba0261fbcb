"""Data that a forecast counts: what the config names or, where `suppose` says what to expect, stand-ins.

A stand-in is a document of the expected length in temporary files, made of plain sentences: as many chunks,
passages and tokens as the real one would have. Everything that was supposed is said in the notes.
"""

import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from statistics import fmean

import orjson
import pyarrow.fs as pafs

from lr_ray import data
from lr_ray.config import Benchmark, Config
from lr_ray.judge.chunks import BYTES_A_TOKEN
from lr_ray.preflight import inputs
from lr_ray.store import filesystem


@dataclass
class Inputs:
    """Prompts, held-out prompts and benchmarks; there are `count` and `held_out_count` of the first two."""

    prompts: Sequence[data.Pointer] = ()
    count: int = 0
    held_out: Sequence[data.Pointer] = ()
    held_out_count: int = 0
    benchmarks: list[Benchmark] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def found(config: Config) -> Iterator[Inputs]:
    """The inputs, whose files may be gone after the block.

    Raises:
        ValueError: bad input; or it is missing, and `suppose.prompts` does not say what to expect.
    """
    supposes = config.suppose.prompts
    with tempfile.TemporaryDirectory(prefix="lr-ray-plan-") as folder:
        made = Inputs()
        if supposes and not there([*config.data.prompts, *config.data.candidates]):
            made.prompts, made.count = data.scan([_stand_ins(config, folder, "prompts")]), supposes
            made.notes.append(_said(config, "data.prompts", supposes))
        else:
            made.prompts = inputs(config)
            made.count = len(made.prompts)
        held_out = config.evaluation.prompts
        if supposes and held_out and not there(held_out):
            made.held_out = data.scan([_stand_ins(config, folder, "held-out")])
            made.held_out_count = config.suppose.held_out
            made.notes.append(_said(config, "evaluation.prompts", made.held_out_count))
        elif held_out:
            made.held_out = data.scan(held_out)
            made.held_out_count = len(made.held_out)
        missing = {
            b.label for b in config.evaluation.benchmarks if supposes and b.path and not there([b.path])
        }
        made.benchmarks = [one for one in config.evaluation.benchmarks if one.label not in missing]
        if missing:
            made.notes.append(f"not counted: benchmarks that are not there: {', '.join(sorted(missing))}")
        yield made


def there(patterns: list[str]) -> bool:
    """Whether anything of the files, folders or globs is there; of a glob its folder."""
    for pattern in patterns:
        fs, path = filesystem(pattern)
        if any(sign in path for sign in "*?["):
            path = re.split(r"[*?\[]", path)[0].rpartition("/")[0]
        if fs.get_file_info(path).type != pafs.FileType.NotFound:
            return True
    return False


def _said(config: Config, key: str, number: int) -> str:
    tokens = fmean(config.suppose.context_tokens)
    return f"supposed: {number:,} prompts of {tokens:,.0f} tokens on average, since {key} is not there"


def _stand_ins(config: Config, folder: str, name: str) -> str:
    """A file with one prompt of each expected length."""
    path = Path(folder, f"{name}.jsonl")
    lengths = config.suppose.context_tokens
    rows = (
        {"prompt_id": f"{name}-{n}", "context": _document(f"{name} {n}", tokens), "question": "What is said?"}
        for n, tokens in enumerate(lengths)
    )
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
    return str(path)


def _document(name: str, tokens: int) -> str:
    size = tokens * BYTES_A_TOKEN
    sentences = (f"Sentence {n} of document {name} says that things number {n * n} are so. " for n in count())
    return "".join(islice(sentences, size // 40))[:size]
