"""Long texts that are made, with a known answer: needles, chains of names, the most frequent words.

The tasks are those of RULER (arXiv 2404.06654), with texts of our own: needles with one key and value, among
other keys, with several values, with several keys asked; names that take their value from one another (multi-
hop); and counting words (aggregation). A text of any length, in tokens; the same seed makes the same texts.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from lr_ray.benchmarks.case import Case
from lr_ray.config import Benchmark
from lr_ray.judge.chunks import Measure

LENGTHS = (4096, 8192, 16384, 32768)
KEYS = 4  # needles of multi_key, multi_value and multi_query
HOPS = 4  # names after the first in a chain; there is a second chain with another value
COMMON = 5  # words to find
OFTEN, SELDOM = 30, 3  # times that a common word and another one occur, where there is room
SPARE = 0.98  # of the length is filled: parts tokenise a little differently together


def _listed(text: str, between: str | None = None) -> list[str]:
    return text.split(between)


_ADJECTIVES = _listed("""amber brisk calm dusty early faint gentle hollow ivory jagged keen lively mellow
narrow olive plain quiet rusty silent tall uneven vivid warm young""")
_NOUNS = _listed("""anchor basket candle drawer engine feather garden hammer island jacket kettle ladder
mirror needle orchard pillow quarry ribbon saddle tunnel umbrella violin window yarn""")
_VERBS = _listed("borrows carries follows hides keeps lends moves paints repairs sells shakes watches")
_PLACES = _listed(
    """above the market|behind the mill|below the bridge|near the harbour|beside the library|past
