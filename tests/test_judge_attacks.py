"""Hostile texts in every place of every kind of call: the form of requests and replies must hold.

The parser here knows the documented format alone (prompts/common.en.md): a text stands between tags that
carry the same code, and ends only at the closing tag with its own code.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pytest

from lr_ray import data, rows, schemas, simulated
from lr_ray.config import DIMENSIONS, Config, Judge
from lr_ray.judge import answers, attacks, chunks, core
from lr_ray.judge.actor import JudgeActor
from lr_ray.judge.requests import Block, language, messages, template
from lr_ray.judge.support import same
from lr_ray.llm.calls import Call, Unusable
from lr_ray.llm.replies import Bad, read
from lr_ray.rows import Passage, Sampled, no_usage
from lr_ray.store import Store
from tests import endpoint
from tests.hostile import ANSWER, CONTEXT, HOSTILE, KINDS, QUESTION, REPLIES, code, tagged
from tests.sampled_row import sampled_row

SECOND = 1.0  # of CPU that a case may take

OPENING = r"<([a-z]+) ([0-9a-f]{16})(?: at \d+%)?(?: \d+)?>\n"
OPEN = re.compile(OPENING)
LOOSE = re.compile(OPENING + r"(.*?)\n</\1 \2>", re.DOTALL)


CARRIERS = ("context", "question", "answer", "reply")
CASES = [(name, carrier) for name in HOSTILE for carrier in CARRIERS]


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """Imports are no part of a case's time."""
    judge(row())


def row(context: str = CONTEXT, question: str = QUESTION, *texts: str, prompt_id: str = "p") -> Sampled:
    return sampled_row(prompt_id, context, question, texts or (ANSWER,))


class Asks:
    """Takes the calls down. Statements and facts come back as `said`, or every reply is `raw`."""

    def __init__(self, said: str = "", raw: str | None = None) -> None:
        self.usage = no_usage()
        self.first_call_at = 0.0
        self.calls: list[Call[Any]] = []
        self._said, self._raw = said, raw

    async def ask(self, call: Call[Any]) -> Any:
        self.calls.append(call)
        texts = [text[:1900] for text in ("Mira keeps copper.", self._said) if text.strip()]
        reply = {
            "statements": {"statements": texts},
            "support": {"analysis": self._said[:100], "verdict": "partial"},
            "extract": {"facts": texts},
        }.get(call.name, {"analysis": self._said[:100], "score": 3})
        content = json.dumps(reply) if self._raw is None else self._raw
        try:
            return read({"content": content, "refusal": None, "finish_reason": "stop"}, call.answer)
        except Bad as bad:
            raise Unusable(str(bad)) from bad


def judge(sampled: Sampled, asks: Asks | None = None, **changes: Any) -> Any:
    settings = {"model": "m", "extract_chunk_tokens": 256, "retrieval": {"chunk_tokens": 32}, **changes}
    return asyncio.run(core.judge_row(sampled, asks or Asks(), Judge.model_validate(settings)))


def parse(text: str, closing: str) -> list[tuple[str, str]]:
    """(tag, text) of the blocks in a user message, which `closing` must end."""
    found, at = [], 0
    while opened := OPEN.match(text, at):
        name, its_code = opened.groups()
        closed = f"\n</{name} {its_code}>"
        end = text.index(closed, opened.end())
        found.append((name, text[opened.end() : end]))
        at = end + len(closed)
        assert text[at : at + 2] == "\n\n"
        at += 2
    assert text[at:] == closing
    return found


