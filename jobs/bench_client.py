"""Requests a second and CPU a request of chat clients, side by side against one fast endpoint on loopback.

    python -m jobs.bench_client [--requests 10000] [--latency 0.2] [--prompt-bytes 3000] [--profile]

All clients ask from this process, whose CPU time is counted (the endpoint has one of its own). Each is run
with several numbers of calls in flight and shown at its fastest; the slow ones get a fifth of the requests.
The second table is the way a judge's call really goes: hashed, governed, sent, recorded with an fsync, read.
Nothing here is random. Prints markdown.
"""

import argparse
import asyncio
import cProfile
import gc
import os
import platform
import pstats
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import orjson

from jobs import fast_endpoint
from lr_ray.config import Judge
from lr_ray.judge.answers import SCHEMAS, Rating
from lr_ray.llm.calls import Call, Calls
from lr_ray.llm.client import Client
from lr_ray.llm.governor import Governor
from lr_ray.llm.ledger import Ledger
from lr_ray.store import Store

Ask = Callable[[int], Awaitable[str]]  # the number of a request → the text of its answer
Setup = Callable[[str, int, AsyncExitStack], Awaitable[Ask]]  # base URL, calls in flight → a way to ask
WARM_UP = 2  # rounds of calls that open the connections, before anything is measured
FIRST_TO_LEARN = 10_000_000  # number of the first request by which a governor learns; no other has it


@dataclass(frozen=True)
class Figures:
    """What a client did: requests a second and CPU milliseconds a request."""

    rate: float
    cpu: float
    in_flight: int


