"""The trained model's README.md, as model hubs show it: from what, on what, how, with what result.

Written from the run directory alone; what the run has not done is left out.
"""

import json
from typing import Any

import yaml

from lr_ray.store import Store

PAPER = "https://arxiv.org/abs/2410.21252"
LORA = "[LoRA](https://arxiv.org/abs/2106.09685)"
_SETTINGS = {
    "dpo": ("beta", "ce_weight", "ce_normalization", "loss_type", "label_smoothing", "margin_scale"),
    "sft": (),
}
_ALWAYS = (
    "learning_rate",
    "lr_scheduler_type",
    "warmup_ratio",
    "batch_size",
    "epochs",
    "max_steps",
    "max_length",
    "weight_decay",
    "seed",
    "lora",
)


def write(store: Store) -> None:
    """Write `model/README.md` of the run in `store`; without a model or a config nothing is written."""
    saved = store.read("config.yaml")
    if saved is None or not store.exists("model", "config.json"):
        return
    made = text(yaml.safe_load(saved), store).encode()
    if store.read("model", "README.md") != made:
        store.write(made, "model", "README.md")


def text(config: dict[str, Any], store: Store) -> str:
    """The card as Markdown with the front matter of Hugging Face's model cards."""
    training = config["training"]
    start = training["model"] or config["sampling"]["model"]
    tags = ["lr-ray", "longreward", training["method"]]
    front = yaml.safe_dump({"base_model": start, "library_name": "transformers", "tags": tags})
    parts = [
        f"---\n{front}---",
        f"# {_plain(start.rstrip('/').rpartition('/')[2])}, {training['method'].upper()}",
        _made(config, start),
        "## Data\n\n" + "\n".join(f"- {line}" for line in _data(config, store)),
        "## Settings\n\n" + _table(("setting", "value"), _settings(training)),
    ]
    results = _json(store, "evaluation.json")
    if results:
        parts.append(_results(config, results))
    return "\n\n".join(parts) + "\n"


def _made(config: dict[str, Any], start: str) -> str:
    training = config["training"]
    how = "supervised fine-tuning" if training["method"] == "sft" else "preference training (DPO)"
    with_lora = f" with {LORA}" if training.get("lora") else ""
    judge = ""
    if training["method"] == "dpo" and not training["data"]:
        judge = _paired(config)
    return f"Made from `{_plain(start)}` by {how}{with_lora} with lr-ray.{judge}"


def _paired(config: dict[str, Any]) -> str:
    """Where the pairs come from."""
    n, reward = config["sampling"]["n"], config.get("pairs", {}).get("reward", "longreward")
    judged = (
        f"as scored by `{_plain(config['judge']['model'])}` after LongReward ([arXiv 2410.21252]({PAPER}))"
    )
    srm = f"`{_plain(config.get('rewards', {}).get('srm', {}).get('model'))}`"
    how = {
        "longreward": f"are the best and the worst of {n} answers a prompt, {judged}",
        "length": f"are the longest and the shortest of {n} answers a prompt",
        "random": f"are drawn at random from {n} answers a prompt",
        "srm": f"are the best and the worst of {n} answers a prompt, as scored by {srm} without the context",
        "direct": f"are two of {n} answers a prompt drawn at random, compared in one call to a judge",
        "contrast": "are a stronger model's answer over the model's own",
    }
    without = (
        f"are the best and the worst of {n} answers a prompt, {judged} {_plain(reward).replace('_', ' ')}"
    )
    return f" The pairs {how.get(reward, without)}."


def _data(config: dict[str, Any], store: Store) -> list[str]:
    lines = [f"`{_plain(url)}`" for url in config["training"]["data"] or config["data"]["prompts"]]
    pairs = _json(store, "pairs.json")
    if pairs and not config["training"]["data"]:
        drops = "".join(f", {count:,} {_plain(reason)}" for reason, count in sorted(pairs["dropped"].items()))
        lines.append(f"{pairs['pairs']:,} pairs of {pairs['prompts']:,} judged prompts{drops}")
    mix = config["training"].get("mix")
    if mix:
        urls = ", ".join(f"`{_plain(url)}`" for url in mix["data"])
        lines.append(f"{urls}: short-context pairs, {mix['ratio']:.0%} of an epoch")
    last = _last(store)
    if last:
        lines.append(
            f"{last['rows']:,.0f} rows learned from, {last['rows_left_out']:,.0f} left out as too long, "
            f"{last['step']:,.0f} optimizer steps"
        )
    return lines


def _settings(training: dict[str, Any]) -> list[tuple[str, str]]:
    names = (*_SETTINGS[training["method"]], *_ALWAYS)
    return [(name, _plain(training[name])) for name in names if training.get(name) is not None]


def _results(config: dict[str, Any], results: dict[str, Any]) -> str:
    rows = [
        (
            _plain(row["metric"]),
            *(f"{row[side]:.2f}" for side in ("before", "after")),
            f"{row['difference']:+.2f}" + _interval(row),
        )
        for row in results["table"]
        if row.get("difference") is not None
    ]
    where = ", ".join(f"`{_plain(url)}`" for url in config["evaluation"]["prompts"])
    held_out = f"{results['prompts']:,} held-out prompts ({where})" if where else ""
    tests = ", ".join(f"`{_plain(name)}`" for name in results.get("benchmarks") or {})
    said = (
        f"{' and '.join(filter(None, (held_out, tests)))}, {results['n']} answers each, before against "
        "after; the paired difference with its 95% interval over prompts (bootstrap). The judge is the one "
        "that made the pairs, where it made them."
    )
    return f"## Results\n\n{said}\n\n" + _table(("metric", "before", "after", "difference"), rows)


def _interval(row: dict[str, Any]) -> str:
    return "" if row["low"] is None or row["high"] is None else f" ({row['low']:.2f} … {row['high']:.2f})"


def _table(head: tuple[str, ...], rows: list[Any]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: Any) -> str:
    """A value as text that cannot leave its place in a table or a code span, at most 300 characters."""
    flat = " ".join(str(value).split())[:300]
    for mark in "|`<>[]":
        flat = flat.replace(mark, " ")
    return flat


def _json(store: Store, name: str) -> Any:
    written = store.read(name)
    return json.loads(written) if written else None


def _last(store: Store) -> dict[str, Any] | None:
    lines = (store.read("metrics.jsonl") or b"").splitlines()
    return json.loads(lines[-1]) if lines else None
