"""Texts that are made: their length, what they hide, and how much of it an answer finds."""

import re
from collections import Counter

import pytest

from lr_ray.benchmarks import ruler
from lr_ray.benchmarks.case import Case
from lr_ray.config import Benchmark
from lr_ray.judge import chunks

BUILT_IN = chunks.measure(None)
POLICY = "jobs/demo/policy"


def made(task: str, length: int, cases: int = 1, seed: int = 0, tokenizer: str | None = None) -> list[Case]:
    benchmark = Benchmark(kind="ruler", tasks=[task], lengths=[length], cases=cases, seed=seed)
    return list(ruler.cases(benchmark, chunks.measure(tokenizer)))


@pytest.mark.parametrize("task", ruler.TASKS)
@pytest.mark.parametrize(("length", "tokenizer"), [(300, None), (5000, None), (64_000, None), (3000, POLICY)])
def test_a_text_fills_its_length_and_holds_what_is_asked(
    task: str, length: int, tokenizer: str | None
) -> None:
    (case,) = made(task, length, tokenizer=tokenizer)
    context, question = case.prompt["context"], case.prompt["question"]
    tokens = ruler.tokens(f"{context}\n\n{question}", chunks.measure(tokenizer))
    assert 0.85 * length <= tokens <= length + 2
    assert ruler.recall(context, case.references) == 1
    assert ruler.recall(question, case.references) == 0
    assert case.groups == [task, f"{length} tokens"]


def test_the_same_seed_makes_the_same_texts() -> None:
    first, again = made("multi_key", 1000, cases=2), made("multi_key", 1000, cases=2)
    assert [case.prompt for case in first] == [case.prompt for case in again]
    assert first[0].prompt != first[1].prompt
    assert made("multi_key", 1000, seed=1)[0].prompt != first[0].prompt


def test_a_single_needle_lies_at_every_depth() -> None:
    depths = []
    for case in made("single", 4000, cases=4):
        context = case.prompt["context"]
        depths.append(context.index(case.references[0]) / len(context))
    assert depths == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8], abs=0.03)


def needles(context: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"The secret number of the ([a-z]+ [a-z]+) is (\d{7})\.", context):
        found.setdefault(key, []).append(value)
    return found


def test_needles_among_others_of_one_key_and_of_several() -> None:
    (among,), (several,), (queries,) = (
        made(task, 2000) for task in ("multi_key", "multi_value", "multi_query")
    )
    keys = needles(among.prompt["context"])
    assert len(keys) == ruler.KEYS
    (asked,) = [key for key in keys if key in among.question]
    assert among.references == keys[asked]
    (values,) = needles(several.prompt["context"]).values()
    assert sorted(values) == sorted(several.references)
    assert len(values) == ruler.KEYS
    of = needles(queries.prompt["context"])
    assert all(key in queries.question for key in of)
    assert sorted(value for (value,) in of.values()) == sorted(queries.references)


def test_a_chain_of_names_leads_to_its_value_and_no_other() -> None:
    (case,) = made("tracking", 2000)
    value: dict[str, str] = {}
    for name, number, later, earlier in re.findall(
        r"(?:([A-Z]{5}) has the value (\d{7})|([A-Z]{5}) takes its value from ([A-Z]{5}))\.",
        case.prompt["context"],
    ):
        value[name or later] = number or value[earlier]  # a name has its value before another takes it
    (asked,) = re.findall(r"\d{7}", case.question)
    assert sorted(name for name, number in value.items() if number == asked) == sorted(case.references)
    assert Counter(value.values()) == {asked: 5, next(n for n in value.values() if n != asked): 5}


@pytest.mark.parametrize("length", [400, 4000, 150_000])
def test_the_common_words_are_much_more_common(length: int) -> None:
    (case,) = made("common", length)
    counts = Counter(case.prompt["context"].split())
    most = counts.most_common(ruler.COMMON + 1)
    assert {word for word, _ in most[: ruler.COMMON]} == set(case.references)
    assert most[ruler.COMMON - 1][1] >= 3 * most[ruler.COMMON][1]


def test_common_words_stand_elsewhere_in_every_case() -> None:
    places = set()
    for seed in (0, 1):
        for case in made("common", 1000, cases=3, seed=seed):
            words = case.prompt["context"].split()
            places.add(tuple(i for i, word in enumerate(words) if word in case.references)[:10])
    assert len(places) == 6
    again = [case.prompt for case in made("common", 1000, cases=2)]
    assert again == [case.prompt for case in made("common", 1000, cases=2)]


def test_recall_is_the_share_found_as_whole_words() -> None:
    assert ruler.recall("They are 1234567 and 7654321.", ["1234567", "7654321"]) == 1
    assert ruler.recall("It is 1,234,567.", ["1234567", "7654321"]) == 0.5
    assert ruler.recall("It is 12345678 or 91234567.", ["1234567"]) == 0
    assert ruler.recall("bcdfg, KLMNP", ["BCDFG", "KLMNP", "XXXXX", "YYYYY"]) == 0.5
    assert ruler.recall("", ["a"]) == 0


def test_a_length_without_room_and_an_unknown_task_are_refused() -> None:
    with pytest.raises(ValueError, match="30 tokens are too few"):
        made("multi_key", 30)
    with pytest.raises(ValueError, match="needles is none of single, multi_key"):
        made("needles", 1000)
