"""The simulated judge as one who writes questions and answers them: plain, extractive rules.

A question is made around a sentence of the document: its rarest names and words become what is asked for,
and the sentence is the answer. Reading looks for the sentences that share most with a question. What the
document never mentions makes a question without an answer.
"""

import hashlib
import math
import re
from collections import Counter
from typing import Any

from lr_ray.simulated.words import CJK, UNKNOWN, asserts, keys, overlap, sentences

Blocks = dict[str, list[str]]

NEED = 0.7  # of a question's keys that the best places of a document together must hold
SAME = 0.5  # of what a reference says beyond the question that an equal answer says too
PLACES = 5  # sentences of an answer
TOPICS = 3  # words that a question names

ASKS = {
    "en": {
        "look-up": "What exactly does {title} state about {topic}?",
        "multi-hop": "What is stated in {title} about {topic}, and how does that bear on {other}?",
        "integrative": "Which points are made in {title} about {topic}, and which about {other}?",
        "general": "What is {title} about, and what does it say on {topic}?",
        "gap": "What is the {gap} of {topic} in {title}?",
        "title": "“{}”",
        "and": " and ",
        "missing": "Nothing is said about the {gap} of {topic}.",
        "unknown": "The document does not mention this: it holds no answer on {topic}.",
        "nearest": " What comes closest: {}",
    },
    "zh": {
        "look-up": "关于{topic}，{title}具体说了什么？",
        "multi-hop": "{title}关于{topic}说了什么，关于{other}又说了什么？",
        "integrative": "{title}就{topic}和{other}提出了哪些要点？",
        "general": "{title}讲的是什么，关于{topic}是怎么说的？",
        "gap": "{title}中{topic}的{gap}是什么？",
        "title": "《{}》",
        "and": "和",
        "missing": "没有提到{topic}的{gap}。",
        "unknown": "文档没有提到这一点，无法回答关于{topic}的问题。",
        "nearest": "最接近的内容是：{}",
    },
}
GAPS = {
    "en": (
        "licence fee",
        "birthplace",
        "carbon footprint",
        "favourite colour",
        "insurance premium",
        "nickname",
    ),
    "zh": ("许可费用", "出生地点", "碳排放量", "保险金额", "昵称来历", "颜色偏好"),
}
KNOWN = (  # what everybody knows, to have something that needs no document
    "The capital of France is Paris.",
    "Water boils at 100 degrees Celsius at sea level.",
    "The Earth goes round the Sun once a year.",
    "法国的首都是巴黎。",
)
_FRAME = {
    lang: {stem for text in asks.values() for stem in keys(re.sub(r"\{\w*\}", " ", text)).weight}
    for lang, asks in ASKS.items()
}
_SENTENCE = {  # worth asking about: whole sentences, no code or rows of tables
    "en": re.compile(r"[A-Z\"“(][^|{}=]{30,360}[a-z)\"”][.!]$"),
    "zh": re.compile(r"[^|{}=]{10,200}[。！]$"),
}
_WORD = re.compile(rf"[^\W{CJK}]+(?:[-'’.][^\W{CJK}]+)*")


