"""Synthesis: documents → long-context prompts."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lr_ray.config.section import Paths, Section

QuestionKind = Literal["integrative", "multi-hop", "general", "look-up"]
KINDS: list[QuestionKind] = ["integrative", "multi-hop", "general", "look-up"]


class Synthesis(Section):
    documents: Paths = []
    """Documents: text, markdown, HTML, PDF, jsonl or parquet; files, globs or folders with all below them,
    local or s3://, gs://, hf://datasets/…. A jsonl or parquet row is one document: its text, content,
    document or context."""
    model: str | None = None
    """Who writes questions and answers, at the endpoint; none: judge.model. The rest of how it is asked, its
    limits and its budget are the judge's."""
    base_url: str | Annotated[list[str], Field(min_length=1)] | None = None
    """Where that model is; none: judge.base_url."""
    contexts: int | None = Field(None, ge=1)
    """Contexts to make; none: one a document."""
    lengths: list[Annotated[int, Field(ge=1024)]] = Field([8192, 16384, 32768, 65536], min_length=1)
    """Lengths of contexts in tokens (judge.tokenizer's), each as often as it stands here. A context has at
    most its length, and less where the documents do not fill it."""
    multi_document: float = Field(0.5, ge=0, le=1)
    """Share of contexts made of several documents: two that the questions are about among others, in random
    order. The rest are one document or a stretch of it; where none is long enough, also several."""
    questions: int = Field(4, ge=1, le=16)
    """Questions written about a context, of the kinds in turn."""
    kinds: list[QuestionKind] = Field(KINDS, min_length=1)
    """Kinds of questions."""
    keep: Literal["one", "all"] = "one"
    """Of a context's questions one at random that passes (as the paper does), or all that do."""
    unanswerable: float = Field(0.05, ge=0, le=1)
    """Share of questions that are written to have no answer in their context; the answer says so."""
    closed_book: bool = True
    """Drop questions that the model answers as well without the context."""
    duplicate: float = Field(0.7, ge=0.5, le=1)
    """Of two questions whose shared word (or Chinese character) triples are this share of all theirs, one is
    dropped."""
    sft: bool = False
    """Also write sft.jsonl: prompts with their answers, for training.method=sft."""
    max_document_mb: float = Field(32.0, gt=0)
    """Larger documents are dropped, in megabytes of the file, or of a row's text."""
    seed: int = 0
    """Of every random choice."""

    @model_validator(mode="after")
    def _unlike(self) -> Self:
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError("kinds names one twice")
        return self
