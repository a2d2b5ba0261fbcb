"""How far the judge agrees with labelled pairs, through the same judging as everything else.

    agreement.pairs ─► agreement/input/ ─► agreement/judged/ ─► agreement/outcomes.jsonl, agreement.json

A prompt's answers are one row. Pairs without a context are judged in agreement/short/ on the dimensions that
need none; further judgings lie in agreement/repeat-K/ (and -short/), direct calls in agreement/direct-HASH/.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson

from lr_ray.agreement import cases, direct, figures, inputs
from lr_ray.agreement.cases import REWARD, Case, Judged
from lr_ray.agreement.inputs import Item
from lr_ray.agreement.table import render as render
from lr_ray.config import Config
from lr_ray.data import Pointer
from lr_ray.labelled import FOLDER, OUTCOMES, Labels
from lr_ray.llm.calls import NEW_SAMPLE_TEMPERATURE
from lr_ray.retry import failures
from lr_ray.retry import retry as take_up
from lr_ray.rollout import rollout
from lr_ray.runtime import Watch
from lr_ray.store import Store

RESULT = "agreement.json"


class Part(NamedTuple):
    """One judging of the prompts with a context, or of those without one."""

    judging: int
    name: str
    config: Config
    store: Store
    pointers: list[Pointer]


def agree(
    config: Config, store: Store, labels: Labels, watch: Watch, *, retry: bool = False
) -> dict[str, Any]:
    """Judge the labelled answers as far as they are not, compare with the labels, write `agreement.json`.

    With `retry` what failed is taken up again.

    Returns:
        What is written; see `figures.figures`. `failed` counts rows that failed for good.

    Raises:
        ValueError: a prompt was judged with other answers.
        Stopped: the judge stopped early; what was paid for is kept.
    """
    settings, there = config.agreement, store.sub(FOLDER)
    items = inputs.write(there, labels, settings.seed, config.judge.tokenizer, seen(there))
    failed = sum(_judge(part, watch, retry=retry) for part in parts(config, there, items))
    if settings.direct:
        failed += direct.compare(config, there, items, watch, retry=retry)
    found = list(_cases(config, there, items))
    said = direct.said(there) if settings.direct else None
    other = _other(settings.other) if settings.other else None
    result = {
        "judge": config.judge.model,
        **figures.figures(found, said, other),
        "unlabelled": labels.unlabelled,
        "failed": failed,
        "other": settings.other,
        "seed": settings.seed,
    }
    lines = (orjson.dumps(_line(case), option=orjson.OPT_APPEND_NEWLINE) for case in found)
    there.write(b"".join(lines), OUTCOMES)
    store.write(orjson.dumps(result, option=orjson.OPT_INDENT_2), RESULT)
    return result


def seen(there: Store) -> set[str]:
    """The prompts that any judging or direct call has looked at."""
    places = [there, *(there.sub(name) for name in there.folders("."))]
    return {one for place in places for kind in ("judged", "preferred") for one in place.index(kind)}


def parts(config: Config, there: Store, items: list[Item]) -> Iterator[Part]:
    """All judgings that the config asks for."""
    long = [item.pointer for item in items if not item.short]
    short = [item.pointer for item in items if item.short]
    judge = config.judge
    for number in range(config.agreement.repeats + 1):
        place, name, parameters = there, "agreement", judge.parameters
        if number:
            place, name = there.sub(f"repeat-{number}"), f"agreement, judging {number + 1}"
            # What the config says goes first: an endpoint may refuse either.
            parameters = {"temperature": NEW_SAMPLE_TEMPERATURE, "seed": number, **parameters}
        of_part = judge.model_copy(update={"parameters": parameters})
        if long:
            yield Part(number, name, config.model_copy(update={"judge": of_part}), place, long)
        if short:
            of_part = of_part.model_copy(update={"weights": cases.contextless(judge.weights)})
            alone = config.model_copy(update={"judge": of_part})
            kept = there.sub(f"repeat-{number}-short" if number else "short")
            yield Part(number, f"{name}, without context", alone, kept, short)


def _judge(part: Part, watch: Watch, *, retry: bool) -> int:
    if retry and any(failures(part.store)):
        return take_up(part.config, part.store, part.pointers, watch, part.name)["failed"]
    return rollout(part.config, part.store, part.pointers, watch, sample=False, name=part.name)["failed"]


def lost(store: Store) -> bool:
    """Whether rows of an agreement have failed for good."""
    there = store.sub(FOLDER)
    places = [there, *map(there.sub, store.folders(FOLDER))]
    return any(
        place.index("failed").keys() - place.index("judged").keys() - place.index("preferred").keys()
        for place in places
    )


def _cases(config: Config, there: Store, items: list[Item]) -> Iterator[Case]:
    judgings: list[Judged] = [{} for _ in range(config.agreement.repeats + 1)]
    for part in parts(config, there, items):
        judgings[part.judging] = {**judgings[part.judging], **cases.judging(part.store)}
    said = direct.said(there) if config.agreement.direct else None
    return cases.cases(items, judgings, said, config.judge.weights)


def _line(case: Case) -> dict[str, Any]:
    """A labelled pair as the report and other runs read it."""
    chosen = case.choices[REWARD]
    return {
        "key": case.key,
        "prompt_id": case.item.prompt_id,
        "subset": case.label.subset,
        "tokens": case.item.tokens,
        "chosen": case.label.chosen,
        "rejected": case.label.rejected,
        "lengths": case.item.lengths,
        "rewards": list(case.values[REWARD]),
        "choice": case.item.hashes[chosen] if isinstance(chosen, int) else chosen,
        "outcomes": case.outcomes,
    }


def _other(url: str) -> dict[str, str]:
    """Another run's choices by key, where it has made one."""
    content = Store(url).read(FOLDER, OUTCOMES) or b""
    rows = [orjson.loads(line) for line in content.splitlines()]
    return {row["key"]: row["choice"] for row in rows if row["choice"] is not None}
