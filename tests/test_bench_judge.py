"""The judge's benchmark, in small: its parts run and their figures are what they say."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import bench_judge
from jobs.judging import prefix_cache, workload
from jobs.judging.prefix_cache import Cache


def test_rows_follow_from_the_seed_and_share_documents() -> None:
    made = workload.rows(3, 4, 4000, candidates=3, sentences=4, questions=2)
    assert made == workload.rows(3, 4, 4000, candidates=3, sentences=4, questions=2)
    assert made != workload.rows(4, 4, 4000, candidates=3, sentences=4, questions=2)
    assert [row["context"] == made[0]["context"] for row in made] == [True, True, False, False]
    assert len({row["question"] for row in made}) == 4
    assert all(16000 <= len(row["context"]) < 16200 for row in made)
    assert all(len(row["candidates"]) == 3 for row in made)


def test_a_full_cache_drops_what_was_used_least_lately_and_ends_before_beginnings() -> None:
    cache = Cache(4)
    cache.add([1, 2, 3])
    cache.add([7, 8])
    assert cache.hits([1, 2, 3]) == 2
    assert cache.hits([7, 8]) == 2
    cache.add([9])
    assert cache.hits([1, 2]) == 1
    assert cache.hits([5, 1]) == 0


def test_the_model_counts_what_an_unlimited_cache_would_save() -> None:
    settings = bench_judge.Judge(concurrency=4, rows_in_flight=2)
    found = prefix_cache.measure(workload.rows(0, 3, 500, candidates=2), settings, None)
    assert 0 < found.hits == found.possible < found.blocks
    assert found.seconds > 0
    nothing = prefix_cache.measure(workload.rows(0, 3, 500, candidates=2), settings, 0)
    assert (nothing.hits, nothing.possible) == (0, found.possible)


def test_parts_without_ray_run_and_write_their_table(tmp_path: Path) -> None:
    small = ["--rows", "2", "--context-tokens", "1000", "--out", str(tmp_path), "--several", "3"]
    small += ["--questions", "2", "--sizes", "2"]
    bench_judge.main(["--only", "reuse", "statements", "clients", *small])
    found = json.loads((tmp_path / "bench_judge.json").read_text())
    assert found["statements"]["calls"][1] < found["statements"]["calls"][0]
    assert found["statements"]["verdicts"] == 2 * 5 * 10
    assert found["clients"]["lr-ray judge"]["calls_a_second"] > 0
    assert all(0 <= share <= 1 for one in found["reuse"] for share in (*one["late"], *one["server"]))
    text = (tmp_path / "bench_judge.md").read_text()
    assert "cores" in text
    assert "| lr-ray judge |" in text


def test_one_row_takes_at_most_a_quarter_of_one_call_after_another() -> None:
    options: Any = argparse.Namespace(seed=0, base_url=None, model="m")
    found = bench_judge.latency(options)
    assert found["ratio"] < 0.25


@pytest.mark.slow
def test_scaling_over_actors(tmp_path: Path) -> None:
    # A process of its own: it starts a Ray, and this one may have the tests' own.
    small = ["--actors", "1", "2", "--latencies", "0.3", "--rows-in-flight", "2", "--out", str(tmp_path)]
    command = [sys.executable, bench_judge.__file__, "--only", "scaling", *small]
    subprocess.run(command, check=True, timeout=300)
    one, two = json.loads((tmp_path / "bench_judge.json").read_text())["scaling"]
    assert (one["in_flight"], two["in_flight"]) == (2, 4)
    assert two["rows_a_second"] > 1.5 * one["rows_a_second"]


def test_it_runs_as_a_script() -> None:
    assert str(Path(bench_judge.__file__).parents[1]) in sys.path
