"""Grades asked of a judge: what it sees, the scales, references, and grades that do not come."""

import asyncio
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from lr_ray import meter, rows, schemas, simulated
from lr_ray.benchmarks import grading
from lr_ray.benchmarks.case import Case, asked
from lr_ray.benchmarks.comparing import Comparer
from lr_ray.benchmarks.grading import KINDS, SCALES, Grader
from lr_ray.config import Config
from lr_ray.llm import client as clients
from lr_ray.llm.messages import template
from lr_ray.store import Store
from tests.endpoint import Answer, Script, chat, serving
from tests.hostile import HOSTILE
from tests.sampled_row import sampled_row

GOOD, BAD = "Mira keeps copper.", "The weather is fine."


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulated.running() as base_url:
        yield base_url


def case(grade: Any, **more: Any) -> Case:
    found: dict[str, Any] = {"references": [GOOD], "groups": ["g"], **more}
    return Case("k", asked("What does Mira keep?"), grade, "What does Mira keep?", **found).named("b")


def sampled(of: Case, *texts: str, **more: Any) -> rows.Packed:
    row = sampled_row(of.prompt_id, "Mira keeps copper.", "Something else?", texts)
    return rows.pack("sampled", {**row, "case": vars(of), **more})


async def work(actor: Any, *packed: rows.Packed) -> list[dict[str, Any]]:
    try:
        return [{"kind": made["kind"], **rows.unpack(made)} for made in [await actor(one) for one in packed]]
    finally:
        await actor.close()


def settings(folder: Path, url: str, **judge: Any) -> Config:
    section = {"model": "m", "base_url": url, "attempts": 2, **judge}
    return Config.model_validate({"run_dir": str(folder), "judge": section})


def graded(folder: Path, url: str, *packed: rows.Packed, asker: Any = Grader) -> list[dict[str, Any]]:
    return asyncio.run(work(asker(settings(folder, url), Store(str(folder))), *packed))


def scripted(folder: Path, script: Script, *packed: rows.Packed, asker: Any = Grader) -> tuple[Any, Any]:
    """The rows made, and the requests seen."""

    async def all_of_it() -> tuple[Any, Any]:
        async with serving(script) as endpoint:
            actor = asker(settings(folder, endpoint.url), Store(str(folder)))
            return await work(actor, *packed), endpoint.requests

    return asyncio.run(all_of_it())


def score(number: Any) -> Answer:
    return chat(json.dumps({"analysis": "So.", "score": number}))


def values(row: dict[str, Any]) -> list[float | None]:
    return [grade["value"] for grade in row["grades"]]


@pytest.mark.parametrize(
    ("grade", "number", "value"),
    [
        ("chat", 1, 10.0),
        ("chat", 7, 70.0),
        ("answer", 1, 0.0),
        ("answer", 2, 50.0),
        ("answer", 3, 100.0),
        ("summary", 1, 0.0),
        ("summary", 4, 75.0),
        ("turn", 1, 1.0),
        ("turn", 8, 8.0),
    ],
)
def test_the_authors_scales(tmp_path: Path, grade: str, number: int, value: float) -> None:
    (row,), requests = scripted(tmp_path, lambda _: score(number), sampled(case(grade), GOOD))
    assert values(row) == [value]
    assert row["kind"] == "graded"
    form = requests[0]["response_format"]["json_schema"]
    assert form["name"] == KINDS[grade]
    assert form["schema"]["properties"]["score"]["maximum"] == SCALES[grade].highest


@pytest.mark.parametrize("number", [0, 11, 7.5, "7", None])
@pytest.mark.parametrize("grade", SCALES)
def test_a_grade_off_the_scale_is_unscored(tmp_path: Path, grade: str, number: Any) -> None:
    (row,), requests = scripted(tmp_path, lambda _: score(number), sampled(case(grade), GOOD))
    assert values(row) == [None]
    assert row["grades"][0]["unscored"].endswith("(2 attempts)")
    assert len(requests) == 2


def test_an_empty_reference_is_none() -> None:
    turn = case("turn", references=["five", ""], follow_up="And twice?")
    assert grading.references(turn) == ["five"]
    assert grading.references(turn.then("It is 5.")) == [None]
    assert grading.references(case("answer", references=["", "five"])) == ["five"]


def test_the_judge_sees_reference_and_scored_examples_but_no_document(tmp_path: Path) -> None:
    examples: Any = [{"answer": "Copper?", "score": "6"}, {"answer": "Salt!", "score": "2"}]
    of = case("chat", examples=examples)
    _, ((request),) = scripted(tmp_path, lambda _: score(5), sampled(of, GOOD))
    system, user = (message["content"] for message in request["messages"])
    names = [line.split()[0][1:] for line in user.splitlines() if line.startswith("<") and line[1] != "/"]
    assert names == ["question", "reference", "example", "score", "example", "score", "answer"]
    assert "document" not in names
    assert "What does Mira keep?" in user
    assert "Something else?" not in user
    assert "Copper?" in user
    assert "1-10" in system


