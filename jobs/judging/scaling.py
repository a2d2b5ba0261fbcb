"""Rows a second of the judge stage on Ray Data, by the number of its actors."""

import time
from dataclasses import asdict, dataclass
from typing import Any

from jobs.judging import workload
from lr_ray import rows
from lr_ray.config import Config
from lr_ray.judge.actor import judge_stage
from lr_ray.llm import records
from lr_ray.store import Store

ROUNDS = 8  # rows that each place of an actor judges
ROW = {"context_tokens": 3000, "candidates": 4, "sentences": 4}
FULL = 0.95  # of the places taken: from the first to the last such moment is measured


@dataclass
class Scaling:
    """`in_flight` is the most rows at once; `efficiency` against the smallest number of actors; `hosts` are
    those that actors ran on."""

    actors: int
    latency: float
    rows: int
    in_flight: int
    rows_a_second: float
    calls_a_second: float
    seconds: float
    hosts: list[str]
    efficiency: float = 0.0


def measure(
    base_urls: list[str], run_dir: str, actors: int, latency: float, in_flight: int, model: str
) -> Scaling:
    """The rate while all actors work: their start, and the end when some have run out of rows, left out."""
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    made = workload.rows(actors, ROUNDS * actors * in_flight, **ROW)
    urls = base_urls[0] if len(base_urls) == 1 else base_urls
    judge = {"model": model, "base_url": urls, "actors": actors, "rows_in_flight": in_flight}
    judge["concurrency"] = 64 * actors
    folder = f"{run_dir}/{actors}-{time.time_ns()}"
    config = Config.model_validate({"run_dir": folder, "judge": judge})
    packed = [dict(rows.pack("sampled", row)) for row in made]
    dataset = ray.data.from_items(packed, override_num_blocks=len(packed))
    out: Any = judge_stage(dataset, config, Store(folder)).iter_rows()
    judged = [rows.unpack(row) for row in out]
    if any("judged_at" not in row for row in judged):
        raise RuntimeError(f"not all rows were judged, the first of the others: {judged[0].get('reason')}")
    most, start, end = full(judged, actors * in_flight)
    within = [row for row in judged if start < row["judged_at"] <= end]
    calls = sum(row["usage"]["calls"] for row in within)
    seconds = max(end - start, 1e-9)
    # A segment of the ledger is named by its writer's host.
    hosts = sorted({name.rsplit("-", 2)[0] for name in Store(folder).files(records.FOLDER, records.SUFFIX)})
    return Scaling(actors, latency, len(judged), most, len(within) / seconds, calls / seconds, seconds, hosts)


def full(judged: list[Any], places: int) -> tuple[int, float, float]:
    """Most rows in flight at once, and between which moments at least 95% of the places (of these) were."""
    events = sorted(
        [(row["first_call_at"], 1) for row in judged] + [(row["judged_at"], -1) for row in judged]
    )
    level, levels = 0, []
    for at, step in events:
        level += step
        levels.append((at, level))
    most = max(level for _, level in levels)
    busy = [at for at, level in levels if level >= FULL * min(most, places)]
    return most, busy[0], busy[-1]


def sweep(
    base_urls: list[str], run_dir: str, actors: list[int], latency: float, in_flight: int, model: str
) -> list[dict[str, Any]]:
    """A measurement for each number of actors, with its efficiency against the first."""
    found = [measure(base_urls, run_dir, count, latency, in_flight, model) for count in actors]
    for one in found:
        one.efficiency = one.rows_a_second / found[0].rows_a_second * actors[0] / one.actors
    return [asdict(one) for one in found]
