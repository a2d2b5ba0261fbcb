"""One direct pairwise call: which of two answers is better, asked outright.

What LongReward is compared with: no statements, no extracts, the document and both answers in one request.
"""

import hashlib

from lr_ray.judge.answers import PREFERENCE, Preference
from lr_ray.judge.core import Asks
from lr_ray.judge.requests import PACKAGE
from lr_ray.llm.calls import Call
from lr_ray.llm.messages import Block, compose, template

KIND = "direct"


async def prefer(  # noqa: PLR0913 - all but the texts have a name in the call
    asks: Asks,
    question: str,
    first: str,
    second: str,
    *,
    lang: str,
    context: str | None = None,
    reference: str | None = None,
    candidate: int | None = None,
    index: int = 0,
    sample: int = 0,
) -> Preference:
    """Which of two answers the judge prefers, after its analysis.

    The judge reads `first` first and knows nothing else of the two; ask in both orders to see whether that
    decided. With `context` or `reference` it sees these too. `lang` is the language of the instructions, "en"
    or "zh". `candidate` and `index` only name the call; a `sample` above 0 asks once more, at temperature
    0.95.

    Raises:
        Unusable: no attempt gave a usable answer.
        EndpointRefused, GaveUp, Stopped: see `lr_ray.llm`.
    """
    # The document first: calls on one document share it in a prefix cache, and both orders the question.
    texts = (("document", context), ("question", question), ("reference", reference))
    blocks = [Block(name, text) for name, text in texts if text is not None]
    blocks += [Block("first", first), Block("second", second)]
    messages = compose(PACKAGE, KIND, lang, blocks)
    return await asks.ask(
        Call(KIND, messages, PREFERENCE, Preference, candidate, index or sample, sample=sample)
    )


def prompts_hash() -> str:
    """A hash of the call's prompts, which its answers depend on as they do on the model."""
    texts = "\0".join("\0".join(template(PACKAGE, KIND, lang)) for lang in ("en", "zh"))
    return hashlib.sha256(texts.encode()).hexdigest()
