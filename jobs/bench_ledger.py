"""The ledger at scale: appends, and resume over millions of recorded calls.

    python -m jobs.bench_ledger --records 200000 2000000

Writes segments as eight judge actors leave them (150 records of about 1 KB a prompt, 64 prompts in flight a
writer), then resumes over them, each time in a process of its own: with no index, with the index of an
earlier run, and, for comparison, with all records' places in a dict in memory. Peak memory is what the
process needs over what it needs for an empty ledger.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lr_ray.llm import records
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.lookup import Recorded
from lr_ray.llm.paid import Paid
from lr_ray.store import Store

EACH, WRITERS, IN_FLIGHT = 150, 8, 64
LOOK_UPS = 200
TEXT = "The passage states this in so many words, and nothing in the others speaks against it. " * 9


def generate(folder: Path, count: int) -> None:
    """Segments of `count` records."""
    (folder / "calls").mkdir(parents=True)
    rng = random.Random(0)
    for writer in range(WRITERS):
        waiting = list(range(writer, count // EACH, WRITERS))
        flight: list[list[int]] = []
        with (folder / "calls" / f"writer{writer}.jsonl").open("wb", buffering=1 << 22) as file:
            while waiting or flight:
                while waiting and len(flight) < IN_FLIGHT:
                    flight.append([waiting.pop(), 0])
                one = rng.choice(flight)
                key = f"{one[0]:032x}{one[1]:032x}"
                reply = (
                    f'{{"prompt_tokens":800,"cached_tokens":0,"completion_tokens":170,"content":"{TEXT}",'
                    '"refusal":null,"finish_reason":"stop"}'
                )
                name = f"prompt-{one[0]}"
                head = f'{{"prompt_id":"{name}","key":"{key}","unit":"{name}/0/support/{one[1]}"'
                file.write(f'{head},"reply":{reply}}}\n'.encode())
                one[1] += 1
                if one[1] == EACH:
                    flight.remove(one)


def by_index(store: Store) -> Callable[[str], dict[str, Any]]:
    """As a judge actor has it."""
    Paid(store).prepare()
    return Recorded(store).replies


def by_dict(store: Store) -> Callable[[str], dict[str, Any]]:
    """All places in memory, the plain way."""
    where: dict[str, list[records.Pointer]] = {}
    for segment in store.files(records.FOLDER, records.SUFFIX):
        offset = 0
        for line in records.lines(store, segment):
            record = records.parse(line)
            if record is not None:
                pointer = records.Pointer(segment, offset, len(line) + 1)
                where.setdefault(record["prompt_id"], []).append(pointer)
            offset += len(line) + 1
    recorded = Recorded(store)
    return lambda prompt: recorded._load(prompt, where.get(prompt, []))


def resume(
    way: Callable[[Store], Callable[[str], dict[str, Any]]], folder: str, count: int
) -> dict[str, float]:
    """Seconds until ready, milliseconds a look-up, peak MB."""
    began = time.monotonic()
    replies = way(Store(folder))
    ready = time.monotonic() - began
    rng = random.Random(1)
    prompts = [f"prompt-{rng.randrange(count // EACH)}" for _ in range(LOOK_UPS if count else 0)]
    began = time.monotonic()
    for prompt in prompts:
        assert len(replies(prompt)) == EACH
    each = (time.monotonic() - began) / max(len(prompts), 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ready_s": round(ready, 2), "row_ms": round(1e3 * each, 1), "peak_mb": round(peak, 1)}


def apart(way: Any, *arguments: Any) -> Any:
    """The result of a function in a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(way, arguments)


def appends(folder: str, in_flight: int, seconds: float) -> dict[str, float]:
    """Appends of about 1 KB from `in_flight` callers at once; with one, each has its own fsync."""

    async def work() -> int:
        book = Ledger(Store(folder))
        end, done = time.monotonic() + seconds, 0

        async def caller(number: int) -> None:
            nonlocal done
            while time.monotonic() < end:
                reply = {"content": TEXT, "prompt_tokens": 800}
                await book.append({"prompt_id": f"p{number}", "key": "0" * 64, "unit": "u", "reply": reply})
                done += 1

        await asyncio.gather(*map(caller, range(in_flight)))
        book.close()
        return done

    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    done = asyncio.run(work())
    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime - used
    size = sum(file.stat().st_size for file in Path(folder, "calls").iterdir())
    return {
        "appends_s": round(done / seconds),
        "mb_s": round(size / seconds / 1e6, 1),
        "cpu_us": round(1e6 * used / max(done, 1), 1),
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement of appends")
    parser.add_argument("--folder", help="on the disk to measure; default: a temporary one")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "seed": 0}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for in_flight in (1, 64, 512):
            result[f"append, {in_flight} in flight"] = apart(
                appends, f"{folder}/{in_flight}", in_flight, options.seconds
            )
        base = apart(resume, by_index, f"{folder}/none", 0)["peak_mb"]
        for count in options.records:
            place = Path(folder, f"records{count}")
            generate(place, count)
            size = sum(file.stat().st_size for file in (place / "calls").iterdir())
            result[f"{count} records"] = {"gb": round(size / 1e9, 2)}
            for name, way in (("dict", by_dict), ("no index", by_index), ("indexed", by_index)):
                measured = apart(resume, way, str(place), count)
                measured["peak_mb"] = round(measured["peak_mb"] - base, 1)
                result[f"{count} records, {name}"] = measured
            shutil.rmtree(place)
    json.dump(result, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
