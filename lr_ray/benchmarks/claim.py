"""With which prompts a run directory's answers were graded, and what its comparisons were shown.

Both are kept beside the rows, since the run's `config.yaml` is that of whichever verb ran last.
"""

import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files

from lr_ray.benchmarks.grading import PACKAGE
from lr_ray.config import Config
from lr_ray.judge import direct
from lr_ray.store import Store

FILE = "grading.json"
HELD_OUT = "held-out prompts"
"""What these are called among the benchmarks."""
WINS = "wins"


def claim(config: Config, store: Store) -> None:
    """Keep prompts and settings of all grades and comparisons, or refuse those that contradict what is there.

    Raises:
        ValueError: answers were graded with other prompts, or compared with more or less to be seen.
    """
    evaluation = config.evaluation
    shown = {one.label: one.win_rate for one in evaluation.benchmarks if one.win_rate}
    if evaluation.win_rate:
        shown[HELD_OUT] = evaluation.win_rate
    if not (evaluation.benchmarks or shown):
        return
    before = json.loads(store.read(FILE) or b"{}")
    now, graded = prompts_hash(), set(_graded(store))
    if graded and before.get("prompts", now) != now:
        raise ValueError(
            f"{config.run_dir} holds answers graded with the prompts of another version of lr-ray: "
            "use another run_dir, or that version"
        )
    was_shown = before.get("win_rate", {})
    for label, sees in shown.items():
        if WINS in graded and was_shown.get(label, sees) != sees:
            raise ValueError(
                f"{label}: {config.run_dir} holds comparisons made with win_rate={was_shown[label]!r}; "
                f"the config now says {sees!r}: use another run_dir"
            )
    kept = {"prompts": now, "win_rate": {**was_shown, **shown}}
    store.write(json.dumps(kept, indent=2).encode(), FILE)


def _graded(store: Store) -> Iterator[str]:
    """The folders of evaluations that hold grades, of a comparison's runs too."""
    for run in (store, *(store.sub("compare", name) for name in store.folders("compare"))):
        yield from (name for name in run.folders("evaluation") if run.files(f"evaluation/{name}/graded"))


def prompts_hash() -> str:
    """A hash of all prompts that grades and comparisons rest on."""
    folder = files(PACKAGE) / "prompts"
    texts = sorted((file.name, file.read_text(encoding="utf-8")) for file in folder.iterdir())
    return hashlib.sha256(json.dumps([*texts, direct.prompts_hash()]).encode()).hexdigest()
