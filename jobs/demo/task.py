"""The demo's task: synthetic documents in which a few facts hide among distractors, with known truth.

A document states facts ("Mira bakes.") between sentences that say nothing about anybody. A question asks
what several people do; an answer states one fact a sentence. What is true is known from how the document
was made, so that answers can be scored without a judge; it never enters a prompt row.
"""

import random
import re
from dataclasses import dataclass
from typing import Literal, TypedDict

Kind = Literal["good", "wrong", "incomplete", "off_point"]
Truth = dict[str, str]

_STARTS, _ENDS = "Mi To Se Ka Lu Ro Ne Va Pe Da Fi Ha", "ra ben la rin dor na vik mos"
# A value directly follows its name: with a word between them a tiny model does not learn to look it up.
_VALUES = (
    "bakes paints sings dances writes reads sews weaves knits fishes hunts sails rows swims dives climbs "
    "rides digs plants mows cooks brews carves builds welds draws prints teaches preaches studies travels "
    "trades farms juggles acts drums whistles hums jokes gambles races boxes wrestles duels skates surfs "
    "jogs camps hikes haggles sweeps cleans irons polishes sculpts programs calculates translates bargains "
    "judges guards patrols sketches photographs composes conducts lectures spins mines forges ploughs grinds"
)
CHATTER = ["That is a lovely question.", "The weather was fine this year.", "Thank you for asking."]
_DISTRACTORS = (
    "the old mill;a narrow road;the morning fog;a cold wind;the village school;a wooden bridge;a gentle rain;"
    "the north gate;a quiet stream;the market square;a broken fence;the harvest moon;a flock of geese;"
    "the stone tower;a muddy path;the evening train",
    "stands near;leads toward;looks pale above;passes slowly behind;was built before the war beside;"
    "can be seen from;grew famous because of;has changed little since the flood at;turns sharply at;"
    "seems very far from;stays silent over;is older than",
    "the river;the lake;the hills;the harbour;the church;the forest;the meadow;the valley;the castle;"
    "the orchard;the station;the garden",
    ";in winter;after dark;on most days;every spring;during the summer;as people say",
)
NAMES = [start + end for start in _STARTS.split() for end in _ENDS.split()]
VALUES = _VALUES.split()
_PARTS = [part.split(";") for part in _DISTRACTORS]


class PromptRow(TypedDict):
    prompt_id: str
    context: str
    question: str


@dataclass(frozen=True)
class Shape:
    """How large items are: inclusive bounds of facts and distractors, and of names asked for."""

    facts: tuple[int, int] = (8, 14)
    distractors: tuple[int, int] = (34, 46)
    asked: tuple[int, int] = (3, 5)


@dataclass(frozen=True)
class Item:
    """A document with all its facts, and whom its question asks for."""

    context: str
    question: str
    facts: Truth
    asked: tuple[str, ...]

    @property
    def truth(self) -> Truth:
        """The asked facts alone."""
        return {name: self.facts[name] for name in self.asked}


def make_item(rng: random.Random, shape: Shape) -> Item:
    """One document and question. Values may repeat within a document, names never do."""
    names = rng.sample(NAMES, rng.randint(*shape.facts))
    facts: Truth = {name: rng.choice(VALUES) for name in names}
    sentences = [f"{name} {value}." for name, value in facts.items()]
    for _ in range(rng.randint(*shape.distractors)):
        words = " ".join(filter(None, (rng.choice(part) for part in _PARTS)))
        sentences.insert(rng.randint(0, len(sentences)), words.capitalize() + ".")
    asked = tuple(rng.sample(names, min(len(names), rng.randint(*shape.asked))))
    listed = " and ".join(filter(None, (", ".join(asked[:-1]), asked[-1])))
    return Item(" ".join(sentences), f"What do {listed} do?", facts, asked)


def make_items(seed: int | str, count: int, shape: Shape | None = None) -> list[Item]:
    """The items of a seed; those of two seeds do not overlap."""
    rng = random.Random(f"task {seed}")
    return [make_item(rng, shape or Shape()) for _ in range(count)]


def make_prompts(seed: int | str, count: int) -> tuple[list[PromptRow], dict[str, Truth]]:
    """Prompt rows, and apart from them what is true of each: prompt_id → asked name → value."""
    items = [(f"{seed}-{index:04}", item) for index, item in enumerate(make_items(seed, count))]
    rows = [PromptRow(prompt_id=key, context=item.context, question=item.question) for key, item in items]
    return rows, {key: item.truth for key, item in items}


def answer_of_kind(kind: Kind, item: Item, rng: random.Random) -> str:
    """An answer with the merit or the flaw that `kind` names.

    good: every asked fact. wrong: at least one wrong value, three in four of them another fact's of the
    same document. incomplete: at least one asked fact left out. off_point: facts about people nobody
    asked for, or chatter, in place of some or all of what was asked.
    """
    stated = item.truth
    if kind == "wrong":
        for name in rng.sample(item.asked, rng.randint(1, len(item.asked))):
            near = [value for value in item.facts.values() if value != item.facts[name]]
            far = [value for value in VALUES if value != item.facts[name]]
            stated[name] = rng.choice(near if near and rng.random() < 0.75 else far)
    elif kind == "incomplete":
        assert len(item.asked) > 1
        for name in rng.sample(item.asked, rng.randint(1, len(item.asked) - 1)):
            del stated[name]
    sentences = [f"{name} {value}." for name, value in stated.items()]
    if kind == "off_point":
        others = [f"{name} {value}." for name, value in item.facts.items() if name not in item.asked]
        instead = others if others and rng.random() < 0.6 else CHATTER
        sentences[rng.randrange(len(sentences)) :] = rng.sample(instead, min(len(instead), rng.randint(1, 3)))
    return " ".join(sentences)


def score_truth(answer: str, truth: Truth) -> float:
    """Asked facts stated rightly / max(asked facts, sentences), 0 to 1.

    A sentence is right when it is "NAME VALUE" of an asked fact. Any other (a wrong value, a person
    nobody asked for, chatter, a repetition) only adds to the sentences. A name with two values is wrong.
    """
    facts = _facts(answer)
    said = {name: {fact[1] for fact in facts if fact and fact[0] == name} for name in truth}
    return sum(said[name] == {truth[name]} for name in truth) / max(len(truth), len(facts))


def _facts(text: str) -> list[tuple[str, str] | None]:
    """(name, value) of each sentence, None for one that states no fact."""
    sentences = filter(None, (part.strip() for part in text.split(".")))
    matches = (re.fullmatch(r"([A-Z][a-z]+) ([a-z]+)", sentence) for sentence in sentences)
    return [(match[1], match[2]) if match else None for match in matches]
