"""One case of a benchmark: what the model is asked, and what its answer is held against."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypedDict

import orjson

Grade = Literal["chat", "answer", "summary", "turn", "choice", "instructions", "recall", "none"]
"""How an answer is graded: the first four by the judge, the next three by plain rules, the last not."""
SECOND = "/2"
"""Ends the id of a second turn."""
JUDGED: frozenset[Grade] = frozenset({"chat", "answer", "summary", "turn"})


class Example(TypedDict):
    """An answer to the same question that people have scored."""

    answer: str
    score: str


class Check(TypedDict):
    """A verifiable instruction of IFEval and its arguments."""

    id: str
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """`prompt` is a prompt row as `lr_ray.data` reads it, without its id; empty once it is written.

    `question` is what the judge sees of it. Results are also averaged over each of its `groups`. `follow_up`
    is the next turn, `history` the turns before; `against` is an answer to win against. Cases of one `unit`
    count as one in an interval.
    """

    key: str
    prompt: Mapping[str, Any]
    grade: Grade
    question: str
    groups: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    follow_up: str | None = None
    history: list[str] = field(default_factory=list)
    against: str | None = None
    benchmark: str = ""
    prompt_id: str = ""
    unit: str = ""

    def named(self, benchmark: str) -> "Case":
        """The case with an id that changes with anything in it, so that no answer to another is taken."""
        digest = hashlib.sha256(orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)).hexdigest()[:10]
        one = f"{benchmark}/{self.key}-{digest}"
        return replace(self, benchmark=benchmark, prompt_id=one, unit=one)

    def row(self) -> dict[str, Any]:
        """The prompt row with its id."""
        return {"prompt_id": self.prompt_id, **self.prompt}

    def light(self) -> "Case":
        """The case without its prompt, which may be long."""
        return replace(self, prompt={})

    def then(self, answer: str) -> "Case":
        """The second turn, after `answer` to this one."""
        assert self.follow_up is not None
        turns = [self.question, answer, self.follow_up]
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": text} for role, text in zip(roles, turns, strict=True)]
        return replace(
            self,
            prompt=asked(self.follow_up) | {"messages": messages},
            question=self.follow_up,
            groups=["turn 2", *self.groups[1:]],
            references=self.references[1:],
            follow_up=None,
            history=turns[:2],
            prompt_id=f"{self.prompt_id}{SECOND}",
        )


def asked(instruction: str) -> dict[str, Any]:
    """The prompt row of an instruction without a document: it is all that there is to look at."""
    messages = [{"role": "user", "content": instruction}]
    return {"messages": messages, "context": instruction, "question": instruction}
