"""Benchmarks of both models: sampled in one go a model, graded, compared, checked for facts.

Each model's answers, grades and paid calls lie in `evaluation/benchmarks_SIDE`, verdicts on their facts in
`evaluation/facts_SIDE`, comparisons of the two in `evaluation/wins`. What is there is not made again. Plain
rules are applied anew each time: they cost nothing.
"""

import functools
import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import orjson

from lr_ray import data
from lr_ray.asking import ask_rows
from lr_ray.benchmarks import sets
from lr_ray.benchmarks.case import SECOND, Case
from lr_ray.benchmarks.claim import HELD_OUT, WINS
from lr_ray.benchmarks.comparing import Comparer
from lr_ray.benchmarks.forecast import ONLY_FACTS
from lr_ray.benchmarks.grading import Grader
from lr_ray.config import Config
from lr_ray.retry import settle
from lr_ray.reuse import elsewhere, reusing
from lr_ray.rollout import rollout
from lr_ray.runtime import Watch
from lr_ray.store import Store

CHUNK = 1 << 20  # bytes


class Side(NamedTuple):
    """One of the two models: the config that samples with it, and the run directory its folders lie in."""

    name: str
    config: Config
    store: Store

    @property
    def there(self) -> Store:
        """Its answers, grades and calls."""
        return self.store.sub("evaluation", f"benchmarks_{self.name}")

    @property
    def facts(self) -> Store:
        """Verdicts on its statements."""
        return self.store.sub("evaluation", f"facts_{self.name}")

    @property
    def held_out(self) -> Store:
        """What it answered to the held-out prompts."""
        return self.store.sub("evaluation", self.name)


class Prepared(NamedTuple):
    """Cases without their prompts, and where those were written."""

    cases: list[Case]
    pointers: list[data.Pointer]


def prepare(config: Config, store: Store) -> Prepared:
    """All cases of all benchmarks; their prompts are written where every node can read them.

    Raises:
        ValueError: a benchmark's file, see `sets`.
    """
    found = Prepared([], [])
    for benchmark in config.evaluation.benchmarks:
        for case, pointer in _written(store, benchmark.label, sets.cases(config, benchmark)):
            found.cases.append(case)
            found.pointers.append(pointer)
    return found


def _written(store: Store, label: str, cases: Iterable[Case]) -> Iterator[tuple[Case, data.Pointer]]:
    """The prompts as a file named by their ids: the cases without them, and pointers into it."""
    light: list[Case] = []
    lengths: list[int] = []
    # Through a local file: all contexts of a benchmark are more than need be in memory.
    with tempfile.TemporaryFile() as file:
        for case in cases:
            light.append(case.light())
            lengths.append(file.write(orjson.dumps(case.row()) + b"\n"))
        ids = "\0".join(case.prompt_id for case in light)
        name = f"{label}-{hashlib.sha256(ids.encode()).hexdigest()[:16]}.jsonl"
        folder = store.sub("evaluation", "prompts")
        if not folder.exists(name):
            file.seek(0)
            folder.write(iter(lambda: file.read(CHUNK), b""), name)
    url, start = folder.sub(name).absolute, 0
    for number, (case, length) in enumerate(zip(light, lengths, strict=True), 1):
        yield case, data.Pointer(case.prompt_id, data.Place(url, -1, start, length, number), [])
        start += length


def run(
    sides: list[Side],
    store: Store,
    prepared: Prepared,
    held_out: list[str],
    watch: Watch,
    retry: bool = False,
) -> None:
    """Sample, grade and compare what is not done; with `retry`, take up again what failed.

    `held_out` are the ids of the held-out prompts, which are compared too where the config says so.

    Raises:
        Stopped: the judge stopped early; what was paid for is kept.
    """
    cases = prepared.cases
    if cases:
        for side in lent(sides):
            before = side.there.files("failed")
            try:
                _side(side, prepared, watch, retry)
            finally:
                settle(side.there, before, finished(side, cases))
    _compare(sides, store, cases, held_out, watch, retry)


def lent(sides: Iterable[Side]) -> Iterator[Side]:
    """Each side with what those before it have paid for by the time that it is asked for."""
    paid: list[Store] = []
    for side in sides:
        folders = [f"{kind}_{name}" for kind in ("benchmarks", "facts") for name in ("before", "after")]
        yield side._replace(config=reusing(side.config, [*elsewhere(side.config, folders), *paid]))
        paid += [side.there, side.facts]


def _side(side: Side, prepared: Prepared, watch: Watch, retry: bool) -> None:
    """Sample everything with one start of the engines, second turns with another; then grade."""
    sampling = side.config.sampling.model_copy(update={"truncate": "middle"})
    config = side.config.model_copy(update={"sampling": sampling})
    cases, name = prepared.cases, f"benchmarks, {side.name}"
    rollout(config, side.there, prepared.pointers, watch, judge=False, name=name, retry=retry)
    turns = _second_turns(side, cases)
    if turns:
        rollout(config, side.there, turns, watch, judge=False, name=f"{name}, second turns", retry=retry)
    _grade(side, cases, watch, retry)
    _verify(side, cases, watch, retry)


def _second_turns(side: Side, cases: list[Case]) -> list[data.Pointer]:
    """The next turn of every case that has one and an answer to the first, which is that of number 0."""
    following = [case for case in cases if case.follow_up is not None]
    if not following:
        return []
    answers = answered(side.there, {case.prompt_id for case in following})
    turns = [
        case.then(answers[case.prompt_id][0]["text"])
        for case in following
        if case.prompt_id in answers and answers[case.prompt_id][0]["text"].strip()
    ]
    written = _written(side.store, f"second-turns-{side.name}", turns) if turns else ()
    return [pointer for _, pointer in written]


