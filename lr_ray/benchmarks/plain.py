"""Answers graded by plain rules, without a judge: choices, verifiable instructions, words to be found."""

from collections.abc import Callable

from lr_ray.benchmarks import longbench, ruler, verifiable
from lr_ray.benchmarks.case import Case
from lr_ray.benchmarks.grades import Given, Graded, given, graded
from lr_ray.judge.together import Missing
from lr_ray.rows import Candidate

NO_CHOICE = "the answer states no choice, or several"
PUBLISHED = "accuracy as published, no choice is wrong"
STRICT, LOOSE = "strict", "loose"


def grade(case: Case, candidates: list[Candidate]) -> Graded:
    """The row of grades of all answers to a case, in percent."""
    way = WAYS[case.grade]
    return graded(case, [one for c in candidates for one in way(case, c["text"], c["index"])])


def _choice(case: Case, answer: str, index: int) -> list[Given]:
    """Right or wrong; an answer that states no choice is neither, but by the published measure wrong."""
    letter = longbench.chosen(answer)
    right = 100.0 * (letter == case.references[0])
    stated = Missing(NO_CHOICE) if letter is None else right
    return [given(index, "accuracy", stated), given(index, PUBLISHED, right)]


def _recall(case: Case, answer: str, index: int) -> list[Given]:
    return [given(index, "found", 100 * ruler.recall(answer, case.references))]


def _instructions(case: Case, answer: str, index: int) -> list[Given]:
    """Strictly and loosely: whether all instructions are followed, and which share of them.

    One that cannot be checked is unscored, and so is whether all are.
    """
    grades: list[Given] = []
    for name, followed in ((STRICT, verifiable.follows), (LOOSE, verifiable.loosely)):
        known: list[bool] = []
        reason = ""
        for check in case.checks:
            try:
                known.append(followed(answer, check["id"], check["kwargs"]))
            except verifiable.Unknown as error:
                reason = str(error)
        whole = Missing(reason) if reason else 100.0 * all(known)
        grades.append(given(index, f"prompts, {name}", whole))
        share = 100.0 * sum(known) / len(known) if known else Missing(reason)
        grades.append(given(index, f"instructions, {name}", share, weight=float(len(known))))
        unknown = len(case.checks) - len(known)
        grades += [
            given(index, f"instructions, {name}", Missing(reason)) for _ in range(unknown if known else 0)
        ]
    return grades


WAYS: dict[str, Callable[[Case, str, int], list[Given]]] = {
    "choice": _choice,
    "recall": _recall,
    "instructions": _instructions,
}
