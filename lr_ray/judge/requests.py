"""The messages of the judge's six kinds of calls, in English and Chinese (prompts/)."""

from lr_ray.judge.answers import SCHEMAS
from lr_ray.llm.messages import Block, compose, language, render
from lr_ray.llm.messages import template as shipped
from lr_ray.rows import Message

__all__ = ["SEVERAL", "Block", "language", "messages", "render", "template"]

SEVERAL = "supports"  # the prompts of `support` calls with several statements
PACKAGE = "lr_ray.judge"


def messages(kind: str, lang: str, blocks: list[Block]) -> list[Message]:
    """The request of `kind` over `blocks`, in the order given."""
    several = kind == "support" and blocks[-1].number is not None
    return compose(PACKAGE, SEVERAL if several else kind, lang, blocks)


def template(kind: str, lang: str) -> tuple[str, str]:
    """The system message of a kind, and the line that closes the user message."""
    assert kind in SCHEMAS or kind == SEVERAL
    return shipped(PACKAGE, kind, lang)
