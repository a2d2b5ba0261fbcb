"""What `lr-ray synthesize` made: documents, questions, prompts, and why others were dropped."""

from collections.abc import Mapping
from typing import Any

from lr_ray import meter
from lr_ray.report import words
from lr_ray.report.plots import meter as bar
from lr_ray.report.shapes import Synthesis

ROWS = 30  # of a table
# What synthesis.json calls the outcomes of questions, for somebody who has not read its code.
OUTCOMES = {
    "duplicate": "nearly the same as another question",
    "context_free": "answered as well without the context",
    "unanswerable": "no answer in the context",
    "disputed": "a reader of the whole context answers otherwise",
    "answerable": "meant to have no answer, but has one",
    "unchecked": "a check gave no result",
}


def section(found: Synthesis) -> dict[str, Any]:
    """What the section shows."""
    questions, documents = found.questions, found.documents
    left_out = {OUTCOMES.get(name, name): count for name, count in questions.dropped.items()}
    lengths = {f"{words.whole(_tokens(name))} tokens": of.contexts for name, of in found.lengths.items()}
    tables = (
        ("Contexts by length", "aimed at", "contexts", lengths),
        ("Prompts by kind of question", "kind", "prompts", found.kinds),
        ("Prompts by language", "language", "prompts", found.languages),
        ("Contexts made of", "documents", "contexts", found.made_of),
        ("Questions dropped", "reason", "questions", left_out),
        ("Questions never written", "reason", "contexts", questions.unwritten),
        ("Documents dropped", "reason", "documents", documents.dropped),
    )
    return {
        "found": found,
        "lengths": [
            {
                "name": f"{words.whole(_tokens(name))} tokens",
                "contexts": words.whole(of.contexts),
                "mean": words.whole(of.mean_tokens),
                "short": words.whole(of.under_90_percent),
            }
            for name, of in list(found.lengths.items())[:ROWS]
        ],
        "tables": [_counted(*table) for table in tables if table[3]],
    }


def _tokens(name: str) -> float | None:
    return float(name) if name.isdecimal() and len(name) < 12 else None


def _counted(title: str, of: str, what: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """A table with bars as long as each count's share of the largest."""
    ordered = list(counts.items())
    if what == "questions" or "dropped" in title:
        ordered.sort(key=lambda item: -item[1])
    most = max([count for _, count in ordered] or [0]) or 1
    return {
        "title": title,
        "of": of,
        "what": what,
        "rows": [
            (name, words.whole(count), bar(10 * count / most, f"{words.clipped(name)}: {count}"))
            for name, count in ordered[:ROWS]
        ],
        "more": len(ordered[ROWS:]),
        "more_count": words.whole(sum(count for _, count in ordered[ROWS:])),
    }


def sentence(found: Synthesis) -> str:
    """The result in one sentence."""
    prompts = meter.number(found.questions.kept, "prompt")
    written = meter.number(found.questions.written, "question")
    return f"{prompts} made of {meter.number(found.documents.used, 'document')}; {written} were written."
