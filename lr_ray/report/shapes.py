"""What the files of results must hold to be shown; anything else in them is left alone."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lr_ray.store import Store

Counts = dict[str, int]
Number = float | None


class Shape(BaseModel):
    # Strict: a figure that is text is not what lr-ray writes, and NaN in a plot is no place.
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Shape)


class Difference(Shape):
    """See `statistics.Comparison`."""

    before: Number
    after: Number
    difference: Number
    low: Number
    high: Number
    prompts: int


class Measured(Difference):
    """A row of evaluation.json; one of a benchmark has the last two."""

    metric: str
    benchmark: str | None = None
    group: str | None = None


class Evaluation(Shape):
    baseline: str
    model: str
    prompts: int
    n: int
    table: list[Measured]
    unscored: dict[str, Counts]
    failed: Counts = {}
    benchmarks: dict[str, dict[str, Any]] = {}


class Mean(Shape):
    """See `statistics.Interval`."""

    mean: Number
    low: Number
    high: Number
    count: int


class Row(Mean):
    """A run and metric of compare.json; `seeds` are the differences from the model before of each."""

    metric: str
    run: str
    before: Difference
    against: Difference | None
    seeds: list[Number]


class Seed(Shape):
    """What one training learned from."""

    seed: int
    pairs: Number = None
    dropped: Counts = {}
    rows: Number = None
    steps: Number = None
    failed: int = 0


class Run(Shape):
    name: str
    changes: dict[str, Any]
    seeds: list[Seed]


class Compared(Shape):
    """compare.json"""

    prompts: int
    n: int
    against: str
    before: dict[str, Mean]
    runs: list[Run]
    table: list[Row]


class Accuracy(Shape):
    """See `agreement.outcomes.Accuracy`."""

    n: int
    accuracy: Number
    low: Number
    high: Number
    right: int
    wrong: int
    ties: int
    unscored: int


class Ahead(Difference):
    """Of accuracies, on the `pairs` that both ways of judging scored."""

    pairs: int | None = None


class Method(Accuracy):
    method: str
    longreward_ahead: Ahead | None = None


class Group(Shape):
    """The labelled pairs of one length of context, or of one subset."""

    name: str
    pairs: int
    chance: float
    methods: dict[str, Accuracy]


class Share(Shape):
    n: int
    share: Number
    low: Number
    high: Number


class Correlation(Shape):
    pearson: Number
    spearman: Number
    low: Number
    high: Number
    count: int


class Lengths(Shape):
    answers: Correlation
    differences: Correlation
    judge_prefers_longer: Share
    label_prefers_longer: Share


class Kappa(Shape):
    other: str = Field(alias="with")
    kappa: Number
    low: Number
    high: Number
    count: int


class Orders(Shape):
    consistent: Share
    first: Share


class Repeats(Shape):
    judgings: int
    same: Share
    flips: Number
    mean: Accuracy


class Settled(Shape):
    n: int
    turned: int


class Paper(Shape):
    """What the paper reports of other pairs and another judge."""

    pairs: int
    longreward: float


class Agreement(Accuracy):
    """agreement.json"""

    judge: str
    pairs: int
    prompts: int
    chance: float
    methods: list[Method]
    contexts: list[Group]
    subsets: list[Group]
    answer_length: Lengths
    kappa: list[Kappa]
    direct: Orders | None = None
    repeats: Repeats | None = None
    settled: Settled | None = None
    unlabelled: int
    failed: int
    other: str | None = None
    paper: Paper | None = None


class Outcome(Shape):
    """A line of agreement/outcomes.jsonl; indexes are of the answers of the judged prompt."""

    prompt_id: str
    subset: str
    chosen: list[int]
    rejected: list[int]
    rewards: list[Number]
    outcomes: dict[str, str]


class Documents(Shape):
    files: int
    documents: int
    used: int
    dropped: Counts


class Contexts(Shape):
    asked_for: int
    failed: int


class Questions(Shape):
    written: int
    kept: int
    spare: int
    dropped: Counts
    unwritten: Counts


class Length(Shape):
    contexts: int
    mean_tokens: float
    under_90_percent: int


class Synthesis(Shape):
    """synthesis.json"""

    documents: Documents
    contexts: Contexts
    questions: Questions
    kinds: Counts
    languages: Counts
    made_of: Counts
    lengths: dict[str, Length]


def read(store: Store, name: str, shape: type[S]) -> S | None:
    """The file `name` of the run directory, None where it is not there.

    Raises:
        ValueError: see `parsed`.
    """
    data = store.read(name)
    return None if data is None else parsed(data, shape, f"{store.url}/{name}")


def parsed(data: bytes, shape: type[S], where: str) -> S:
    """JSON as its shape.

    Raises:
        ValueError: it is not JSON, or not what it should be; names `where` and the first wrong place in it.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object")
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # Keys come from the file, which may be hostile to a terminal.
        key = ascii(".".join(str(part) for part in first["loc"]))[1:-1][:100]
        raise ValueError(f"{where}: {key}: {first['msg']}, so it cannot be shown") from error