def carried(text: str) -> str:
    """`text` as a request can carry it."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


spoken = cache(language)


@cache
def cut(context: str) -> list[Passage]:
    return chunks.split(context, 256, chunks.measure(None))


def expected(kind: str, sampled: Sampled, call: Call[Any], said: list[str]) -> list[tuple[str, str]]:
    """The blocks of a call of any kind but support."""
    question = carried(sampled["question"])
    parts = cut(sampled["context"])
    if kind == "extract":
        return [("document", carried(parts[call.index]["text"])), ("question", question)]
    answer = carried(sampled["candidates"][call.candidate or 0]["text"])
    if kind == "completeness":
        facts = "\n".join(text.strip() for text in said)
        return [("question", question), *[("extract", facts)] * len(parts), ("answer", answer)]
    return [("question", question), ("answer", answer)]


def check(sampled: Sampled, call: Call[Any], said: list[str]) -> None:
    """The form of one request: roles, system message, blocks, codes."""
    lang = spoken(sampled["context"])
    assert [message["role"] for message in call.messages] == ["system", "user"]
    system, closing = template(call.name, lang)
    assert call.messages[0]["content"] == system
    user = call.messages[1]["content"]
    orjson.dumps(call.messages)
    texts = parse(user, closing)
    if call.name == "support":
        passages, statement = texts[:-1], texts[-1]
        assert statement[0] == "statement"
        assert statement[1] in {same(text) for text in said}
        context = carried(sampled["context"])
        assert 0 < len(passages) <= 5
        assert all(name == "passage" and text in context for name, text in passages)
    else:
        assert texts == expected(call.name, sampled, call, said)
    # A looser reader, who takes whatever looks like a block, finds the same.
    loose = LOOSE.findall(user)
    assert [(name, text) for name, _, text in loose] == texts
    # No text holds any block's code.
    for its_code in {its_code for _, its_code, _ in loose}:
        own = sum(its_code == other for _, other, _ in loose)
        assert user.count(its_code) == 2 * own


def place(text: str, carrier: str) -> tuple[Sampled, str]:
    """A row with `text` in its carrier, and what replies repeat."""
    if carrier == "context":
        return row(f"{CONTEXT[:200]}{text}\n{CONTEXT[200:]}"), ""
    if carrier == "question":
        return row(CONTEXT, f"{QUESTION} {text}"), ""
    if carrier == "answer":
        return row(CONTEXT, QUESTION, text, f"{ANSWER}\n{text}\n{ANSWER}"), ""
    return row(), text


@pytest.mark.parametrize(("name", "carrier"), CASES)
def test_no_text_breaks_the_form_of_any_request(name: str, carrier: str) -> None:
    sampled, said = place(HOSTILE[name], carrier)
    asks = Asks(said)
    began = time.process_time()
    judged = judge(sampled, asks)
    took = time.process_time() - began
    assert took < SECOND
    assert {call.name for call in asks.calls} == set(KINDS)
    scrubbed = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", said[:1900])
    back = [text.strip() for text in ("Mira keeps copper.", scrubbed) if text.strip()]
    for call in asks.calls:
        check(sampled, call, back)
    for candidate in judged["candidates"]:
        assert candidate["scores"]["helpfulness"] == 3
        assert candidate["scores"]["faithfulness"] == 5


@pytest.mark.parametrize("attack", list(attacks.rows(long=True)), ids=lambda attack: attack["prompt_id"])
def test_the_attack_set_breaks_no_form(attack: attacks.Attack) -> None:
    sampled = row(attack["context"], attack["question"], attack["chosen"], attack["rejected"])
    asks = Asks(attack["rejected"])
    judge(sampled, asks)
    said = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", "\ufffd", attack["rejected"][:1900]).strip()
    for call in asks.calls:
        check(sampled, call, ["Mira keeps copper.", said])


def test_several_statements_in_a_call_keep_their_blocks() -> None:
    said = HOSTILE["replayed statement"]
    asks = Asks(said)
    judge(row(), asks, statements_per_call=2)
    (call,) = [call for call in asks.calls if call.name == "support"]
    user = call.messages[1]["content"]
    closing = user[user.rindex("\n\n") + 2 :]
    statements = [text for name, text in parse(user, closing) if name == "statement"]
    assert statements == [same("Mira keeps copper."), same(said)]


def test_a_code_cannot_be_known_in_advance() -> None:
    """An answer may be written by somebody who knows question and document, and so their codes."""
    blocks = [Block("question", QUESTION), Block("answer", HOSTILE["closed question"])]
    user = messages("helpfulness", "en", blocks)[1]["content"]
    known = code("question", QUESTION)
    assert not user.startswith(f"<question {known}>")
    # The code it got instead depends on the answer: one more character, another code.
    longer = [blocks[0], Block("answer", HOSTILE["closed question"] + "!")]
    assert messages("helpfulness", "en", longer)[1]["content"][:26] != user[:26]
    # Whoever replays that one too gets a third.
    third = [blocks[0], Block("answer", f"{HOSTILE['closed question']} {user[10:26]}")]
    assert messages("helpfulness", "en", third)[1]["content"][10:26] not in (known, user[10:26])
    # Among texts that replay nothing, it is the same in every request, so that caches hit.
    plain = messages("helpfulness", "en", [blocks[0], Block("answer", "Copper.")])[1]["content"]
    assert plain.startswith(tagged("question", QUESTION))


def test_the_attack_set_is_small_labelled_and_the_same_every_time() -> None:
    written = attacks.dump()
    assert written == attacks.dump()
    assert len(written) < 200_000
    found = [json.loads(line) for line in written.splitlines()]
    assert len(found) >= 60
    assert len({one["prompt_id"] for one in found}) == len(found)
    for one in found:
        assert one.keys() == attacks.Attack.__annotations__.keys()
        assert all(isinstance(value, str) and value.strip() for value in one.values())
        assert one["chosen"] != one["rejected"]
    assert {one["carrier"] for one in found} == {"answer", "context", "question"}
    longest = max(len(one["rejected"]) for one in attacks.rows(long=True))
    assert longest == attacks.LONG


@pytest.mark.parametrize("name", REPLIES)
def test_no_reply_of_the_wrong_form_becomes_a_score(name: str) -> None:
    asks = Asks(raw=REPLIES[name])
    began = time.process_time()
    judged = judge(row(), asks)
    assert time.process_time() - began < SECOND
    (candidate,) = judged["candidates"]
    assert candidate["scores"] == dict.fromkeys(DIMENSIONS)
    assert {missing["dimension"] for missing in candidate["unscored"]} == set(DIMENSIONS)
    assert all(0 < len(missing["reason"]) < 400 for missing in candidate["unscored"])
    assert candidate["reward"] is None


@pytest.mark.parametrize(
    "good",
    [
        '{"analysis": "[[10]] 9", "score": 2}',
        '```json\n{"analysis": "a", "score": 2}\n```',
        ' {"analysis":\t"\x07", "score":2}\n',
    ],
)
def test_the_score_is_the_one_number_of_the_form(good: str) -> None:
    reply = {"content": good, "refusal": None, "finish_reason": "stop"}
    assert read(reply, answers.Rating).score == 2


@pytest.mark.parametrize(
    "prompt_id",
    [
        "a\r\nX-Evil: 1",
        "a\nb",
        "\u202e\u0000",
        "../../../etc/passwd",
        "/",
        "米拉",
        "x" * 100_000,
        "%0d%0a",
        "a b",
    ],
)
def test_no_prompt_id_breaks_a_header_or_a_path(prompt_id: str, url: str, tmp_path: Path) -> None:
    (judged,) = through(url, tmp_path / "run", [row(prompt_id=prompt_id)])
    assert judged["kind"] == "judged"
    assert judged["prompt_id"] == prompt_id
    assert judged["candidates"][0]["reward"] is not None
    store = Store(str(tmp_path / "run"))
    store.write_rows("judged", [{k: v for k, v in judged.items() if k != "kind"}], schemas.JUDGED)
    assert list(store.index("judged")) == [prompt_id]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("field", ["prompt_id", "context", "question"])
def test_a_lone_surrogate_in_a_file_is_refused_in_one_sentence(field: str, tmp_path: Path) -> None:
    prompt = {"prompt_id": "p", "context": "c", "question": "q"} | {field: "a\ud800b"}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt) + "\n")
    with pytest.raises(ValueError, match=r"prompts.jsonl: line 1: not valid JSON"):
        data.scan([str(tmp_path / "prompts.jsonl")])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulated.running() as base_url:
        yield base_url


def through(url: str, folder: Path, sampled: list[Sampled], **changes: Any) -> list[Any]:
    """The rows as a judge actor gives them back, over HTTP and with a ledger in `folder`."""
    settings = {"model": "sim", "base_url": url, "rows_in_flight": 16, "extract_chunk_tokens": 256, **changes}
    config = Config.model_validate({"run_dir": str(folder), "judge": settings})

    async def work() -> list[rows.Packed]:
        actor = JudgeActor(config, Store(str(folder)))
        try:
            return await asyncio.gather(*(actor(rows.pack("sampled", one)) for one in sampled))
        finally:
            await actor.close()

    return [rows.unpack(one) | {"kind": one["kind"]} for one in asyncio.run(work())]


def test_the_whole_set_is_judged_over_http(url: str, tmp_path: Path) -> None:
    sampled = [
        row(one["context"], one["question"], one["chosen"], one["rejected"], prompt_id=one["prompt_id"])
        for one in attacks.rows(long=True)
    ]
    for name, text in HOSTILE.items():
        if name != "lone surrogates":  # which `data` refuses
            inside = f"{CONTEXT[:200]}{text}\n{CONTEXT[200:]}"
            sampled.append(row(inside, f"{QUESTION} {text}", text, ANSWER, prompt_id=name))
    judged = through(url, tmp_path, sampled)
    assert len(judged) == len(sampled)
    scores = 0
    for one in judged:
        assert one["kind"] == "judged", one
        for candidate in one["candidates"]:
            reasons = {missing["dimension"]: missing["reason"] for missing in candidate["unscored"]}
            for dimension, score in candidate["scores"].items():
                assert (score is None) == bool(reasons.get(dimension))
                assert score is None or 0 <= score <= 10
                scores += score is not None
    assert scores > 4 * len(judged)
    plain = {c["text"]: c for c in judged[0]["candidates"]}
    for one in judged:
        for candidate in one["candidates"]:
            # A plain answer's ratings that see question and answer alone are untouched by what else is there.
            if candidate["text"] in plain and one["question"] == judged[0]["question"]:
                scores_alone = plain[candidate["text"]]["scores"]
                assert candidate["scores"]["helpfulness"] == scores_alone["helpfulness"]


@pytest.mark.parametrize("structured_output", ["json_schema", "prompt"])
def test_what_goes_over_the_wire_is_one_system_and_one_user_message(
    structured_output: str, tmp_path: Path
) -> None:
    fixed = {
        "statements": '{"statements": ["Mira keeps copper."]}',
        "facts": '{"facts": ["</question>"]}',
        "verdict": '{"analysis": "a", "verdict": "full"}',
        "score": '{"analysis": "a", "score": 4}',
    }

    def script(request: dict[str, Any]) -> endpoint.Answer:
        asked = json.dumps(
            request.get("response_format") or request["messages"][0]["content"].split("\n\n")[-1]
        )
        key = next(key for key in fixed if re.search(rf'\\*"{key}\\*"\s*:', asked))
        return endpoint.chat(fixed[key])

    names = ["bare tags", "replayed question", "closed json", "controls", "emoji", "closed string", "jinja"]

    async def work() -> list[dict[str, Any]]:
        async with endpoint.serving(script) as server:
            judge_settings = {"model": "m", "base_url": server.url, "structured_output": structured_output}
            config = Config.model_validate({"run_dir": str(tmp_path), "judge": judge_settings})
            actor = JudgeActor(config, Store(str(tmp_path)))
            for name in names:
                text = HOSTILE[name]
                packed = await actor(rows.pack("sampled", row(CONTEXT + text, text, text, prompt_id=name)))
                (candidate,) = rows.unpack(packed)["candidates"]
                assert candidate["scores"] == {
                    "helpfulness": 4, "logicality": 4, "faithfulness": 10, "completeness": 4,
                }  # fmt: skip
            await actor.close()
            return server.requests

    requests = endpoint.run(work)
    assert len(requests) >= 6 * len(names)
    systems = {request["messages"][0]["content"] for request in requests}
    assert len(systems) == len(KINDS)
    wanted = {template(kind, "en")[0] for kind in KINDS}
    assert all(any(system.startswith(one) for one in wanted) for system in systems)
    for request in requests:
        assert [message["role"] for message in request["messages"]] == ["system", "user"]
        assert request["model"] == "m"
        user = request["messages"][1]["content"]
        assert parse(user, user[user.rindex("\n\n") + 2 :])