def test_a_second_turn_shows_the_first(tmp_path: Path) -> None:
    first = case("turn", follow_up="And Toben?", references=["one", "two"])
    _, ((request),) = scripted(tmp_path, lambda _: score(5), sampled(first.then("It is copper."), "Salt."))
    user = request["messages"][1]["content"]
    names = [line.split()[0][1:] for line in user.splitlines() if line.startswith("<") and line[1] != "/"]
    assert names == ["earlier", "earlier", "question", "reference", "answer"]
    assert "two" in user
    assert "one" not in user.split("<reference")[1].split("</reference")[0]


def test_the_best_reference_counts(tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Answer:
        return score(2 if "second one" in request["messages"][1]["content"] else 1)

    of = case("answer", references=["first one", "second one", "third one"])
    (row,), requests = scripted(tmp_path, script, sampled(of, GOOD))
    assert values(row) == [50.0]
    assert len(requests) == 3


def test_a_missing_reference_matters_unless_the_grade_is_the_highest(tmp_path: Path) -> None:
    def script(best: int) -> Script:
        def answer(request: dict[str, Any]) -> Answer:
            return score("?" if "second one" in request["messages"][1]["content"] else best)

        return answer

    of = case("answer", references=["first one", "second one"])
    (row,), _ = scripted(tmp_path / "a", script(2), sampled(of, GOOD))
    assert values(row) == [None]
    (row,), _ = scripted(tmp_path / "b", script(3), sampled(of, GOOD))
    assert values(row) == [100.0]


def test_the_simulated_judge_tells_good_from_bad(tmp_path: Path, url: str) -> None:
    packed = [sampled(case(grade), GOOD, BAD) for grade in SCALES]
    for row in graded(tmp_path, url, *packed):
        good, bad = values(row)
        assert good is not None
        assert bad is not None
        assert good > bad
    again = graded(tmp_path, url, *packed)
    assert all(row["usage"]["reused"] == row["usage"]["calls"] for row in again)


def preference(request: dict[str, Any], prefers: str | None) -> Answer:
    """A judge that prefers one text, or with None the answer it reads first."""
    text = request["messages"][1]["content"]
    first = text.split("<first")[1].split("</first")[0]
    winner = "first" if prefers is None or prefers in first else "second"
    return chat(json.dumps({"analysis": "So.", "winner": winner}))


@pytest.mark.parametrize(("prefers", "win", "flipped"), [(GOOD, 100, 0), (BAD, 0, 0), (None, 50, 100)])
def test_two_models_are_compared_in_both_orders(
    tmp_path: Path, prefers: str | None, win: float, flipped: float
) -> None:
    packed = sampled(case("none"), GOOD, others=[{"index": 0, "text": BAD}], sees="question")
    (row,), requests = scripted(tmp_path, lambda r: preference(r, prefers), packed, asker=Comparer)
    assert values(row) == [win, flipped]
    assert row["grades"][0]["length"] == len(GOOD) - len(BAD)
    assert len(requests) == 2
    assert "<document" not in requests[0]["messages"][1]["content"]


def test_the_document_is_shown_where_asked_for(tmp_path: Path) -> None:
    packed = sampled(case("none"), GOOD, others=[{"index": 0, "text": BAD}], sees="document")
    _, requests = scripted(tmp_path, lambda r: preference(r, GOOD), packed, asker=Comparer)
    assert "<document" in requests[0]["messages"][1]["content"]


def test_one_order_alone_is_no_win(tmp_path: Path) -> None:
    def script(request: dict[str, Any]) -> Answer:
        first = request["messages"][1]["content"].split("<first")[1].split("</first")[0]
        return preference(request, GOOD) if GOOD in first else chat("no JSON")

    packed = sampled(case("none"), GOOD, others=[{"index": 0, "text": BAD}], sees="question")
    (row,), _ = scripted(tmp_path, script, packed, asker=Comparer)
    assert values(row) == [None, None]
    assert row["grades"][0]["unscored"]


def test_an_answer_to_win_against_is_rated_and_compared(tmp_path: Path, url: str) -> None:
    of = case("turn", references=[], against="No idea at all.")
    (row,) = graded(tmp_path, url, sampled(of, GOOD))
    assert [grade["metric"] for grade in row["grades"]] == ["score, 1 to 10", "win", "the order decided"]
    assert row["grades"][1]["value"] == 100


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("grade", SCALES)
def test_every_grade_has_its_prompts(grade: str, lang: str) -> None:
    system, closing = template(grading.PACKAGE, grade, lang)
    assert f'"score": 1-{SCALES[grade].highest}' in system
    assert closing
    assert len(list((files(grading.PACKAGE) / "prompts").iterdir())) == 10


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_closes_its_block(text: str) -> None:
    of = case("answer", references=[text])
    _, user = grading.messages(of, "en", text, text)
    assert user["content"].count("</answer ") == 1 + text.count("</answer ")
    last = user["content"].rindex("\n</answer ")
    code = user["content"][last:].split()[1].rstrip(">")
    assert code not in text
    assert user["content"].count(f"<answer {code}>") == 1


def test_what_is_graded_is_counted() -> None:
    for asker in (Grader, Comparer):
        assert asker.makes in meter.COUNTERS
        assert asker.makes in schemas.SCHEMAS
