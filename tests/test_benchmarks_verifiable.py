"""IFEval's instructions: a text that follows each and one that does not, worked out by hand."""

import time
from typing import Any

import pytest

from lr_ray.benchmarks import plain, verifiable
from lr_ray.benchmarks.case import Case, asked
from lr_ray.benchmarks.verifiable import follows, loosely

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("keywords:existence", {"keywords": ["mill", "River"]}, "The MILL by the river.", "The mill."),
    ("keywords:frequency", {"keyword": "tin", "relation": "at least", "frequency": 2}, "Tin, tin.", "Tin."),
    ("keywords:frequency", {"keyword": " tin ", "relation": "less than", "frequency": 2}, "x", "Tin,tin."),
    ("keywords:forbidden_words", {"forbidden_words": ["salt"]}, "Salty air.", "It is Salt."),
    (
        "keywords:letter_frequency",
        {"letter": "e", "let_relation": "at least", "let_frequency": 3},
        "Eleven eels.",
        "Ten.",
    ),
    ("language:response_language", {"language": "de"}, "Das ist ein deutscher Satz.", "This is English."),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 3},
        "Dr. Lee came. She left at 3 p.m. today.",
        "One. Two! Three?",
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 2},
        "Shopping:\n- apples\n- pears",
        "Shopping:\n- apples.\n- pears",
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 2},
        "Wait... it is 1. near the U.S. border",
        "Wait! \U0001f600",
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 3},
        "Come at 3 p.m. The mill, etc. Go.",
        "Come at 3 p.m. Smith has 2. mills.",
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 2},
        "你好。今天很好。",
        "Only one here.",
    ),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 3}, "a b c", "a b"),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        "First.\n***\nSecond.\n***",
        "First.\n***\n\n***\nSecond.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "copper"},
        'One here.\n\n"Copper," she said.',
        "One here.\n\nCoppersmiths work.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "copper"},
        "One here.\n\n'\"copper? Yes.",
        "One here.\n\n**Copper** is dear.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "one"},
        "One here.\n\n \n\nTwo.",
        "\n\nOne here.\n\nTwo.",
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "copper"},
        "Copper.",
        "Copper: it is dear.",
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        "Dear [name], [city].",
        "Dear [name].",
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\n\np.s. Later.", "Steps to take."),
    (
        "detectable_content:postscript",
        {"postscript_marker": " P.S. "},
        "Bye. P. S. Later.",
        "I sold my PS 5.",
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Bye. P.P.S More.", "Bye. P.S. One."),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, "Bye.\nn.b. Later.", "Bye. nobody"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b", "* a\n* b\n- c"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "- a\n*", "- a\n* b"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "**bold** is no bullet\n- a", "**bold**"),
    ("detectable_format:constrained_response", {}, "So: My answer is maybe.", "my answer is maybe."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and * *"),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "***a***", "**a** and ****"),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": " Section ", "num_sections": 2},
        "Section 1\nA.\nSection2\nB.",
        "Section 1\nA. Section  2.",
    ),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', '{"a": }'),
    ("detectable_format:title", {}, "<<The Mill>>\nIt stands.", "<< >>\nIt stands."),
    ("detectable_format:title", {}, "<< >> The Mill >>", "<<The\nMill>>"),
    ("combination:two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say it."},
        "say it. Well then.",
        "Well then. Say it.",
    ),
    ("startend:end_checker", {"end_phrase": "That is all."}, 'So. "That is all."', "That is all. Bye."),
    ("startend:quotation", {}, '"All of it."', '"All" of it.'),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "less than", "capital_frequency": 2},
        "ONE is enough",
        "ONE and TWO",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_relation": "at least", "capital_frequency": 2},
        "I'm in the U.S. now",
        "the U.S. and/OR mill",
    ),
    ("change_case:english_capital", {}, "THE MILL STANDS NEAR THE RIVER.", "THE MILL stands."),
    ("change_case:english_lowercase", {}, "the mill stands near the river.", "The mill stands."),
    (
        "change_case:english_lowercase",
        {},
        "this is an english sentence.",
        "dies ist ein deutscher satz hier.",
    ),
    ("punctuation:no_comma", {}, "No pause here.", "One, two."),
]


@pytest.mark.parametrize(("instruction", "given", "good", "bad"), CASES)
def test_an_instruction_is_followed_or_not(
    instruction: str, given: dict[str, Any], good: str, bad: str
) -> None:
    assert follows(good, instruction, given)
    assert not follows(bad, instruction, given)
    assert not follows("  \n", instruction, given)


def test_all_25_published_instructions_have_a_checker() -> None:
    assert len(verifiable.RULES) == 25
    assert {instruction for instruction, *_ in CASES} == set(verifiable.RULES)


