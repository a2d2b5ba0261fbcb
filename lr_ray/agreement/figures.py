"""What `agreement.json` holds, computed from the labelled pairs alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

from lr_ray.agreement.cases import BOTH, METHODS, REWARD, SINGLE, Case
from lr_ray.agreement.direct import Said, couples, winner
from lr_ray.agreement.outcomes import Choice, Values, accuracy, chance, choice, outcome
from lr_ray.statistics import compare, correlation, kappa, wilson

PAPER = {
    "source": "arXiv 2410.21252: other pairs and another judge than here, so no target",
    "pairs": 464,
    "longreward": 0.662,
    "short-context reward model": 0.583,
    "direct": 0.571,
    "without faithfulness or completeness": 0.578,
}
"""The paper's agreement with human labels."""
TOKENS = (4096, 8192, 16384, 32768, 65536, 131072)
WITHOUT_CONTEXT = "without a context"


def figures(
    cases: list[Case], said: Mapping[str, Said] | None, other: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """All figures of the labelled pairs.

    `said` are the direct calls, and `other` are another run's choices by `Case.key`, as hashes of answers.
    """
    found: dict[str, Any] = {
        **accuracy(case.outcomes[REWARD] for case in cases),
        "pairs": len(cases),
        "prompts": len({case.item.prompt_id for case in cases}),
        "chance": fmean(chance(case.label) for case in cases),
        "methods": methods(cases),
        "contexts": _groups(sorted(cases, key=lambda case: case.item.tokens), _bucket),
        "subsets": _groups(sorted(cases, key=lambda case: case.label.subset), lambda case: case.label.subset),
        "answer_length": answer_length(cases),
        "kappa": list(_kappas(cases, other)),
        "paper": PAPER,
    }
    if said is not None:
        found["direct"] = direct(cases, said)
    if any(case.again for case in cases):
        found["repeats"] = repeats(cases)
    turned = [case.turned for case in cases if case.turned is not None]
    if turned:
        found["settled"] = {"n": len(turned), "turned": sum(turned)}
    return found


def methods(cases: list[Case]) -> list[dict[str, Any]]:
    """Each way of judging on the pairs it looks at, and how far LongReward is ahead of it on pairs that both
    scored: the difference of accuracies with its 95% interval over prompts (paired bootstrap)."""
    made: list[dict[str, Any]] = []
    for name in METHODS:
        of_name = [case for case in cases if name in case.outcomes]
        if not of_name:
            continue
        row: dict[str, Any] = {"method": name, **accuracy(case.outcomes[name] for case in of_name)}
        if name != REWARD:
            row["longreward_ahead"] = _ahead(of_name, name)
        made.append(row)
    return made


def _ahead(cases: list[Case], name: str) -> dict[str, Any]:
    sides: dict[str, dict[str, list[float]]] = {name: {}, REWARD: {}}
    for case in cases:
        if "unscored" not in (case.outcomes[name], case.outcomes[REWARD]):
            for side, right in sides.items():
                right.setdefault(case.item.prompt_id, []).append(float(case.outcomes[side] == "right"))
    means = {side: {prompt: fmean(right) for prompt, right in found.items()} for side, found in sides.items()}
    return {**compare(means[name], means[REWARD])}


def _bucket(case: Case) -> str:
    if case.item.short:
        return WITHOUT_CONTEXT
    tokens = case.item.tokens
    below = next((edge for edge in TOKENS if tokens < edge), None)
    if below is None:
        return f"{TOKENS[-1] // 1024}k tokens and more"
    if below == TOKENS[0]:
        return f"below {below // 1024}k tokens"
    return f"{below // 2048}k to {below // 1024}k tokens"


def _groups(cases: list[Case], key: Callable[[Case], str]) -> list[dict[str, Any]]:
    """The accuracy of each way of judging in each group, in the order in which their cases come."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(key(case), []).append(case)
    return [
        {
            "name": name,
            "pairs": len(found),
            "chance": fmean(chance(case.label) for case in found),
            "methods": {
                method: accuracy(case.outcomes[method] for case in found if method in case.outcomes)
                for method in METHODS
                if any(method in case.outcomes for case in found)
            },
        }
        for name, found in groups.items()
    ]


def answer_length(cases: list[Case]) -> dict[str, Any]:
    """Does the reward follow the length of answers (in characters)?

    `answers` correlates both over all answers, `differences` within pairs. Of couples of unequal length
    `judge_prefers_longer` counts those the judge decided, `label_prefers_longer` the labels of the same.
    """
    rewards: list[float] = []
    lengths: list[float] = []
    groups: list[str] = []
    for item, values in {case.item.prompt_id: (case.item, case.values[REWARD]) for case in cases}.values():
        for value, length in zip(values, item.lengths, strict=True):
            if value is not None:
                rewards.append(value)
                lengths.append(float(length))
                groups.append(item.prompt_id)
    gaps = list(_gaps(cases))
    uneven = [(reward, length, label) for reward, length, label, _ in gaps if length and reward]
    return {
        "answers": correlation(rewards, lengths, groups),
        "differences": correlation(
            [reward for reward, *_ in gaps], [length for _, length, *_ in gaps], [gap[-1] for gap in gaps]
        ),
        "judge_prefers_longer": _share(reward * length > 0 for reward, length, _ in uneven),
        "label_prefers_longer": _share(label * length > 0 for _, length, label in uneven),
    }


def _gaps(cases: list[Case]) -> Iterator[tuple[float, float, int, str]]:
    """Of each scored couple, earlier answer minus later: reward, length, and which one the label prefers."""
    for case in cases:
        rewards, lengths = case.values[REWARD], case.item.lengths
        for chosen, rejected in couples(case.label):
            one, other = sorted((chosen, rejected))
            first, second = rewards[one], rewards[other]
            if first is not None and second is not None:
                label = 1 if one == chosen else -1
                yield first - second, lengths[one] - lengths[other], label, case.item.prompt_id


def _share(hits: Iterable[bool]) -> dict[str, Any]:
    found = list(hits)
    interval = wilson(sum(found), len(found))
    return {
        "n": len(found),
        "share": sum(found) / len(found) if found else None,
        "low": interval[0] if interval else None,
        "high": interval[1] if interval else None,
    }


def direct(cases: list[Case], said: Mapping[str, Said]) -> dict[str, Any]:
    """How far the direct calls depend on the order of the answers.

    `consistent` counts couples of which both orders name the same winner (or twice a tie), `first` calls
    that were decided for the answer shown first.
    """
    # A couple that two pairs share was asked about once.
    asked = {(case.item.prompt_id, *sorted(couple)) for case in cases for couple in couples(case.label)}
    same: list[bool] = []
    first: list[bool] = []
    for prompt_id, one, other in sorted(asked):
        calls = said.get(prompt_id, {})
        ways = [winner(calls, one, other), winner(calls, other, one)]
        if None not in ways:
            same.append(ways[0] == ways[1])
        first += [
            won == shown for won, shown in zip(ways, (one, other), strict=True) if won not in (None, "tie")
        ]
    return {"consistent": _share(same), "first": _share(first)}


def repeats(cases: list[Case]) -> dict[str, Any]:
    """Do further judgings of the same pair say the same?

    `same` counts pairs for which all do, `flips` the share of two judgings that differ; `accuracies` are of
    each judging, `mean` is of the mean reward over all. Over pairs that every judging scored.
    """
    every = [(case, [case.values[REWARD], *case.again]) for case in cases]
    choices = [[choice(values, case.label) for values in found] for case, found in every]
    scored = [found for found in choices if None not in found]
    flips = [one != other for found in scored for one, other in combinations(found, 2)]
    judgings = max(len(found) for _, found in every)
    return {
        "judgings": judgings,
        "same": _share(len(set(found)) == 1 for found in scored),
        "flips": sum(flips) / len(flips) if flips else None,
        "accuracies": [
            accuracy(outcome(found[number], case.label) for case, found in every)
            for number in range(judgings)
        ],
        "mean": accuracy(outcome(_mean(found), case.label) for case, found in every),
    }


def _mean(judgings: Sequence[Values]) -> Values:
    made: list[float | None] = []
    for values in zip(*judgings, strict=True):
        known = [value for value in values if value is not None]
        made.append(fmean(known) if len(known) == len(values) else None)
    return made


def _kappas(cases: list[Case], other: Mapping[str, str] | None) -> Iterator[dict[str, Any]]:
    """Cohen's kappa of LongReward's choices with others', the categories being the places of the answers in
    an order made at random, and a tie."""
    for name in (SINGLE, BOTH):
        both = [(case.choices[REWARD], case.choices[name], case) for case in cases if name in case.choices]
        if both:
            yield {"with": name, **_kappa(both)}
    if other is not None:
        found = [
            (case.choices[REWARD], _index(case, other[case.key]), case) for case in cases if case.key in other
        ]
        yield {"with": "other", **_kappa(found)}


def _kappa(choices: list[tuple[Choice, Choice, Case]]) -> dict[str, Any]:
    known = [
        (_place(one, case), _place(two, case), case.item.prompt_id)
        for one, two, case in choices
        if one is not None and two is not None
    ]
    one, two, prompts = ([each[i] for each in known] for i in range(3))
    return {**kappa(one, two, prompts)}


def _place(chosen: Choice, case: Case) -> Any:
    return chosen if chosen == "tie" else case.label.answers.index(chosen)  # pyrefly: ignore


def _index(case: Case, chosen: str) -> Choice:
    return "tie" if chosen == "tie" else case.item.hashes.index(chosen)