the old gate|under the stairs|by the northern road|in the upper field|across the square""",
    "|",
)
_SYLLABLES = _listed("ba de fi go ku la me ni po ra se ti vo wu za che dro fli gra ple sto tri")

Measured = Callable[[str], float]


class Puzzle(NamedTuple):
    """What is hidden (`hidden` sentences, in order), what is asked, and what a right answer names."""

    hidden: list[str]
    question: str
    expected: list[str]


def cases(benchmark: Benchmark, measure: Measure) -> Iterator[Case]:
    """Every case of the tasks and lengths asked for.

    Raises:
        ValueError: no such task, or a length too short for one.
    """
    for task in benchmark.tasks or TASKS:
        if task not in TASKS:
            raise ValueError(
                f"evaluation.benchmarks: {benchmark.label}: {task} is none of {', '.join(TASKS)}"
            )
        for length in benchmark.lengths or LENGTHS:
            for number in range(benchmark.cases):
                chance = random.Random(f"{benchmark.seed}/{task}/{length}/{number}")
                depth = (number + 0.5) / benchmark.cases
                text, puzzle = TASKS[task](chance, int(length), depth, lambda t: tokens(t, measure))
                yield Case(
                    key=f"{task}/{length}/{number}",
                    prompt={"context": text, "question": puzzle.question},
                    grade="recall",
                    question=puzzle.question,
                    groups=[task, f"{length} tokens"],
                    references=puzzle.expected,
                )


def tokens(text: str, measure: Measure) -> float:
    """Tokens of a text."""
    return float(measure.upto(text)[-1]) / measure.unit


def recall(answer: str, expected: Sequence[str]) -> float:
    """The share of `expected` words that stand in the answer, whatever their case."""
    plain = re.sub(r"(?<=\d)[,\u202f\u00a0 ](?=\d{3}\b)", "", answer.lower())
    found = [re.search(rf"(?<!\w){re.escape(one.lower())}(?!\w)", plain) is not None for one in expected]
    return sum(found) / len(found)


def _needle(key: str, value: str) -> str:
    return f"The secret number of the {key} is {value}."


def _keys(chance: random.Random, count: int) -> list[str]:
    pairs = [f"{adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
    return chance.sample(pairs, count)


def _numbers(chance: random.Random, count: int) -> list[str]:
    return [str(number) for number in chance.sample(range(1_000_000, 10_000_000), count)]


def _single(chance: random.Random) -> Puzzle:
    (key,), (value,) = _keys(chance, 1), _numbers(chance, 1)
    return Puzzle([_needle(key, value)], f"What is the secret number of the {key}?", [value])


def _multi_key(chance: random.Random) -> Puzzle:
    keys, values = _keys(chance, KEYS), _numbers(chance, KEYS)
    hidden = [_needle(key, value) for key, value in zip(keys, values, strict=True)]
    chance.shuffle(hidden)
    return Puzzle(hidden, f"What is the secret number of the {keys[0]}?", values[:1])


def _multi_value(chance: random.Random) -> Puzzle:
    (key,), values = _keys(chance, 1), _numbers(chance, KEYS)
    hidden = [_needle(key, value) for value in values]
    return Puzzle(hidden, f"What are all the secret numbers of the {key}? There are {KEYS}.", values)


def _multi_query(chance: random.Random) -> Puzzle:
    keys, values = _keys(chance, KEYS), _numbers(chance, KEYS)
    hidden = [_needle(key, value) for key, value in zip(keys, values, strict=True)]
    chance.shuffle(hidden)
    listed = ", ".join(f"the {key}" for key in keys)
    return Puzzle(hidden, f"What are the secret numbers of {listed}?", values)


def _tracking(chance: random.Random) -> Puzzle:
    alphabet, names = "BCDFGHJKLMNPQRSTVWXZ", set[str]()
    while len(names) < 2 * (HOPS + 1):
        names.add("".join(chance.sample(alphabet, 5)))
    ordered = sorted(names)
    chance.shuffle(ordered)
    values = _numbers(chance, 2)
    chains = [ordered[: HOPS + 1], ordered[HOPS + 1 :]]
    lines = []
    for chain, value in zip(chains, values, strict=True):
        taken = [f"{later} takes its value from {earlier}." for earlier, later in pairwise(chain)]
        lines.append([f"{chain[0]} has the value {value}.", *taken])
    # Each chain keeps its order, so that every name has a value before another takes it.
    turns = [0] * (HOPS + 1) + [1] * (HOPS + 1)
    chance.shuffle(turns)
    hidden = [lines[turn].pop(0) for turn in turns]
    return Puzzle(
        hidden,
        f"Which {HOPS + 1} names have the value {values[0]}, directly or from another name?",
        chains[0],
    )


def _hay(chance: random.Random) -> str:
    first, second = chance.sample(_NOUNS, 2)
    who, whose = chance.choice(_ADJECTIVES), chance.choice(_ADJECTIVES)
    return (
        f"Whoever owns the {who} {first} {chance.choice(_VERBS)} the {whose} {second} "
        f"{' '.join(chance.choice(_PLACES).split())}."
    )


Made = tuple[str, Puzzle]
Task = Callable[[random.Random, int, float, Measured], Made]


def _hidden(make: Callable[[random.Random], Puzzle]) -> Task:
    """A task whose sentences are hidden in hay; a single one at the given depth, several anywhere."""

    def task(chance: random.Random, length: int, depth: float, measured: Measured) -> Made:
        puzzle = make(chance)
        hidden = puzzle.hidden
        room = SPARE * length - measured(" ".join([*hidden, puzzle.question]))
        sample = [_hay(chance) for _ in range(50)]
        count = int(room / (measured(" ".join(sample)) / len(sample)))
        _enough(count, length)
        hay = [_hay(chance) for _ in range(count)]
        places = [depth] if len(hidden) == 1 else sorted(chance.random() for _ in hidden)

        def filled(count: int) -> str:
            lines = hay[:count]
            for place, line in reversed(list(zip(places, hidden, strict=True))):
                lines.insert(int(place * (count + 1)), line)
            return " ".join(lines)

        return _fitted(filled, count, length - measured(puzzle.question), measured), puzzle

    return task


def _common(chance: random.Random, length: int, _: float, measured: Measured) -> Made:
    """A list of words in any order, of which a few occur much more often than the others."""
    question = f"Which {COMMON} words occur most often in the list above?"
    words: dict[str, None] = {}
    while len(words) < 60 + length:
        words["".join(chance.sample(_SYLLABLES, 3))] = None
        if len(words) >= 9000:
            break
    vocabulary = list(words)
    each = measured(" ".join(vocabulary[:200])) / len(vocabulary[:200])
    total = int((SPARE * length - measured(question)) / each)
    often = max(4, min(OFTEN, total // (4 * COMMON)))
    _enough(total - 2 * COMMON * often, length)
    seldom = SELDOM if often >= 3 * SELDOM else 1
    expected, others = vocabulary[:COMMON], vocabulary[COMMON:]
    order = chance.getrandbits(64)

    def listed(count: int) -> str:
        # A vocabulary that a very long list uses up is gone through again, which both kinds share.
        rounds = -(-count // (len(others) * seldom + COMMON * often))
        most = [word for word in expected for _ in range(often * rounds)]
        rest = [word for word in others[: -(-count // (seldom * rounds))] for _ in range(seldom * rounds)]
        both = most + rest[: max(0, count - len(most))]
        random.Random(order).shuffle(both)
        return " ".join(both)

    puzzle = Puzzle([], question, expected)
    return _fitted(listed, total, length - measured(question), measured), puzzle


def _enough(count: int, length: int) -> None:
    if count < 1:
        raise ValueError(f"evaluation.benchmarks: ruler: {length} tokens are too few to hide anything in")


def _fitted(filled: Callable[[int], str], count: int, most: float, measured: Measured) -> str:
    """The longest text of about `count` parts that has at most so many tokens."""
    text = filled(count)
    while count > 1 and (long := measured(text)) > most:
        count = min(count - 1, int(count * most / long))
        text = filled(max(1, count))
    return text


TASKS: dict[str, Task] = {
    "single": _hidden(_single),
    "multi_key": _hidden(_multi_key),
    "multi_value": _hidden(_multi_value),
    "multi_query": _hidden(_multi_query),
    "tracking": _hidden(_tracking),
    "common": _common,
}
