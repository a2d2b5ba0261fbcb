"""How well judge actors fill a limit that nobody tells them and that halves and doubles in mid-run.

    python -m jobs.bench_governor [--actors 1 8] [--forms requests tokens places] [--phase 45]

The endpoint is the simulated judge on loopback, which counts for itself; the actors are real Ray actors with
the judge's own client and governor and always something to ask. The limit holds for one phase, is half of
it for the next, and whole again for the third. "allowed" is requests a second at the whole limit (of
tokens: by the mean size of a request; of places: by the latency). Seeded; prints markdown.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import time
import urllib.request
from typing import Any

import orjson

from lr_ray import simulated
from lr_ray.config import Config
from lr_ray.llm import shared
from lr_ray.llm.client import Client, GaveUp
from lr_ray.llm.governor import Governor

FORMS = {"requests": "requests_per_minute", "tokens": "tokens_per_minute", "places": "max_concurrency"}
MEAN_BYTES, ANSWER = 4000, 20  # of a request; tokens of the plain answer
WINDOW = 2  # seconds over which settled use is within a tenth of the limit, with under 5% refused


class Asker:
    """A judge actor that asks without end."""

    def __init__(self, config: Config, keeper: Any, seed: int) -> None:
        self._config, self._keeper, self._rng = config, keeper, random.Random(seed)

    async def ask(self, seconds: float, callers: int) -> tuple[float, float]:
        """Ask with so many callers; returns seconds that calls waited for leave, and then held it."""
        judge = self._config.judge
        governor = shared.governor(judge, remote=True)
        beats = asyncio.create_task(governor.beats(shared.asking(self._keeper)))
        client = Client(judge, None, governor)
        tasks = [asyncio.create_task(self._call(client)) for _ in range(callers)]
        await asyncio.sleep(seconds)
        for task in [*tasks, beats]:
            task.cancel()
        await asyncio.gather(*tasks, beats, return_exceptions=True)
        await client.close()
        return governor.waited, governor.held

    async def _call(self, client: Client) -> None:
        while True:
            size = int(self._rng.uniform(0.5, 1.5) * MEAN_BYTES)
            content = f"{self._rng.random()} " + "x" * size
            body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": content}]})
            try:
                await client.post(
                    "/chat/completions", body, "bench/0/x/0", lambda *_: None, tokens=len(body) // 4 + ANSWER
                )
            except GaveUp:
                continue


def measured(arguments: argparse.Namespace, form: str, actors: int) -> str:
    """One run, as a row of the table."""
    import ray

    phase, rate = arguments.phase, arguments.rate
    mean = MEAN_BYTES / 4 + 25
    whole = {"requests": rate * 60, "tokens": rate * 60 * mean, "places": rate * arguments.latency}[form]
    schedule = f"{whole}@0,{whole / 2}@{phase},{whole}@{2 * phase}"
    knobs: dict[str, Any] = {
        FORMS[form]: schedule,
        "retry_after": arguments.retry_after,
        "headers": arguments.headers,
    }
    with simulated.running(latency=arguments.latency, plain=True, **knobs) as url:
        tree = {
            "run_dir": f"bench-{form}-{actors}",
            "judge": {"model": "m", "base_url": url, "concurrency": 512},
        }
        config = Config.model_validate(tree)
        keeper = shared.keeper(config)
        actor: Any = ray.remote(Asker).options(num_cpus=0)
        askers = [actor.remote(config, keeper, seed) for seed in range(actors)]
        callers = max(50, 400 // actors)
        times = ray.get([asker.ask.remote(3 * phase, callers) for asker in askers])
        with urllib.request.urlopen(url.removesuffix("/v1") + "/v1/stats") as reply:  # noqa: S310 - loopback
            seconds = json.load(reply)["seconds"][: 3 * phase]
        for asker in askers:
            ray.kill(asker)
        ray.kill(keeper)
    return _row(form, actors, seconds, times, arguments)


def _row(form: str, actors: int, seconds: list[Any], times: list[Any], arguments: argparse.Namespace) -> str:
    phase, rate = arguments.phase, arguments.rate
    limit = [rate / 2 if phase <= i < 2 * phase else rate for i in range(len(seconds))]
    came, _, refused = (sum(second[i] for second in seconds) for i in range(3))
    settled = [_settled(seconds, limit, change) for change in (0, phase, 2 * phase)]
    waited, held = (sum(one[i] for one in times) for i in range(2))
    words = " / ".join("-" if one is None else f"{one} s" for one in settled)
    return (
        f"| {form} | {actors} | {rate:g} | {(came - refused) / sum(limit):.3f} | {refused / came:.4f} "
        f"| {words} | {waited / (waited + held):.3f} |"
    )


def _settled(seconds: list[Any], limit: list[float], change: int) -> int | None:
    for start in range(change, len(seconds) - WINDOW):
        window = seconds[start : start + WINDOW]
        came, refused = sum(s[0] for s in window), sum(s[2] for s in window)
        allowed = sum(limit[start : start + WINDOW])
        if 0.9 <= (came - refused) / allowed <= 1.15 and refused <= 0.05 * came:
            return start - change
    return None


def overhead(calls: int = 50_000) -> float:
    """Microseconds of CPU that leave takes a call, when none has to wait."""

    async def work() -> float:
        governor, headers = Governor(64), {"content-type": "application/json"}
        for _ in range(100):
            async with governor.permit(100) as permit:
                permit.succeeded(100, headers)
        began = time.process_time()
        for _ in range(calls):
            async with governor.permit(100) as permit:
                permit.succeeded(100, headers)
        return (time.process_time() - began) / calls * 1e6

    return asyncio.run(work())


def main() -> None:
    """Run what is asked for and print the table."""
    import ray

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--phase", type=int, default=45, help="seconds until the limit changes")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second that are allowed")
    parser.add_argument("--latency", type=float, default=0.2)
    parser.add_argument("--retry-after", action="store_true", help="the endpoint says when to come back")
    parser.add_argument("--headers", action="store_true", help="the endpoint names its limits")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} CPUs, {platform.machine()}, Python {platform.python_version()}")
    print(f"leave for a call that need not wait: {overhead():.1f} µs of CPU\n", flush=True)
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    print("| limit of | actors | allowed/s | used | refused | settled: start / halved / doubled | waiting |")
    print("|---|---|---|---|---|---|---|")
    for form in arguments.forms:
        for actors in arguments.actors:
            print(measured(arguments, form, actors), flush=True)


if __name__ == "__main__":
    main()
