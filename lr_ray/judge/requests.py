"""The messages of the six kinds of calls, in English and Chinese.

The fixed text of a kind (prompts/KIND.LANGUAGE.md, after prompts/common.LANGUAGE.md) is the system
message; the texts to judge follow in the user message, what more calls share first, so that prefix
caches hit. No text is ever searched for slots: messages are put together from blocks. A block's tags carry
a code made of its own content, which the content therefore cannot hold.
"""

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from lr_ray.judge.answers import SCHEMAS
from lr_ray.rows import Message

CJK_SHARE = 0.1  # of the letters; Chinese says in one character what takes an English word of five

_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Block:
    """A text to judge under the tag `name`; `position` is where it stands in the document, 0 to 1."""

    name: str
    text: str
    position: float | None = None


def language(context: str) -> str:
    """ "zh" when at least a tenth of the context's letters are Chinese characters, else "en"."""
    cjk = len(_CJK.findall(context))
    return "zh" if cjk and cjk >= CJK_SHARE * len(_LETTER.findall(context)) else "en"


def messages(kind: str, lang: str, blocks: list[Block]) -> list[Message]:
    """The request of `kind` over `blocks`, in the order given."""
    system, closing = template(kind, lang)
    text = "\n\n".join([*map(render, blocks), closing])
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def render(block: Block) -> str:
    """The block between tags that its text can neither close nor imitate."""
    code, salt = "", 0
    while not code or code in block.text:
        data = f"{salt}\0{block.name}\0{block.text}".encode("utf-8", "surrogatepass")
        code, salt = hashlib.sha256(data).hexdigest()[:16], salt + 1
    where = "" if block.position is None else f" at {round(100 * block.position)}%"
    return f"<{block.name} {code}{where}>\n{block.text}\n</{block.name} {code}>"


@cache
def template(kind: str, lang: str) -> tuple[str, str]:
    """The system message of a kind, and the line that closes the user message."""
    assert kind in SCHEMAS
    folder = files("lr_ray.judge") / "prompts"
    common = (folder / f"common.{lang}.md").read_text(encoding="utf-8")
    system, _, closing = (folder / f"{kind}.{lang}.md").read_text(encoding="utf-8").rpartition("\n=====\n")
    return f"{system.strip()}\n\n{common.strip()}", closing.strip()
