"""Evaluation: held-out prompts, benchmarks, and the two models against each other."""

from collections import Counter
from typing import Literal, Self

from pydantic import Field, model_validator

from lr_ray.config.section import Paths, Section

Sees = Literal["question", "document"]
BenchmarkKind = Literal[
    "longbench_chat",
    "longbench",
    "longbench_v2",
    "mt_bench",
    "alpaca_eval",
    "ifeval",
    "ruler",
    "facts",
]


class Benchmark(Section):
    kind: BenchmarkKind
    """What it is: the format of its files and how its answers are graded."""
    path: str = ""
    """Its published files, local or s3://, gs://: a folder or a file, see the error where one is missing.
    Nothing is downloaded. ruler has none: its texts are made."""
    name: str = Field("", pattern="^[a-z0-9_]*$")
    """What its rows are called in the results; none: the kind."""
    limit: int | None = Field(None, ge=1)
    """Most cases, of each task where there are several, drawn evenly from the file; none: all."""
    tasks: list[str] = []
    """Of longbench the data sets, of ruler the tasks; none: all."""
    lengths: list[Literal["short", "medium", "long"] | int] = []
    """Of ruler the prompt lengths in tokens of the baseline's tokenizer; of longbench_v2 the length classes;
    none: all classes, and for ruler 4096, 8192, 16384 and 32768."""
    cases: int = Field(20, ge=1)
    """Of ruler: cases a task and length."""
    seed: int = 0
    """Of ruler: what its texts are made from."""
    facts: bool = False
    """Also split its answers into statements and verify each against the document, as faithfulness does."""
    win_rate: Sees | None = None
    """Also let the judge compare both models' answers, in both orders; it sees the question, or the document
    too."""

    @property
    def label(self) -> str:
        """Its name in the results."""
        return self.name or self.kind

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.kind == "ruler") != (not self.path):
            raise ValueError("ruler takes no path" if self.path else f"{self.kind} needs a path")
        words = [length for length in self.lengths if isinstance(length, str)]
        if words if self.kind == "ruler" else len(words) < len(self.lengths):
            raise ValueError("lengths are numbers of tokens for ruler, and short, medium, long otherwise")
        return self


class Evaluation(Section):
    prompts: Paths = []
    """Held-out prompts, judged as the training candidates are; none: no evaluation on them."""
    n: int = Field(1, ge=1)
    """Answers a prompt and model."""
    baseline: str | None = None
    """The model before; none: sampling.model."""
    model: str | None = None
    """The model after; none: the run's own model."""
    benchmarks: list[Benchmark] = []
    """More tests of both models. With any, a prompt over the window keeps its head and tail (the authors'
    rule), whatever sampling.truncate says."""
    win_rate: Sees | None = None
    """Also let the judge compare both models' answers to the held-out prompts, in both orders; it sees the
    question, or the document too."""
    temperature: float | None = Field(None, ge=0)
    """Sampling temperature of all that is evaluated; none: sampling.temperature (the authors: 1.0)."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest answer, in tokens; none: sampling.max_tokens (the authors: 1,024)."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        counts = Counter(one.label for one in self.benchmarks)
        for label, count in counts.items():
            if count > 1:
                raise ValueError(f"{count} benchmarks are called {label}: give each a name of its own")
        return self
