"""Messages put together from blocks: no text is ever searched for slots.

The fixed text of a kind of call (PACKAGE/prompts/KIND.LANGUAGE.md, then common.LANGUAGE.md there) is the
system message; the texts to work on follow in the user message, what more calls share first, so that
prefix caches hit. A block's tags carry a code that stands in no text of the message, so that none can close
a block or play another one.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lr_ray.rows import Message

CJK_SHARE = 0.1  # of the letters; Chinese says in one character what takes an English word of five

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Block:
    """A text to judge under the tag `name`; `position` is where it stands in the document, 0 to 1.

    `number` is its number among blocks of its name, where an answer must name it.
    """

    name: str
    text: str
    position: float | None = None
    number: int | None = None


def language(context: str) -> str:
    """ "zh" when at least a tenth of the context's letters are Chinese characters, else "en"."""
    cjk = len(_CJK.findall(context))
    return "zh" if cjk and cjk >= CJK_SHARE * len(_LETTER.findall(context)) else "en"


def compose(package: str, kind: str, lang: str, blocks: list[Block]) -> list[Message]:
    """The request of `kind` over `blocks`, in the order given, with the fixed text that `package` ships."""
    system, closing = template(package, kind, lang)
    texts = [block.text for block in blocks]
    text = "\n\n".join([*(render(block, texts) for block in blocks), closing])
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def render(block: Block, texts: Sequence[str] = ()) -> str:
    """The block between tags that neither its text nor another of the message's `texts` can imitate.

    The code is made of the text alone, so that prefix caches hit. Whoever knows the text (a policy knows
    the question) knows that code and may replay it elsewhere: then it is made of all texts, and a text that
    held it would have to hold a hash of itself. A lone surrogate, which no request can carry, becomes U+FFFD.
    """
    texts = [block.text, *texts]
    code, salt = _code(f"0\0{block.name}\0{block.text}"), 0
    while any(code in text for text in texts):
        salt += 1
        code = _code("\0".join([str(salt), block.name, *texts]))
    where = "" if block.position is None else f" at {round(100 * block.position)}%"
    where += "" if block.number is None else f" {block.number}"
    text = _SURROGATE.sub("\ufffd", block.text)
    return f"<{block.name} {code}{where}>\n{text}\n</{block.name} {code}>"


def _code(data: str) -> str:
    return hashlib.sha256(data.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@cache
def template(package: str, kind: str, lang: str) -> tuple[str, str]:
    """The system message of a kind, and the line that closes the user message."""
    folder = files(package) / "prompts"
    common = (folder / f"common.{lang}.md").read_text(encoding="utf-8")
    system, _, closing = (folder / f"{kind}.{lang}.md").read_text(encoding="utf-8").rpartition("\n=====\n")
    return f"{system.strip()}\n\n{common.strip()}", closing.strip()