@pytest.mark.parametrize(
    ("instruction", "given"),
    [
        ("made:up", {}),
        ("length_constraints:number_words", {"relation": "at least"}),
        ("length_constraints:number_words", {"relation": "about", "num_words": 3}),
        ("length_constraints:number_words", {"relation": "at least", "num_words": "many"}),
        ("keywords:existence", {"keywords": None}),
        ("detectable_content:postscript", {"postscript_marker": "..."}),
    ],
)
def test_what_cannot_be_checked_is_unknown(instruction: str, given: dict[str, Any]) -> None:
    with pytest.raises(verifiable.Unknown):
        follows("Some text.", instruction, given)


def test_loosely_without_first_line_last_line_or_stars() -> None:
    quoted, given = "startend:quotation", {}
    assert loosely('Here it is:\n"All of it."', quoted, given)
    assert loosely('"All of it."\nI hope that helps.', quoted, given)
    assert loosely('Here:\n"All of it."\nBye.', quoted, given)
    assert loosely('**"All of it."**', quoted, given)
    assert not loosely('Here:\nmore:\n"All of it."\nBye.', quoted, given)
    assert not follows('Here it is:\n"All of it."', quoted, given)


def case(*checks: tuple[str, dict[str, Any]]) -> Case:
    listed: Any = [{"id": one, "kwargs": kwargs} for one, kwargs in checks]
    return Case("k", asked("Do it."), "instructions", "Do it.", checks=listed).named("ifeval")


def values(found: Case, *texts: str) -> dict[str, list[tuple[float | None, float]]]:
    row = plain.grade(found, [{"index": i, "text": t, "finish_reason": "stop"} for i, t in enumerate(texts)])
    out: dict[str, list[tuple[float | None, float]]] = {}
    for grade in row["grades"]:
        out.setdefault(grade["metric"], []).append((grade["value"], grade["weight"]))
    return out


def test_prompt_and_instruction_levels() -> None:
    both = case(("punctuation:no_comma", {}), ("startend:quotation", {}))
    assert values(both, '"All of it."', '"All, of it."', 'So:\n"All of it."') == {
        "prompts, strict": [(100.0, 1.0), (0.0, 1.0), (0.0, 1.0)],
        "instructions, strict": [(100.0, 2.0), (50.0, 2.0), (50.0, 2.0)],
        "prompts, loose": [(100.0, 1.0), (0.0, 1.0), (100.0, 1.0)],
        "instructions, loose": [(100.0, 2.0), (50.0, 2.0), (100.0, 2.0)],
    }


def test_an_unknown_instruction_is_unscored_and_counted() -> None:
    some = case(("punctuation:no_comma", {}), ("made:up", {}))
    assert values(some, "No pause.")["prompts, strict"] == [(None, 1.0)]
    assert values(some, "No pause.")["instructions, strict"] == [(100.0, 1.0), (None, 1.0)]
    row = plain.grade(case(("made:up", {})), [{"index": 0, "text": "x", "finish_reason": "stop"}])
    assert {grade["unscored"] for grade in row["grades"]} == {"no checker for made:up"}
    assert [grade["value"] for grade in row["grades"]] == [None] * 4


def test_a_choice_is_right_wrong_or_not_stated() -> None:
    of = Case("k", asked("Which?"), "choice", "Which?", references=["B"]).named("v2")
    assert values(of, "Answer: B", "Answer: C", "Hard to say.") == {
        "accuracy": [(100.0, 1.0), (0.0, 1.0), (None, 1.0)],
        "accuracy as published, no choice is wrong": [(100.0, 1.0), (0.0, 1.0), (0.0, 1.0)],
    }


ARGUMENTS: dict[str, Any] = {
    **{"keywords": ["a"], "keyword": "a", "relation": "at least", "frequency": 1, "forbidden_words": ["b"]},
    **{"letter": "a", "let_relation": "at least", "let_frequency": 1, "language": "en", "num_sentences": 1},
    **{"num_words": 1, "num_paragraphs": 2, "nth_paragraph": 1, "first_word": "x", "num_placeholders": 1},
    **{"postscript_marker": "P.S.", "num_bullets": 1, "num_highlights": 1, "section_spliter": "SECTION"},
    **{"num_sections": 1, "prompt_to_repeat": "x", "end_phrase": "x", "capital_relation": "at least"},
    **{"capital_frequency": 1},
}


@pytest.mark.parametrize(
    "unit", ["\n", " ", "[", "<", "*", "* ", '."', "a. ", "(a.) ", "P. ", "`", " \n", "A", "SECTION ", "! "]
)
def test_no_text_of_a_model_holds_a_rule_up(unit: str) -> None:
    text = "x" + unit * (100_000 // len(unit)) + "x"
    verifiable.follows("warm", "language:response_language", ARGUMENTS)  # loads its table once
    for rule in verifiable.RULES:
        began = time.process_time()
        verifiable.follows(text, rule, ARGUMENTS)
        assert time.process_time() - began < 2, rule
