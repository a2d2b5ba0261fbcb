"""Verdicts: which statements are one, and several of them in one call."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lr_ray import simulated
from lr_ray.config import Judge
from lr_ray.judge import support
from lr_ray.judge.answers import Statements, Verdict, Verdicts, schema
from lr_ray.judge.requests import SEVERAL, template
from lr_ray.judge.support import Claim, grouped, same, united
from lr_ray.llm.calls import Call, Unusable
from lr_ray.rows import Passage
from tests.endpoint import Answer, chat, in_turn
from tests.test_judge_core import Asks, Reply, ideal, judge, row
from tests.test_llm_calls import ask


@pytest.mark.parametrize(
    "other",
    [
        "Mira  keeps\n“copper” ",
        'Mira keeps "copper".',
        "Mira keeps \u201ccopper\u201d. ",
        "Mira\u00a0keeps „copper“。",
    ],
)
def test_what_changes_no_claim_makes_no_other_statement(other: str) -> None:
    assert same(other) == same('Mira keeps "copper"')


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It speaks polish.", "It speaks Polish."),
        ("It takes 1.5 hours.", "It takes 15 hours."),
        ("It holds x² of it.", "It holds x2 of it."),
        ("It is not, as said, old.", "It is not as said old."),
        ("Is it old?", "It is old."),
        ("It costs -5.", "It costs 5."),
    ],
)
def test_what_may_change_a_claim_makes_another(one: str, other: str) -> None:
    assert same(one) != same(other)


def test_composition_of_characters_is_no_difference_and_nothing_becomes_empty() -> None:
    assert same("Ame\u0301lie sings.") == same("Am\u00e9lie sings")
    assert same("...") == "..."


def test_equal_statements_of_an_answer_count_once_and_of_several_are_the_same_request() -> None:
    said = {"One.": ["Mira keeps copper.", "Mira keeps  copper", "It rains."], "Two.": ["Mira keeps copper "]}

    def script(name: str, text: str) -> Reply:
        answer = re.search(r"<answer \w+>\n(.*)\n", text)
        return (
            Statements(statements=said[answer[1]]) if name == "statements" and answer else ideal(name, text)
        )

    asks = Asks(script)
    judged = judge(asks, row("One.", "Two."))
    texts = [text for name, text in asks.asked if name == "support"]
    assert len(texts) == 3
    assert len(set(texts)) == 2
    assert [s["text"] for s in judged["candidates"][0]["statements"]] == ["Mira keeps copper.", "It rains."]


def passages(*positions: float) -> list[Passage]:
    return [{"position": position, "text": f"at {position}"} for position in positions]


def claims(*places: tuple[float, ...]) -> list[Claim]:
    return [Claim(str(n), str(n), passages(*place)) for n, place in enumerate(places)]


def test_a_group_has_bounded_statements_and_passages_and_loses_none() -> None:
    made = claims((0.1, 0.2), (0.2, 0.3), (0.5, 0.6), (0.7, 0.8), (0.1, 0.2), (0.1, 0.2))
    groups = list(grouped(made, 3, 4))
    assert [claim for group in groups for claim in group] == made
    assert [len(group) for group in groups] == [2, 2, 2]
    assert [len(group) for group in grouped(made, 4, 100)] == [4, 2]
    assert [len(group) for group in grouped(made, 1, 1)] == [1] * 6


def test_the_passages_of_a_group_come_once_and_in_document_order() -> None:
    found = united(claims((0.5, 0.9), (0.1, 0.5)))
    assert [passage["position"] for passage in found] == [0.1, 0.5, 0.9]


def verdicts(text: str) -> Verdicts:
    numbers = re.findall(r"<statement \w+ (\d+)>\n(.*)", text)
    found = [
        {"statement": int(n), "analysis": s, "verdict": "none" if "salt" in s else "full"} for n, s in numbers
    ]
    return Verdicts.of(len(numbers)).model_validate({"verdicts": found})


def several(name: str, text: str) -> Reply:
    if name == "statements":
        return Statements(statements=["Mira keeps copper.", "Toben keeps salt.", "The mill is old."])
    return verdicts(text) if name == "support" and text.count("<statement") > 1 else ideal(name, text)


def test_several_statements_are_verified_by_one_call() -> None:
    asks = Asks(several)
    (candidate,) = judge(asks, statements_per_call=2)["candidates"]
    assert [(s["text"], s["verdict"]) for s in candidate["statements"]] == [
        ("Mira keeps copper.", "full"),
        ("Toben keeps salt.", "none"),
        ("The mill is old.", "full"),
    ]
    assert asks.count("support") == 2
    assert [unit for unit in asks.units if unit[0] == "support"] == [("support", 0, 0), ("support", 0, 2)]
    # A statement left alone is asked as ever.
    assert sum("<statement" in text and "1>" not in text for name, text in asks.asked) == 1


def test_a_call_without_verdicts_leaves_its_statements_without_one() -> None:
    def script(name: str, text: str) -> Reply:
        lost = name == "support" and text.count("<statement") > 1
        return Unusable("cut off") if lost else several(name, text)

    (candidate,) = judge(Asks(script), statements_per_call=2)["candidates"]
    assert [(s["verdict"], s["unscored"]) for s in candidate["statements"]] == [
        (None, "cut off"),
        (None, "cut off"),
        ("full", None),
    ]
    assert candidate["scores"]["faithfulness"] is None


@pytest.mark.parametrize("numbers", [[1], [1, 2, 3], [2, 1], [1, 1], []])
def test_another_count_of_verdicts_is_no_answer(numbers: list[int]) -> None:
    found = [{"statement": n, "analysis": "", "verdict": "full"} for n in numbers]
    with pytest.raises(ValueError, match="not one verdict for each of 2 statements"):
        Verdicts.of(2).model_validate({"verdicts": found})


def test_a_reply_with_a_verdict_missing_is_asked_again(tmp_path: Path) -> None:
    def reply(count: int) -> Answer:
        found = [{"statement": n + 1, "analysis": "", "verdict": "partial"} for n in range(count)]
        return chat(json.dumps({"verdicts": found}))

    asked = Verdicts.of(2)
    messages: Any = [{"role": "system", "content": "Check."}, {"role": "user", "content": "these"}]
    call: Any = Call("support", messages, schema("support", asked), asked)
    (answer,), endpoint, row = ask(tmp_path, in_turn(reply(1), reply(3), reply(2)), call)
    assert [verdict.verdict for verdict in answer.verdicts] == ["partial", "partial"]
    assert (len(endpoint.requests), row.usage["retries"]) == (3, 2)


def test_the_schema_of_several_asks_for_as_many() -> None:
    found = schema("support", Verdicts.of(3))["properties"]["verdicts"]
    assert (found["minItems"], found["maxItems"]) == (3, 3)
    assert found["items"]["properties"]["statement"]["maximum"] == 3
    assert schema("support", Verdict)["required"] == ["analysis", "verdict"]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_example_of_several_is_an_answer_that_the_rules_can_read(lang: str) -> None:
    system, _ = template(SEVERAL, lang)
    (line,) = [line for line in system.splitlines() if line.startswith('{"') and "…" not in line]
    assert [v.verdict for v in Verdicts.of(3).model_validate_json(line).verdicts] == [
        "full",
        "partial",
        "none",
    ]
    example = re.sub(r"\be(\d)\b", r"0123456789abcde\1", system)
    answer = simulated.rules.answer("support", example)
    assert len(Verdicts.of(3).model_validate(answer).verdicts) == 3


def test_settings_bound_the_statements_of_a_call() -> None:
    assert Judge().statements_per_call == 1
    assert support.PASSAGES * Judge().retrieval.top_k == 20