class Prompts:
    """Different prompts of one length."""

    def __init__(self, size: int) -> None:
        words = "the treaty was signed in the third year of the war and renewed twice "
        self._text = (words * (size // len(words) + 1))[:size]

    def messages(self, number: int) -> list[Any]:
        return [{"role": "user", "content": f"{number:08}{self._text[8:]}"}]

    def body(self, number: int) -> dict[str, Any]:
        return {"model": "bench", "messages": self.messages(number), "temperature": 0.0, "max_tokens": 512}


def the_package(prompts: Prompts, aiohttp: bool) -> Setup:
    """The openai package as its users call it."""

    async def setup(url: str, in_flight: int, stack: AsyncExitStack) -> Ask:
        import openai

        http = openai.DefaultAioHttpClient() if aiohttp else None
        api = await stack.enter_async_context(
            openai.AsyncOpenAI(base_url=url, api_key="none", http_client=http, max_retries=0)
        )

        async def ask(number: int) -> str:
            reply = await api.chat.completions.create(**prompts.body(number))
            return reply.choices[0].message.content

        return ask

    return setup


def plain_script(prompts: Prompts) -> Setup:
    """What one would write by hand: aiohttp and orjson, no limit, no retry, no check."""

    async def setup(url: str, in_flight: int, stack: AsyncExitStack) -> Ask:
        import aiohttp

        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        headers = {"Authorization": "Bearer none", "Content-Type": "application/json"}

        async def ask(number: int) -> str:
            data = orjson.dumps(prompts.body(number))
            async with session.post(f"{url}/chat/completions", data=data, headers=headers) as response:
                return orjson.loads(await response.read())["choices"][0]["message"]["content"]

        return ask

    return setup


def _client(url: str, in_flight: int) -> tuple[Judge, Client]:
    judge = Judge(model="bench", base_url=url, concurrency=in_flight)
    return judge, Client(judge, None, Governor(in_flight))


async def _learn(ask: Ask, in_flight: int, seconds: float) -> None:
    """Ask for `seconds`, in which a governor finds out how much it may."""
    until, first = time.monotonic() + seconds, FIRST_TO_LEARN
    while time.monotonic() < until:
        await _requests(ask, first, in_flight, in_flight)
        first += in_flight


def ours(prompts: Prompts, learn: float) -> Setup:
    """lr_ray.llm.client.Client, with a governor in its process that has learned for `learn` seconds."""

    async def setup(url: str, in_flight: int, stack: AsyncExitStack) -> Ask:
        _, client = _client(url, in_flight)
        stack.push_async_callback(client.close)

        async def ask(number: int) -> str:
            body = orjson.dumps(prompts.body(number))
            reply = await client.post("/chat/completions", body, f"p/0/x/{number}", lambda *_: None)
            return reply["choices"][0]["message"]["content"]

        await _learn(ask, in_flight, learn)
        return ask

    return setup


def full_path(prompts: Prompts, learn: float) -> Setup:
    """A judge's call: lr_ray.llm.calls.Calls over client and ledger, its answer validated."""

    async def setup(url: str, in_flight: int, stack: AsyncExitStack) -> Ask:
        judge, client = _client(url, in_flight)
        folder = stack.enter_context(tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")))
        ledger = Ledger(Store(folder))
        stack.callback(ledger.close)
        stack.push_async_callback(client.close)
        rows: dict[int, Calls] = {}

        async def ask(number: int) -> str:
            prompt = number // 100
            calls = rows.get(prompt) or Calls(f"p{prompt}", client, ledger, {}, judge, lambda *_: None)
            rows[prompt] = calls
            messages = prompts.messages(number)
            answer = await calls.ask(
                Call("helpfulness", messages, SCHEMAS["helpfulness"], Rating, index=number)
            )
            return answer.analysis

        await _learn(ask, in_flight, learn)
        return ask

    return setup


async def _requests(ask: Ask, first: int, count: int, in_flight: int) -> None:
    numbers = iter(range(first, first + count))

    async def worker() -> None:
        for number in numbers:
            assert await ask(number), "an empty answer"

    await asyncio.gather(*(worker() for _ in range(in_flight)))


def measure(
    setup: Setup, url: str, count: int, in_flight: int, profile: cProfile.Profile | None = None
) -> Figures:
    """`count` requests, `in_flight` at once, after a warm-up."""

    async def work() -> Figures:
        async with AsyncExitStack() as stack:
            ask = await setup(url, in_flight, stack)
            await _requests(ask, 0, WARM_UP * in_flight, in_flight)
            gc.collect()
            if profile is not None:
                profile.enable()
            began, cpu = time.perf_counter(), time.process_time()
            await _requests(ask, WARM_UP * in_flight, count, in_flight)
            cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
            if profile is not None:
                profile.disable()
            return Figures(count / seconds, 1000 * cpu / count, in_flight)

    return asyncio.run(work())


def fastest(setup: Setup, url: str, count: int, in_flight: list[int]) -> Figures:
    """The figures at the number of calls in flight that gave the most requests a second."""
    return max((measure(setup, url, count, most) for most in in_flight), key=lambda figures: figures.rate)


def table(rows: dict[str, Figures]) -> str:
    """Markdown; the first row is what the others are compared with."""
    first = next(iter(rows.values()))
    lines = [
        "| client | requests/s | CPU a request | calls in flight | times the first |",
        "|---|---|---|---|---|",
    ]
    for name, figures in rows.items():
        lines.append(
            f"| {name} | {figures.rate:,.0f} | {figures.cpu:.2f} ms | {figures.in_flight} "
            f"| {figures.rate / first.rate:.1f} |"
        )
    return "\n".join(lines)


def where_it_goes(profile: cProfile.Profile, count: int, cpu: float) -> str:
    """Markdown: the profiled time by part of the program, scaled to `cpu` (ms a request, unprofiled)."""
    parts: dict[str, float] = defaultdict(float)
    functions: list[tuple[float, float, str]] = []
    for (file, _, name), (_, calls, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        part = _part(file, name)
        if part:
            parts[part] += own
            functions.append((own, calls / count, f"{part}: {name}"))
    scale = cpu / sum(parts.values())
    lines = ["| part | share | ms a request |", "|---|---|---|"]
    for part, own in sorted(parts.items(), key=lambda item: -item[1]):
        lines.append(f"| {part} | {100 * own / sum(parts.values()):.0f}% | {own * scale:.3f} |")
    lines += ["", "| function | ms a request | calls a request |", "|---|---|---|"]
    for own, calls, name in sorted(functions, reverse=True)[:30]:
        lines.append(f"| `{name}` | {own * scale:.4f} | {calls:.1f} |")
    return "\n".join(lines)


def _part(file: str, name: str) -> str | None:
    if "poll" in name and file == "~":
        return None  # mostly waiting
    if "socket" in name and file == "~":
        return "kernel: sockets"
    if file == "~":
        return "built-in functions"
    for part in ("aiohttp", "yarl", "multidict", "uvloop", "asyncio", "openai"):
        if f"/{part}/" in file:
            return part
    if "/lr_ray/" in file or "/jobs/" in file:
        return "/".join(file.rsplit("/", 2)[-2:])
    return "rest of Python"


def machine() -> str:
    """This machine in a few words."""
    with open("/proc/cpuinfo") as info:
        model = next((line.split(":")[1].strip() for line in info if line.startswith("model name")), "?")
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def _compare(prompts: Prompts, url: str, count: int, in_flight: list[int], learn: float) -> str:
    few = max(count // 5, 1)
    mine = fastest(ours(prompts, learn), url, count, in_flight)
    rows = {
        "openai, default": fastest(the_package(prompts, False), url, few, in_flight),
        "openai, aiohttp backend": fastest(the_package(prompts, True), url, few, in_flight),
        "plain script (aiohttp, orjson)": fastest(plain_script(prompts), url, count, in_flight),
        "lr_ray client": mine,
    }
    whole = {
        "lr_ray client": mine,
        "with hash, ledger, fsync, validation": fastest(full_path(prompts, learn), url, count, in_flight),
    }
    return f"{table(rows)}\n\n{table(whole)}"


def _profile(prompts: Prompts, url: str, count: int, in_flight: int, learn: float) -> str:
    found = []
    setups = {"lr_ray client": ours(prompts, learn), "full path": full_path(prompts, learn)}
    for name, setup in setups.items():
        cpu, profile = measure(setup, url, count, in_flight).cpu, cProfile.Profile()
        measure(setup, url, count, in_flight, profile)
        found.append(f"{name}: {cpu:.3f} ms a request\n\n{where_it_goes(profile, count, cpu)}")
    return "\n\n".join(found)


def main(argv: list[str] | None = None) -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--latency", type=float, default=0.2, help="seconds")
    parser.add_argument("--prompt-bytes", type=int, default=3000)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[150, 600, 900])
    parser.add_argument("--learn", type=float, default=12.0, help="seconds a governor learns unmeasured")
    parser.add_argument(
        "--profile", action="store_true", help="where our client's CPU goes, and nothing else"
    )
    options = parser.parse_args(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    prompts, learn = Prompts(options.prompt_bytes), options.learn
    what = f"{options.latency * 1000:g} ms endpoint, prompts of {options.prompt_bytes} bytes"
    with fast_endpoint.running(options.latency) as url:
        print(f"{machine()}; {what}\n", flush=True)
        if options.profile:
            print(_profile(prompts, url, options.requests, options.in_flight[-1], learn))
        else:
            print(_compare(prompts, url, options.requests, options.in_flight, learn))


if __name__ == "__main__":
    main()