class _Document:
    """A document as a writer of questions sees it."""

    def __init__(self, text: str) -> None:
        self.lang = "zh" if len(re.findall(f"[{CJK}]", text)) * 10 > len(text) else "en"
        all_of_it = sentences.__wrapped__(text)
        told = [one for one in all_of_it if _SENTENCE[self.lang].match(one) and asserts(one)]
        self.told = list(dict.fromkeys(told)) or list(all_of_it[:1])
        self.counts = Counter(stem for one in self.told for stem in keys(one).weight)
        heading = re.match(r"#+ +(.{3,80})", text)
        self.title = ASKS[self.lang]["title"].format(heading[1].strip() if heading else self._subject())
        self.words = {stem for one in all_of_it for stem in keys(one).weight}

    def _subject(self) -> str:
        """What a document without a heading calls itself: its beginning."""
        first = self.told[0] if self.told else ""
        return first[:20] if self.lang == "zh" else " ".join(first.split()[:6]) + " …"

    def topic(self, sentence: str, most: int = TOPICS) -> str:
        """The names and words of a sentence that the document uses least, in its order."""
        if self.lang == "zh":
            return "“" + re.split("[，。；：、,]", sentence)[0][:14] + "”"
        weight = keys(sentence).weight
        words: dict[str, tuple[float, int]] = {}  # word → how much it says, the least first
        for word in _WORD.findall(sentence.partition(" ")[2]):
            stems = keys(f"The {word}").weight.keys() & weight.keys()
            if stems and len(word) > 2:
                heaviest = max(stems, key=lambda stem: (weight[stem], -self.counts[stem]))
                words[word] = (-weight[heaviest], self.counts[heaviest])
        named = [word for word in words if word in sorted(words, key=words.__getitem__)[:most]]
        return ASKS["en"]["and"].join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)

    def pick(self, salt: str) -> str:
        """A sentence, the same for the same salt; rather one with names or numbers."""
        best = sorted(self.told, key=lambda one: -_strong(one))[: max(8, len(self.told) // 3)]
        digest = hashlib.blake2b(f"{salt} {self.title}".encode("utf-8", "replace"), digest_size=4).digest()
        return best[int.from_bytes(digest, "big") % len(best)]


def _strong(sentence: str) -> float:
    found = keys(sentence)
    return sum(weight > 1 for weight in found.weight.values()) / math.sqrt(1 + len(found.weight))


def questions(blocks: Blocks) -> dict[str, Any]:
    """A question of each kind that is wanted, about sentences of the documents."""
    documents = [_Document(text) for text in blocks["document"]]
    made = []
    for number, kind in enumerate(_wanted(blocks), 1):
        one, other = documents[number % len(documents)], documents[(number + 1) % len(documents)]
        first, second = one.pick(f"{kind} {number}"), other.pick(f"{kind} {number} other")
        asks = ASKS[one.lang]
        title = one.title
        if other is not one and "{other}" in asks[kind]:
            title += asks["and"] + other.title
        asked = asks[kind].format(title=title, topic=one.topic(first), other=other.topic(second))
        told = f"{first} {second}" if "{other}" in asks[kind] else first
        made.append({"number": number, "question": asked[:990], "answer": told[:990]})
    return {"questions": made}


def gaps(blocks: Blocks) -> dict[str, Any]:
    """Questions for what none of the documents mentions, about something that one does."""
    documents = [_Document(text) for text in blocks["document"]]
    made = []
    for number, _ in enumerate(_wanted(blocks), 1):
        one = documents[number % len(documents)]
        words = set().union(*(document.words for document in documents))
        absent = [gap for gap in GAPS[one.lang] if not keys(gap).weight.keys() & words] or GAPS[one.lang]
        asks, topic = ASKS[one.lang], one.topic(one.pick(f"gap {number}"), 1)
        given = {
            "gap": absent[number % len(absent)],
            "topic": topic,
            "title": one.title,
        }
        asked, missing = asks["gap"].format(**given), asks["missing"].format(**given)
        made.append({"number": number, "question": asked[:990], "answer": missing[:990]})
    return {"questions": made}


def _wanted(blocks: Blocks) -> list[str]:
    return re.findall(r"^\d+\. (\S+)$", blocks["wanted"][0], re.MULTILINE)


def unaided(blocks: Blocks) -> dict[str, Any]:
    """What everybody knows, if it is asked for; else nothing."""
    asked = _asked(blocks["question"][0])
    for fact in KNOWN:
        shared = keys(fact).weight.keys() & asked.keys()
        if len(shared) >= 2:
            return {"known": True, "answer": fact}
    return {"known": False, "answer": ""}


def _asked(question: str) -> dict[str, float]:
    """What a question names: its keys without those of the usual forms and of titles."""
    lang = "zh" if re.search(f"[{CJK}]", question) else "en"
    bare = re.sub("“[^”]*”", " ", question) if lang == "en" else re.sub("《[^》]*》", " ", question)
    asked = {
        stem: weight for stem, weight in keys.__wrapped__(bare).weight.items() if stem not in _FRAME[lang]
    }
    return asked or keys.__wrapped__(question).weight


def reading(blocks: Blocks) -> dict[str, Any]:
    """The sentences that share most with the question; no answer where they miss much of what it names."""
    question, text = blocks["question"][0], blocks["document"][0]
    asked, document = _asked(question), _Document(text)
    found = [(one, keys(one).weight.keys() & asked.keys()) for one in document.told]
    spread = Counter(stem for _, stems in found for stem in stems)
    rarity = {stem: asked[stem] * math.log1p(len(found) / count) for stem, count in spread.items()}
    held: set[str] = set()
    best: list[int] = []
    # Each next sentence is the one that adds most to what the others hold already.
    for _ in range(PLACES):
        worth = [sum(rarity[stem] for stem in stems - held) for _, stems in found]
        place = max(range(len(found)), key=worth.__getitem__, default=-1)
        if place < 0 or not worth[place]:
            break
        best.append(place)
        held |= found[place][1]
    told = [found[place][0] for place in sorted(best)]
    share = sum(asked[stem] for stem in held) / sum(asked.values())
    why = f"{len(told)} places hold {share:.0%} of what is asked for."
    if share >= NEED and asked.keys() <= document.words:
        return {"analysis": why, "answerable": True, "answer": " ".join(told)[:7900]}
    asks = ASKS["zh" if re.search(f"[{CJK}]", question) else "en"]
    missing = asks["unknown"].format(topic=", ".join(sorted(asked.keys() - held)[:3]))
    nearest = asks["nearest"].format(told[0][:500]) if told else ""
    return {"analysis": why, "answerable": False, "answer": missing + nearest}


def same(blocks: Blocks) -> dict[str, Any]:
    """Whether the answer holds most of what the reference says beyond the question."""
    answer, reference = blocks["answer"][0], keys.__wrapped__(blocks["reference"][0])
    new = {k: w for k, w in reference.weight.items() if k not in _asked(blocks["question"][0])}
    reference = reference._replace(weight=new or reference.weight)
    said = {stem for one in sentences(answer) for stem in keys(one).weight}
    share = overlap(reference, said)
    declined = bool(UNKNOWN.search(answer[:120]))
    equal = share >= SAME and not declined
    return {"analysis": f"The answer says {share:.0%} of the reference.", "same": "yes" if equal else "no"}


KINDS = {"questions": questions, "gaps": gaps, "unaided": unaided, "reading": reading, "same": same}
