"""What came out of a comparison: read from its run directories, written as one, shown."""

import json
from collections.abc import Callable, Mapping, Set
from statistics import fmean
from typing import Any, NamedTuple

from lr_ray import benchmark_runs, data, evaluation, redact
from lr_ray.compare import benchmarks, table
from lr_ray.compare.entries import against, entries, names
from lr_ray.config import Config
from lr_ray.statistics import mean_interval
from lr_ray.store import Store

RESULT = "compare.json"
LENGTH = "answer length (characters)"

Score = Callable[[str, str], float]
"""A metric that needs no judge: (prompt id, answer) → value."""


class Gathered(NamedTuple):
    """What was measured of the model before, and of each run with each seed, on the prompts `held_out`."""

    before: table.Measured
    runs: dict[str, list[table.Measured]]
    held_out: set[str]


def gathered(config: Config, scores: Mapping[str, Score] | None = None) -> Gathered:
    """The values of every metric and held-out prompt of the config, with `scores` as more metrics."""
    base, more, ids = Store(config.run_dir), scores or {}, _held_out(config)
    runs: dict[str, list[table.Measured]] = {name: [] for name in names(config)}
    for entry in entries(config):
        runs[entry.name].append(measured(entry.store(base).sub("evaluation", "after"), more, ids))
    return Gathered(measured(base.sub("evaluation", "before"), more, ids), runs, ids)


def _held_out(config: Config) -> set[str]:
    """The ids of the prompts that the config names now; run directories may hold rows of others."""
    named = config.evaluation.prompts
    return {pointer.prompt_id for pointer in data.scan(named)} if named else set()


def written(config: Config, scores: Mapping[str, Score] | None = None) -> dict[str, Any]:
    """Compare what is evaluated, with `scores` as more metrics, and write `compare.json`.

    Returns:
        What is written: `before` has the model before, `runs` what each was trained on, `table` the
        metrics as `table.table` gives them; `against` is the run that the others are compared with.
    """
    base, found = Store(config.run_dir), gathered(config, scores)
    about: dict[str, list[dict[str, Any]]] = {name: [] for name in names(config)}
    for entry in entries(config):
        about[entry.name].append({"seed": entry.seed, **_about(entry.store(base))})
    result = {
        "prompts": max((len(values) for values in found.before.values()), default=0),
        "n": config.evaluation.n,
        "against": against(config),
        "before": {metric: mean_interval(values.values()) for metric, values in found.before.items()},
        "runs": [
            {"name": name, "changes": redact.shown(dict(changes)), "seeds": about[name]}
            for name, changes in names(config).items()
        ],
        "table": table.table(found.before, found.runs, against(config))
        + _benchmarks(config, base, found.held_out),
    }
    base.write(json.dumps(result, indent=2).encode(), RESULT)
    return result


def _benchmarks(config: Config, base: Store, held_out: Set[str]) -> list[dict[str, Any]]:
    """The benchmarks' rows, by metric as the others are."""
    todo, chosen = entries(config), against(config)
    found = [(entry.name, entry.store(base), benchmarks.own(entry.store(base))) for entry in todo]
    stores = {(e.name, e.seed): store for e, (_, store, told) in zip(todo, found, strict=True) if told}
    if not stores:
        return []
    cases = benchmark_runs.prepare(config, next(iter(stores.values()))).cases
    rows: list[dict[str, Any]] = []
    for name in names(config):
        own = {seed: store for (run, seed), store in stores.items() if run == name}
        together = benchmarks.before(config, base, [*own.values()], cases, held_out) if len(own) > 1 else {}
        pairs = [(stores[chosen, seed], own[seed]) for seed in own if (chosen, seed) in stores]
        others = benchmarks.against(config, pairs, cases) if pairs and name != chosen else {}
        rows += benchmarks.rows(name, [told for run, _, told in found if run == name], together, others)
    order = list(dict.fromkeys(row["metric"] for row in rows))
    return sorted(rows, key=lambda row: order.index(row["metric"]))


def measured(there: Store, scores: Mapping[str, Score], ids: Set[str]) -> table.Measured:
    """Metric → prompt id → mean over the answers of one model to that prompt, of those of `ids`."""
    found = evaluation.judged_means(there, ids)[0]
    texts = {
        row["prompt_id"]: [one["text"] for one in row["candidates"]]
        for row in there.rows("sampled", ["prompt_id", "candidates"])
        if row["prompt_id"] in ids
    }
    more: dict[str, Score] = {LENGTH: lambda _, text: float(len(text)), **scores}
    for metric, score in more.items():
        found[metric] = {key: fmean(score(key, one) for one in answers) for key, answers in texts.items()}
    return found


def _about(store: Store) -> dict[str, Any]:
    """What a training learned from; None where that is not known."""
    audit = json.loads(store.read("pairs.json") or b"{}")
    lines = (store.read("metrics.jsonl") or b"").splitlines()
    last = json.loads(lines[-1]) if lines else {}
    evaluated = json.loads(store.read("evaluation.json") or b"{}")
    return {
        "pairs": audit.get("pairs"),
        "dropped": audit.get("dropped", {}),
        "rows": last.get("rows"),
        "rows_left_out": last.get("rows_left_out"),
        "steps": last.get("step"),
        "failed": sum(evaluated.get("failed", {}).values()),
    }


def show(result: Mapping[str, Any]) -> None:
    """The comparison as a table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=f"{result['prompts']} held-out prompts, {result['n']} answers each; 95% intervals")
    for column in ("", "run", "pairs", "mean", "against the model before", f"against {result['against']}"):
        shown.add_column(column, justify="left" if column in ("", "run") else "right")
    pairs = {one["name"]: _counts(one["seeds"]) for one in result["runs"]}
    last = ""
    for row in result["table"]:
        if row["metric"] != last:
            shown.add_section()
            shown.add_row(_shown(row["metric"]), "before", "", _number(row["before"]["before"]))
        last = row["metric"]
        texts = (table.difference(row[key]) for key in ("before", "against"))
        shown.add_row("", row["run"], pairs[row["run"]], _number(row["mean"]), *texts)
    Console(markup=False, emoji=False).print(shown)


def _shown(name: str) -> str:
    """A name from the data without what a terminal would obey."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in name)


def _counts(seeds: list[dict[str, Any]]) -> str:
    counts = [seed["rows"] if seed["pairs"] is None else seed["pairs"] for seed in seeds]
    return " ".join(sorted({"–" if count is None else f"{count:.0f}" for count in counts}))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
