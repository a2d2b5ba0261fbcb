"""Made-up rows to judge: long documents, questions on them, and answers that overlap as real ones do."""

import random

from lr_ray.rows import Candidate, Sampled

WORDS = 3000  # different words of a document
NAMES = 3  # people a question asks about
ABOUT = 40  # sentences of a document that speak of one of them
REWORDED = 0.8  # of an answer's sentences say in other words what the document says


def rows(
    seed: int,
    prompts: int,
    context_tokens: int,
    candidates: int = 10,
    sentences: int = 10,
    questions: int = 1,
) -> list[Sampled]:
    """`prompts` rows of about `context_tokens` tokens (4 bytes each); `questions` rows share a document.

    An answer has `sentences` sentences. Everything follows from `seed`.
    """
    rng = random.Random(seed)
    words = [_word(rng) for _ in range(WORDS)]
    made: list[Sampled] = []
    people: list[str] = []
    about: dict[str, list[str]] = {}
    context = ""
    for number in range(prompts):
        if number % questions == 0:
            people = [_word(rng).capitalize() for _ in range(questions * NAMES)]
            about, context = _document(rng, words, people, context_tokens)
        asked = people[(number % questions) * NAMES :][:NAMES]
        told = [sentence for name in asked for sentence in about[name]]
        made.append(_row(rng, words, f"p{number}", context, asked, told, candidates, sentences))
    return made


def _word(rng: random.Random) -> str:
    syllables = ("ka", "mor", "ti", "len", "vu", "sar", "dep", "on", "bri", "gal", "fe", "nu", "ist", "row")
    return "".join(rng.choices(syllables, k=rng.randint(2, 3)))


def _sentence(rng: random.Random, words: list[str], name: str = "") -> str:
    picked = rng.choices(words, k=rng.randint(10, 16))
    return f"{name or 'There'} {' '.join(picked)}."


def _document(
    rng: random.Random, words: list[str], people: list[str], tokens: int
) -> tuple[dict[str, list[str]], str]:
    """What the document says of each of `people`, and the document."""
    about = {name: [_sentence(rng, words, name) for _ in range(ABOUT // NAMES)] for name in people}
    text = [sentence for told in about.values() for sentence in told]
    size = sum(len(sentence) + 1 for sentence in text)
    while size < 4 * tokens:
        text.append(_sentence(rng, words))
        size += len(text[-1]) + 1
    rng.shuffle(text)
    return about, " ".join(text)


def _row(
    rng: random.Random,
    words: list[str],
    prompt_id: str,
    context: str,
    asked: list[str],
    told: list[str],
    candidates: int,
    sentences: int,
) -> Sampled:
    answers: list[Candidate] = []
    for index in range(candidates):
        picked = rng.sample(told, min(sentences, len(told)))
        text = " ".join(_reworded(rng, words, s) if rng.random() < REWORDED else s for s in picked)
        answers.append({"index": index, "text": text, "finish_reason": "stop"})
    return {
        "prompt_id": prompt_id,
        "context": context,
        "question": f"What does the document say about {', '.join(asked)}?",
        "reference_answer": None,
        "prompt": [],
        "candidates": answers,
        "prompt_tokens": -1,
        "cached_tokens": -1,
        "truncated": False,
        "sampled_at": 0.0,
    }


def _reworded(rng: random.Random, words: list[str], sentence: str) -> str:
    parts = sentence.split()
    for _ in range(rng.randint(1, 3)):
        parts[rng.randrange(1, len(parts) - 1)] = rng.choice(words)
    return " ".join(parts)
