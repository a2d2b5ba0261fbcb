"""What `agreement.json` holds, computed from the labelled pairs alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from operator import itemgetter
from statistics import fmean
from typing import Any

from lr_ray.agreement.cases import BOTH, METHODS, REWARD, SINGLE, Case
from lr_ray.agreement.direct import Said, couples, winner
from lr_ray.agreement.outcomes import Accuracy, Choice, Values, accuracy, chance, choice, outcome
from lr_ray.statistics import clustered_wilson, compare_items, correlation, kappa

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
        **_accuracy(cases, REWARD),
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
    """Each way of judging on the pairs it looks at, and how far LongReward is ahead of it: the difference of
    accuracies on the pairs that both scored, with its 95% interval (paired bootstrap over prompts)."""
    made: list[dict[str, Any]] = []
    for name in METHODS:
        of_name = [case for case in cases if name in case.outcomes]
        if not of_name:
            continue
        row: dict[str, Any] = {"method": name, **_accuracy(of_name, name)}
        if name != REWARD:
            row["longreward_ahead"] = _ahead(of_name, name)
        made.append(row)
    return made


def _ahead(cases: list[Case], name: str) -> dict[str, Any]:
    both = [case for case in cases if "unscored" not in (case.outcomes[name], case.outcomes[REWARD])]
    one, other = ([float(case.outcomes[side] == "right") for case in both] for side in (name, REWARD))
    return {**compare_items(one, other, [case.item.prompt_id for case in both]), "pairs": len(both)}


def _accuracy(cases: list[Case], name: str) -> Accuracy:
    """Of a way of judging, on those of the pairs that it looks at."""
    return accuracy((c.item.prompt_id, c.outcomes[name]) for c in cases if name in c.outcomes)


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
                method: _accuracy(found, method)
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
    uneven = [gap for gap in gaps if gap[0] and gap[1]]
    return {
        "answers": correlation(rewards, lengths, groups),
        "differences": correlation(
            [reward for reward, *_ in gaps], [length for _, length, *_ in gaps], [gap[-1] for gap in gaps]
        ),
        "judge_prefers_longer": _share((prompt, reward * length > 0) for reward, length, _, prompt in uneven),
        "label_prefers_longer": _share((prompt, label * length > 0) for _, length, label, prompt in uneven),
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


def _share(hits: Iterable[tuple[str, bool]]) -> dict[str, Any]:
    """The share of hits, each with its prompt's id."""
    every = list(hits)
    found = [hit for _, hit in every]
    interval = clustered_wilson(found, [prompt for prompt, _ in every])
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
    same: list[tuple[str, bool]] = []
    first: list[tuple[str, bool]] = []
    for prompt_id, one, other in sorted(asked):
        calls = said.get(prompt_id, {})
        ways = [winner(calls, one, other), winner(calls, other, one)]
        if None not in ways:
            same.append((prompt_id, ways[0] == ways[1]))
        first += [
            (prompt_id, won == shown)
            for won, shown in zip(ways, (one, other), strict=True)
            if won not in (None, "tie")
        ]
    return {"consistent": _share(same), "first": _share(first)}


def repeats(cases: list[Case]) -> dict[str, Any]:
    """Do further judgings of the same pair say the same?

    `same` counts pairs for which all do, `flips` the share of two judgings that differ; `accuracies` are of
    each judging, `mean` is of the mean reward over all. Over pairs that every judging scored.
    """
    every = [(case, [case.values[REWARD], *case.again]) for case in cases]
    choices = [
        (case.item.prompt_id, [choice(values, case.label) for values in found]) for case, found in every
    ]
    scored = [(prompt, found) for prompt, found in choices if None not in found]
    flips = [one != other for _, found in scored for one, other in combinations(found, 2)]
    judgings = max(len(found) for _, found in every)

    def of(values: Callable[[list[Values]], Values]) -> Accuracy:
        return accuracy((c.item.prompt_id, outcome(values(found), c.label)) for c, found in every)

    return {
        "judgings": judgings,
        "same": _share((prompt, len(set(found)) == 1) for prompt, found in scored),
        "flips": sum(flips) / len(flips) if flips else None,
        "accuracies": [of(itemgetter(number)) for number in range(judgings)],
        "mean": of(_mean),
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