def answered(store: Store, ids: set[str]) -> dict[str, list[Any]]:
    """Prompt id → the answers sampled there, of those of `ids` that have some."""
    rows = store.rows("sampled", ["prompt_id", "candidates"])
    return {row["prompt_id"]: row["candidates"] for row in rows if row["prompt_id"] in ids}


def _every(cases: list[Case], answers: Mapping[str, list[Any]]) -> list[Case]:
    """The cases and the second turns that there are."""
    return [
        *cases,
        *(
            case.then(answers[case.prompt_id][0]["text"])
            for case in cases
            if case.follow_up is not None and case.prompt_id in answers
        ),
    ]


def _grade(side: Side, cases: list[Case], watch: Watch, retry: bool) -> None:
    ids = {case.prompt_id for case in cases if case.follow_up is not None}
    every = _every(cases, answered(side.there, ids) if ids else {})
    sampled = side.there.index("sampled")
    items = [
        (case.prompt_id, {"place": [*sampled[case.prompt_id]], "case": asdict(case.light())})
        for case in every
        if sets.judged(case) and case.prompt_id in sampled
    ]
    if items:
        load = functools.partial(_graded_row, store=side.there)
        name = f"grading, {side.name}"
        ask_rows(side.config, side.there, items, Grader, watch, load=load, name=name, retry=retry)


def _row(store: Store, place: tuple[str, int]) -> dict[str, Any]:
    name, row = place
    return store.table("sampled", name).slice(row, 1).to_pylist()[0]


def _graded_row(item: dict[str, Any], store: Store) -> dict[str, Any]:
    return {**_row(store, item["place"]), "case": item["case"]}


def _checked(side: Side, cases: list[Case]) -> list[data.Pointer]:
    """Answers whose facts are to be verified, as candidates that were sampled elsewhere."""
    wanted = {b.label for b in side.config.evaluation.benchmarks if b.facts or b.kind == "facts"}
    ids = {case.prompt_id for case in cases if case.benchmark in wanted}
    found = []
    for one, (name, row) in side.there.index("sampled").items():
        if one in ids:
            url = side.there.sub("sampled", name).absolute
            place = data.Place(url, 0, row, 0, row + 1)
            found.append(data.Pointer(one, place, [place]))
    return found


def _verify(side: Side, cases: list[Case], watch: Watch, retry: bool) -> None:
    """Statements and verdicts, by the same judging as all others, without its other dimensions."""
    pointers = _checked(side, cases)
    if pointers:
        weights = side.config.judge.weights.model_copy(update=ONLY_FACTS)
        judge = side.config.judge.model_copy(update={"weights": weights})
        config = side.config.model_copy(update={"judge": judge})
        before = side.facts.files("failed")
        try:
            rollout(
                config, side.facts, pointers, watch, sample=False, name=f"facts, {side.name}", retry=retry
            )
        finally:
            settle(side.facts, before)


def _compare(
    sides: list[Side], store: Store, cases: list[Case], held_out: list[str], watch: Watch, retry: bool
) -> None:
    """The judge's choice between both models' answers, where the config asks for it."""
    evaluation = sides[0].config.evaluation
    sees = {b.label: b.win_rate for b in evaluation.benchmarks if b.win_rate}
    of_cases = [(case, sees[case.benchmark]) for case in cases if case.benchmark in sees]
    items = _duels([side.there for side in sides], of_cases)
    if evaluation.win_rate:
        asked = [(_held_out(one), evaluation.win_rate) for one in held_out]
        items += _duels([side.held_out for side in sides], asked)
    if items:
        there = store.sub("evaluation", WINS)
        before = there.files("failed")
        try:
            name = "comparing, after against before"
            ask_rows(sides[0].config, there, items, Comparer, watch, load=_duel_row, name=name, retry=retry)
        finally:
            settle(there, before, set(there.index("graded")))


def _held_out(prompt_id: str) -> Case:
    """A held-out prompt as a case; its question is that of its row."""
    return Case("", {}, "none", "", benchmark=HELD_OUT, prompt_id=prompt_id, unit=prompt_id)


def _duels(stores: list[Store], asked: Sequence[tuple[Case, str]]) -> list[tuple[str, Any]]:
    before, after = (store.index("sampled") for store in stores)
    urls = [store.absolute for store in stores]
    return [
        (
            case.prompt_id,
            {
                "case": asdict(case.light()),
                "sees": sees,
                "stores": urls,
                "places": [[*before[case.prompt_id]], [*after[case.prompt_id]]],
            },
        )
        for case, sees in asked
        if case.prompt_id in before and case.prompt_id in after
    ]


def _duel_row(item: dict[str, Any]) -> dict[str, Any]:
    one, two = (_row(Store(url), place) for url, place in zip(item["stores"], item["places"], strict=True))
    case = item["case"] | {"question": item["case"]["question"] or two["question"]}
    return {**two, "case": case, "others": one["candidates"], "sees": item["sees"]}


def finished(side: Side, cases: list[Case]) -> set[str]:
    """What of the side needs no taking up again: graded, or sampled and to be graded by plain rules."""
    judged = {case.prompt_id for case in cases if sets.judged(case)}
    sampled = (one for one in side.there.index("sampled") if one.removesuffix(SECOND) not in judged)
    return {*side.there.index("graded"), *sampled}
