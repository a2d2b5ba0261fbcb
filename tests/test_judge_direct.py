"""One direct pairwise call: its form, what may answer it, and the simulated opinion on it."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lr_ray import rows, simulated
from lr_ray.config import Config
from lr_ray.judge import answers, attacks
from lr_ray.judge.core import Asks
from lr_ray.judge.direct import KIND, prefer
from lr_ray.judge.requests import PACKAGE
from lr_ray.llm import client as clients
from lr_ray.llm.asker import Asker
from lr_ray.llm.calls import Call, Unusable
from lr_ray.llm.messages import template
from lr_ray.preflight import prompts_hash
from lr_ray.store import Store
from tests.endpoint import chat, in_turn, run, serving
from tests.hostile import HOSTILE

QUESTION = "What do Mira and Toben keep?"
CONTEXT = "Mira keeps copper. Toben keeps salt."
RIGHT, WRONG = "Mira keeps copper and Toben keeps salt.", "Mira sells wool."


class Taking(Asks):
    """Takes a call down and answers it by the simulated rules, without a server."""

    def __init__(self) -> None:
        self.calls: list[Call[Any]] = []

    async def ask(self, call: Call[Any]) -> Any:
        self.calls.append(call)
        return call.answer.model_validate(simulated.rules.answer(call.name, call.messages[-1]["content"]))


def asked(question: str, first: str, second: str, **given: Any) -> tuple[answers.Preference, Call[Any]]:
    asks = Taking()
    said = asyncio.run(prefer(asks, question, first, second, lang=given.pop("lang", "en"), **given))
    return said, asks.calls[0]


def shown(call: Call[Any]) -> list[tuple[str, str]]:
    """The blocks a strict reader finds: a text ends only at the closing tag with its own code."""
    text, found = call.messages[-1]["content"], []
    while match := re.match(r"<([a-z]+) ([0-9a-f]{16})>\n", text):
        end = f"\n</{match[1]} {match[2]}>\n\n"
        inside, closed, text = text[match.end() :].partition(end)
        assert closed
        found.append((match[1], inside))
    assert text == template(PACKAGE, KIND, "en")[1]
    return found


def test_the_document_comes_first_and_the_answers_in_the_order_given() -> None:
    said, call = asked(QUESTION, RIGHT, WRONG, context=CONTEXT, reference="copper, salt", index=4)
    assert said.winner == "first"
    assert (call.name, call.index, call.sample, call.schema) == ("direct", 4, 0, answers.PREFERENCE)
    assert [name for name, _ in shown(call)] == ["document", "question", "reference", "first", "second"]
    assert shown(call)[-2:] == [("first", RIGHT), ("second", WRONG)]
    other, turned = asked(QUESTION, WRONG, RIGHT)
    assert other.winner == "second"
    assert [name for name, _ in shown(turned)] == ["question", "first", "second"]
    shared = min(i for i, (a, b) in enumerate(zip(*prompts(WRONG, RIGHT), strict=False)) if a != b)
    assert shared > len(CONTEXT + QUESTION)


def prompts(one: str, other: str) -> list[str]:
    """The user messages in both orders."""
    calls = [asked(QUESTION, *pair, context=CONTEXT)[1] for pair in ((one, other), (other, one))]
    return [call.messages[-1]["content"] for call in calls]


@pytest.mark.parametrize("name", list(HOSTILE))
def test_no_text_breaks_its_form(name: str) -> None:
    text = HOSTILE[name]
    clean = re.sub("[\ud800-\udfff]", "\ufffd", text)
    said, call = asked(text, text, WRONG, context=text, reference=text)
    names = ("document", "question", "reference", "first")
    assert shown(call) == [*((name, clean) for name in names), ("second", WRONG)]
    assert said.winner in ("first", "second", "tie")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_its_worked_examples_are_answers_of_all_three_kinds(lang: str) -> None:
    system, closing = template(PACKAGE, KIND, lang)
    lines = [line for line in system.splitlines() if line.startswith('{"') and "…" not in line]
    parsed = [answers.Preference.model_validate(json.loads(line)) for line in lines]
    assert [answer.winner for answer in parsed] == ["second", "first", "tie"]
    opened = re.findall(r"^<([a-z]+ e\d)>$", system, re.MULTILINE)
    assert opened == re.findall(r"^</([a-z]+ e\d)>$", system, re.MULTILINE)
    assert bool(re.search(r"[\u4e00-\u9fff]", system + closing)) == (lang == "zh")
    assert list(answers.PREFERENCE["properties"]) == ["analysis", "winner"]


def test_its_prompts_are_not_what_judged_rows_depend_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "prompts").mkdir()
    monkeypatch.setattr("lr_ray.preflight.files", lambda _: tmp_path)
    (tmp_path / "prompts" / "common.en.md").write_text("a")
    before = prompts_hash()
    (tmp_path / "prompts" / "direct.en.md").write_text("a")
    assert prompts_hash() == before
    (tmp_path / "prompts" / "supports.en.md").write_text("a")
    assert prompts_hash() != before


class Comparing(Asker):
    """Rows of two answers, asked about over HTTP."""

    takes: ClassVar[rows.Kind] = "sampled"
    makes: ClassVar[rows.Kind] = "compared"
    stage: ClassVar[str] = "compare"

    async def work(self, row: Any, calls: Any) -> Any:
        try:
            said = await prefer(calls, row["question"], RIGHT, WRONG, lang="en", sample=row["sample"])
        except Unusable as error:
            return {"prompt_id": row["prompt_id"], "unscored": str(error)}
        return {"prompt_id": row["prompt_id"], "winner": said.winner}


def over_http(url: str, folder: Path, sample: int = 0, **changes: Any) -> dict[str, Any]:
    settings = {"run_dir": str(folder), "judge": {"model": "m", "base_url": url, **changes}}

    async def work() -> Any:
        actor = Comparing(Config.model_validate(settings), Store(str(folder)))
        row = {"prompt_id": "p", "question": QUESTION, "sample": sample}
        try:
            return rows.unpack(await actor(rows.pack("sampled", row)))
        finally:
            await actor.close()

    return run(work)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulated.running() as base_url:
        yield base_url


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.001)


@pytest.mark.parametrize("form", ["json_schema", "prompt"])
def test_the_simulated_judge_answers_it_with_and_without_a_schema(
    form: str, url: str, tmp_path: Path
) -> None:
    assert over_http(url, tmp_path, structured_output=form)["winner"] == "first"
    # Paid once: a second life of the row finds the answer in the ledger, at an endpoint that is not there.
    assert over_http("http://127.0.0.1:9", tmp_path, structured_output=form)["winner"] == "first"


@pytest.mark.parametrize(
    "content",
    [
        '{"analysis": "a", "winner": "First"}',
        '{"analysis": "a", "winner": "both"}',
        '{"analysis": "a", "winner": null}',
        '{"winner": "first"}',
        '{"analysis": "a", "winner": "first", "score": 10}',
        '{"analysis": "a", "winner": "first", "winner": "second"}',
        "The first one.",
        json.dumps({"analysis": "x" * (answers.ANALYSIS_CHARS + 1), "winner": "first"}),
    ],
)
def test_what_is_no_answer_is_unscored_and_never_a_tie(content: str, tmp_path: Path) -> None:
    async def work() -> Any:
        async with serving(in_turn(*[chat(content)] * 2)) as endpoint:
            settings = {
                "run_dir": str(tmp_path),
                "judge": {"model": "m", "base_url": endpoint.url, "attempts": 2},
            }
            actor = Comparing(Config.model_validate(settings), Store(str(tmp_path)))
            packed = rows.pack("sampled", {"prompt_id": "p", "question": QUESTION, "sample": 0})
            made = rows.unpack(await actor(packed))
            await actor.close()
            return made, [request["temperature"] for request in endpoint.requests]

    made, temperatures = run(work)
    assert "winner" not in made
    assert "(2 attempts)" in made["unscored"]
    assert temperatures == [0.0, 0.95]


def test_a_further_sample_is_asked_and_paid_for_itself(tmp_path: Path) -> None:
    said = iter(["first", "second", "tie"])

    async def work() -> Any:
        async with serving(lambda _: chat(json.dumps({"analysis": "a", "winner": next(said)}))) as endpoint:
            found = [
                await asyncio.to_thread(over_http, endpoint.url, tmp_path, n) for n in (0, 1, 2, 0, 1, 2)
            ]
            return [one["winner"] for one in found], [one["temperature"] for one in endpoint.requests]

    assert run(work) == (["first", "second", "tie"] * 2, [0.0, 0.95, 0.95])


def test_the_simulated_opinion_has_the_faults_of_a_hurried_one() -> None:
    def winner(first: str, second: str, context: str = "") -> str:
        texts = {"question": [QUESTION], "document": [context], "first": [first], "second": [second]}
        return simulated.direct.direct(texts)["winner"]

    assert winner(RIGHT, WRONG) == "first"
    assert winner(WRONG, RIGHT) == "second"
    assert winner(RIGHT, RIGHT) == winner("", "") == "tie"
    assert winner("", RIGHT) == "second"
    # It sees what the document never mentions, but not which of its words belong together.
    assert winner("Mira keeps copper.", "Mira keeps jade.", CONTEXT) == "first"
    swapped = "Mira keeps salt and Toben keeps copper."
    assert {winner(RIGHT, swapped, CONTEXT), winner(swapped, RIGHT, CONTEXT)} <= {"tie", "first"}
    # It likes length, and what it reads first where two are as good as even.
    long = RIGHT + " They keep it in the old mill that stands beside the river, as they always have."
    assert winner(RIGHT, long) == "second"
    assert winner("Mira keeps copper and jade.", "Mira keeps copper and wool.", CONTEXT) != "second"


def test_the_attack_set_is_compared_in_form() -> None:
    for attack in attacks.rows():
        pair = {name: attack[name] for name in ("chosen", "rejected")}
        _, call = asked(attack["question"], *pair.values(), context=attack["context"])
        assert [text for _, text in shown(call)] == [attack["context"], attack["question"], *pair.values()]
