"""With which settings a run directory's documents were read and its questions written.

They are kept beside the rows, since the run's `config.yaml` is that of whichever verb ran last.
"""

import hashlib
import json
from importlib.resources import files
from typing import Any

from lr_ray import redact
from lr_ray.config import Config
from lr_ray.store import Store
from lr_ray.synthesis.questions import PACKAGE

FILE = "synthesis-settings.json"
PROMPTS = "prompts"
OF_READING = {"synthesis": {"documents", "max_document_mb"}, "judge": {"tokenizer"}}
OF_ROWS = {
    "synthesis": {
        *("contexts", "lengths", "multi_document", "questions", "kinds", "keep", "unanswerable"),
        *("closed_book", "duplicate", "seed"),
    },
    "judge": {"model", "max_tokens", "structured_output", "parameters"},
}


def claim(config: Config, store: Store, *, read: bool, write: bool = True) -> None:
    """Keep the settings, or refuse those that contradict what is there.

    Args:
        config: with the judge section that says who writes.
        store: the run directory.
        read: whether its documents were read already.
        write: whether to keep them.

    Raises:
        ValueError: the documents were read, or questions written, with other settings.
    """
    before = json.loads(store.read(FILE) or b"{}")
    now = _of(config, OF_READING) | _of(config, OF_ROWS) | {PROMPTS: _prompts_hash()}
    binding = (set(_of(config, OF_READING)) if read else set()) | (
        now.keys() if store.files("synthesized") else set()
    )
    for key in sorted(binding & before.keys()):
        if before[key] != now[key] and key == PROMPTS:
            raise ValueError(
                f"{config.run_dir} holds questions written with the prompts of another version of lr-ray: "
                "use another run_dir, or that version"
            )
        if before[key] != now[key]:
            raise ValueError(
                f"{config.run_dir} holds documents or questions made with {key}={before[key]!r}; "
                f"the config now says {now[key]!r}: use another run_dir"
            )
    if write:
        store.write(json.dumps(now, indent=2).encode(), FILE)


def _of(config: Config, keys: dict[str, set[str]]) -> dict[str, Any]:
    tree = redact.config(config.model_dump(mode="json"))
    return {f"{section}.{key}": tree[section][key] for section, names in keys.items() for key in names}


def _prompts_hash() -> str:
    folder = files(PACKAGE) / "prompts"
    texts = sorted((file.name, file.read_text(encoding="utf-8")) for file in folder.iterdir())
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()
