"""Metrics and logs of a judge stage through a real Ray, scraped over HTTP as Prometheus does."""

import json
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lr_ray import metrics, rows, schemas, simulated
from lr_ray.config import Config
from lr_ray.judge.answers import SCHEMAS
from lr_ray.store import Store
from tests.sampled_row import sampled_row

CONTEXT = "Mira keeps copper. Toben keeps salt. The mill stands near the river. " * 4


def series(text: str, run: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """A Prometheus page: (name, our labels) → value, of the metrics of our run `run`."""
    ours = {"run", *(tag for metric in metrics.METRICS.values() for tag in metric.tags)}
    found = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(ray_lr_\w+)\{(.*)\} (\S+)", line)
        if match and f'run="{run}"' in match[2]:
            labels = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2])
            key = (match[1], frozenset((name, value) for name, value in labels if name in ours))
            assert key not in found, "two series where one is meant"
            found[key] = float(match[3])
    return found


Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def logged(run: str) -> list[dict[str, Any]]:
    """The events of the run in the logs of Ray's session."""
    from ray._private.worker import _global_node

    files = Path(_global_node.get_logs_dir_path()).glob("worker-*.err")  # type: ignore[union-attr]
    found = [line for file in files for line in file.read_text().splitlines() if f'"{run}"' in line]
    return [json.loads(line) for line in found]


def scraped(run: str, until: Callable[[Page], bool]) -> Page:
    """The run's metrics on the one node's page when they are as they should be, or after 40 s.

    Ray brings news every 10 s.
    """
    import ray

    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    page: Page = {}
    end = time.monotonic() + 40
    while time.monotonic() < end and not until(page):
        with urllib.request.urlopen(url, timeout=10) as reply:
            page = series(reply.read().decode(), run)
        time.sleep(0.5)
    return page


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_real_ray_shows_what_a_judge_stage_did(tmp_path: Path) -> None:
    import ray.data

    from lr_ray import pipeline, runtime
    from lr_ray.judge.actor import judge_stage
    from lr_ray.llm import shared

    texts = ["Mira keeps copper. Toben keeps salt.", "Mira keeps copper.", ""]
    packed = [rows.pack("sampled", sampled_row(f"p{i}", CONTEXT, "Who?", texts)) for i in range(6)]
    prices = {"prompt": 1.0, "completion": 3.0}
    run = metrics.run_label(str(tmp_path))
    store = Store(str(tmp_path))
    with simulated.running() as url:
        asked = {"model": "sim", "base_url": url, "concurrency": 9, "prices": prices, "budget": 100.0}
        config = Config.model_validate({"run_dir": str(tmp_path), "judge": {**asked, "actors": 2}})
        with runtime.watch(config.judge.prices, run) as watch:
            dataset = judge_stage(ray.data.from_items(packed), config, store, watch.tally)
            judged: list[Any] = [rows.unpack(row) for row in dataset.take_all()]
            store.write_rows("judged", judged, schemas.JUDGED)
            pipeline.Run(config, watch).pairs()

            def get(page: Page, name: str, **labels: str) -> float:
                return page.get((name, frozenset({"run": run, **labels}.items())), 0.0)

            def complete(page: Page) -> bool:
                done = get(page, "ray_lr_prompts_total", outcome="judged") == 6
                done = done and get(page, "ray_lr_candidates_total") == 7
                return done and get(page, "ray_lr_pairs", outcome="too few scored candidates") == 6

            def shown(page: Page) -> bool:
                return any(name == "ray_lr_use" for name, _ in page)

            limits = scraped(run, shown)
            watch.tally.add.remote({"candidates": 7})
        # The tally is gone, and nothing it knew is lost.
        page = scraped(run, complete)
        shared.release()
        with urllib.request.urlopen(f"{url}/stats") as reply:  # noqa: S310 - loopback
            requests = json.load(reply)["requests"]
    assert complete(page)
    events = [(line["event"], line["prompt_id"]) for line in logged(run)]
    assert sorted(events) == [("judged", f"p{i}") for i in range(6)]
    paid = {
        name: sum(row["usage"][name] for row in judged)
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens")
    }
    calls = {dict(labels)["kind"]: v for (name, labels), v in page.items() if name == "ray_lr_calls_total"}
    assert calls.keys() == set(SCHEMAS)
    assert sum(calls.values()) == requests == sum(row["usage"]["calls"] for row in judged)
    assert get(page, "ray_lr_tokens_total", part="cached") == paid["cached_tokens"]
    fresh = paid["prompt_tokens"] - paid["cached_tokens"]
    assert get(page, "ray_lr_tokens_total", part="prompt") == fresh
    assert get(page, "ray_lr_tokens_total", part="completion") == paid["completion_tokens"]
    money = (paid["prompt_tokens"] + 3 * paid["completion_tokens"]) / 1e6
    assert get(page, "ray_lr_money_total") == pytest.approx(money)
    assert 100 - money - 1e-9 <= get(limits, "ray_lr_budget_left") <= 100
    unscored = get(page, "ray_lr_unscored_total", dimension="faithfulness", reason="no_statements")
    assert unscored == 6
    assert 0 < get(limits, "ray_lr_limit", replica="0", what="in flight") <= 9
    assert get(limits, "ray_lr_use", replica="0", what="requests a second") >= 0
    assert ("what", "requests a second") not in {
        label for name, labels in limits if name == "ray_lr_limit" for label in labels
    }
    assert get(page, "ray_lr_call_seconds_total", state="held") > 0
