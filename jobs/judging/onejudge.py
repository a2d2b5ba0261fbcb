"""What one judge process does, without Ray: latency of a row, statements a call, reuse, CPU of a call."""

import asyncio
import json
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from jobs.judging.prefix_cache import FirstCome
from lr_ray.config import Config, Judge
from lr_ray.judge import core
from lr_ray.judge.actor import JudgeActor
from lr_ray.llm.calls import Call
from lr_ray.rows import Judged, Sampled, pack, unpack
from lr_ray.store import Store


def judge(
    rows: list[Sampled], base_url: str, kind: type[JudgeActor] = JudgeActor, **settings: Any
) -> list[Judged]:
    """The rows judged by one actor in this process, recording as always.

    Raises:
        RuntimeError: a row failed.
    """

    async def work(folder: str) -> list[Judged]:
        given = {"run_dir": folder, "judge": {"base_url": base_url, **settings}}
        actor = kind(Config.model_validate(given), Store(folder))
        try:
            found = await asyncio.gather(*(actor(pack("sampled", row)) for row in rows))
        finally:
            await actor.close()
        failed = [unpack(one) for one in found if one["kind"] != "judged"]
        if failed:
            raise RuntimeError(
                f"{len(failed)} of {len(found)} rows failed, one because {failed[0]['reason']}"
            )
        return [unpack(one) for one in found]  # type: ignore[misc]

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(work(folder))


def latency(rows: list[Sampled], base_url: str, model: str) -> dict[str, float]:
    """Seconds of a row alone, by one call after another (the first row) and with 64 in flight (the mean).

    The first rows with 64 also find out how much the endpoint takes; `settled` is the last row's time.
    """
    (serial,) = judge(rows[:1], base_url, model=model, concurrency=1)
    judged = judge(rows, base_url, model=model, concurrency=64, rows_in_flight=1)
    one, seconds = _seconds(serial), list(map(_seconds, judged))
    ours = sum(seconds) / len(seconds)
    calls = serial["usage"]["calls"]
    return {"calls": calls, "serial": one, "ours": ours, "settled": seconds[-1], "ratio": ours / one}


def _seconds(judged: Judged) -> float:
    return judged["judged_at"] - judged["first_call_at"]


def statements(rows: list[Sampled], base_url: str, model: str, several: int) -> dict[str, Any]:
    """What `several` statements a call change against one: calls, tokens, verdicts and rewards."""
    one, other = (judge(rows, base_url, model=model, statements_per_call=count) for count in (1, several))
    verdicts = [_verdicts(judged) for judged in (one, other)]
    changed = sum(verdicts[1].get(key) != verdict for key, verdict in verdicts[0].items())
    return {
        "statements_per_call": several,
        "rows": len(rows),
        "verdicts": len(verdicts[0]),
        "verdicts_changed": changed,
        "calls": [_sum(judged, "calls") for judged in (one, other)],
        "prompt_tokens": [_sum(judged, "prompt_tokens") for judged in (one, other)],
        "best_and_worst_changed": sum(_ends(a) != _ends(b) for a, b in zip(one, other, strict=True)),
    }


def _verdicts(judged: list[Judged]) -> dict[tuple[str, int, str], str | None]:
    return {
        (row["prompt_id"], candidate["index"], statement["text"]): statement["verdict"]
        for row in judged
        for candidate in row["candidates"]
        for statement in candidate["statements"]
    }


def _sum(judged: list[Judged], name: str) -> int:
    return sum(row["usage"][name] for row in judged)  # type: ignore[literal-required]


def _ends(judged: Judged) -> tuple[int, int]:
    scored = [(c["reward"], -c["index"]) for c in judged["candidates"] if c["reward"] is not None]
    return (-max(scored)[1], -min(scored)[1]) if scored else (-1, -1)


class _Recording:
    """Stands before the calls of a row and keeps them."""

    def __init__(self, kept: list[Call[Any]]) -> None:
        self.usage, self.first_call_at, self._kept = {}, 0.0, kept  # type: ignore[var-annotated]
        self._answers: dict[str, Any] = {}

    async def ask(self, call: Call[Any]) -> Any:
        from lr_ray.simulated import replies

        key = json.dumps([call.name, call.messages])
        if key not in self._answers:
            self._kept.append(call)
            plain = replies.PLAIN.get(call.name, replies.PLAIN[""])
            self._answers[key] = call.answer.model_validate(plain)
        return self._answers[key]


def calls_of(rows: list[Sampled]) -> list[Call[Any]]:
    """Every call that judging `rows` takes where the server answers plainly."""
    kept: list[Call[Any]] = []

    async def work() -> None:
        for row in rows:
            await core.judge_row(row, _Recording(kept), Judge(model="m"))  # type: ignore[arg-type]

    asyncio.run(work())
    return kept


def clients(rows: list[Sampled], base_url: str, model: str, concurrency: int) -> dict[str, Any]:
    """Calls a second and CPU of a call: ours, with all that judging takes; the openai package's default.

    The plain script has all calls ready beforehand and a semaphore; it records and checks nothing.
    """
    calls = calls_of(rows)

    async def plain() -> None:
        import openai

        places = asyncio.Semaphore(concurrency)
        async with openai.AsyncOpenAI(base_url=base_url, api_key="none", timeout=120) as api:

            async def one(call: Call[Any]) -> None:
                schema = {"name": call.name, "strict": True, "schema": call.schema}
                form: Any = {"type": "json_schema", "json_schema": schema}
                messages: Any = call.messages
                async with places:
                    await api.chat.completions.create(
                        model=model, messages=messages, response_format=form, temperature=0, max_tokens=2048
                    )

            await asyncio.gather(*map(one, calls))

    ways = {
        "plain asyncio, openai default": lambda: asyncio.run(plain()),
        "lr-ray judge": lambda: judge(
            rows, base_url, model=model, concurrency=concurrency, rows_in_flight=len(rows)
        ),
    }
    found: dict[str, Any] = {"calls": len(calls), "concurrency": concurrency}
    for name, way in ways.items():
        begun, cpu = time.monotonic(), time.process_time()
        way()
        seconds, cpu = time.monotonic() - begun, time.process_time() - cpu
        found[name] = {"calls_a_second": len(calls) / seconds, "cpu_ms_a_call": 1000 * cpu / len(calls)}
    return found


def reuse(
    rows: list[Sampled], base_url: str, model: str, *, ordered: bool, **settings: Any
) -> dict[str, Any]:
    """Prompt tokens and those that the endpoint says it had cached; first come, first served or ordered."""
    judged = judge(rows, base_url, JudgeActor if ordered else _FirstCome, model=model, **settings)
    return {name: _sum(judged, name) for name in ("calls", "prompt_tokens", "cached_tokens")}


class _FirstCome(JudgeActor):
    def start(self) -> None:
        super().start()
        self.turns = FirstCome()


def stats(base_url: str) -> dict[str, Any]:
    """What the simulated server tells of itself."""
    with urllib.request.urlopen(f"{base_url}/stats") as reply:  # noqa: S310 - the user's own endpoint
        return json.load(reply)


def read_rows(prompts: Path, candidates: Path) -> list[Sampled]:
    """Rows of prompts and candidates in files, as `lr-ray judge` reads them."""
    from lr_ray import data

    pointers = data.scan([str(prompts)], [str(candidates)])
    return [data.load(pointer, "{context}\n\n{question}") for pointer in pointers]  # type: ignore[misc]
