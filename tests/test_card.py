import json
from pathlib import Path
from typing import Any

import yaml

from lr_ray import card
from lr_ray import config as configs
from lr_ray.config import Config
from lr_ray.store import Store

ROW = {
    "metric": "reward",
    "before": 5.0,
    "after": 6.5,
    "difference": 1.5,
    "low": 1.2,
    "high": 1.8,
    "prompts": 9,
}


def made(folder: Path, **changes: Any) -> str:
    """The card of a run with these settings, as it lies in the model's folder."""
    store = Store(str(folder))
    tree = {
        "run_dir": str(folder),
        "data": {"prompts": ["prompts.jsonl"]},
        "sampling": {"model": "/models/base-8b"},
        "judge": {"model": "judge|`x`\n# not a heading"},
        "evaluation": {"prompts": ["held_out.jsonl"]},
        **changes,
    }
    store.write(configs.dump(Config.model_validate(tree)).encode(), "config.yaml")
    store.write(b"{}", "model", "config.json")
    audit = {"prompts": 20, "pairs": 12, "dropped": {"tie": 8}, "rules": {}}
    store.write(json.dumps(audit).encode(), "pairs.json")
    store.write(b'{"step": 7, "rows": 11, "rows_left_out": 1}\n', "metrics.jsonl")
    card.write(store)
    written = store.read("model", "README.md")
    assert written
    return written.decode()


def test_the_card_says_from_what_on_what_how_and_with_what_result(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write(json.dumps({"table": [ROW], "prompts": 9, "n": 4}).encode(), "evaluation.json")
    text = made(tmp_path)
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == "/models/base-8b"
    assert "12 pairs of 20 judged prompts, 8 tie" in text
    assert "11 rows learned from, 1 left out as too long, 7 optimizer steps" in text
    assert "| beta | 0.15 |" in text
    assert "| reward | 5.00 | 6.50 | +1.50 (1.20 … 1.80) |" in text
    assert "`judge  x  # not a heading`" in text
    assert "\n# not a heading" not in text


def test_sft_has_no_pairs_and_an_unevaluated_model_no_results(tmp_path: Path) -> None:
    training = {"method": "sft", "data": ["chat.jsonl"], "lora": {"r": 8}}
    text = made(tmp_path, training=training)
    assert "supervised fine-tuning" in text
    assert "`chat.jsonl`" in text
    assert "pairs" not in text
    assert "| lora | {'r': 8} |" in text
    assert "Results" not in text


def test_the_card_names_what_was_mixed_in_and_the_whole_loss(tmp_path: Path) -> None:
    training = {"mix": {"data": ["short.jsonl"], "ratio": 0.25}, "label_smoothing": 0.1, "margin_scale": 2.0}
    text = made(tmp_path, training=training)
    assert "- `short.jsonl`: short-context pairs, 25% of an epoch" in text
    assert "| label_smoothing | 0.1 |" in text
    assert "| margin_scale | 2.0 |" in text


def test_without_a_model_there_is_no_card(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write(b"training: {}", "config.yaml")
    card.write(store)
    assert not store.exists("model")
