from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from lr_ray.config import Prices
from lr_ray.judge.answers import SCHEMAS, Rating
from lr_ray.llm import client as clients
from lr_ray.llm import usage
from lr_ray.llm.calls import TOKENS, Call, Calls, Unusable
from lr_ray.llm.client import Client
from lr_ray.llm.governor import Governor
from lr_ray.llm.ledger import Ledger
from lr_ray.llm.lookup import Recorded
from lr_ray.llm.records import lines, parse
from lr_ray.llm.replies import scrub
from lr_ray.store import Store
from tests.endpoint import Answer, Endpoint, Script, chat, error, in_turn, run, serving, settings

GOOD = chat('{"analysis": "fine", "score": 7}')


def rating(text: str = "rate this", **changes: Any) -> Call[Rating]:
    messages: Any = [{"role": "system", "content": "You rate."}, {"role": "user", "content": text}]
    return Call("helpfulness", messages, SCHEMAS["helpfulness"], Rating, **changes)


def ask(
    tmp_path: Path, script: Script, *calls: Call[Rating], prompt_id: str = "p", **changes: Any
) -> tuple[list[Any], Endpoint, Calls]:
    """What the calls of one row give, the endpoint, and the row's calls. Replays what `tmp_path` holds."""
    store = Store(str(tmp_path))

    async def work() -> Any:
        async with serving(script) as endpoint:
            judge = settings(endpoint.url, **changes)
            client, book = Client(judge, None, Governor(8)), Ledger(store)
            recorded = Recorded(store).replies(prompt_id)
            counts: Counter[str] = Counter()
            row = Calls(prompt_id, client, book, recorded, judge, lambda name, n: counts.update({name: n}))
            results: list[Any] = []
            for call in calls or (rating(),):
                try:
                    results.append(await row.ask(call))
                except Exception as failure:
                    results.append(failure)
            await client.close()
            book.close()
            return results, endpoint, row

    return run(work)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.001)


def test_the_request_is_what_the_design_says(tmp_path: Path) -> None:
    (answer,), endpoint, row = ask(
        tmp_path, in_turn(GOOD), rating(candidate=3), prompt_id="a b/ü" * 99, parameters={"top_p": 0.5}
    )
    assert answer == Rating(analysis="fine", score=7)
    (request,) = endpoint.requests
    assert request["temperature"] == 0.0
    assert request["top_p"] == 0.5
    assert request["response_format"]["type"] == "json_schema"
    assert request["response_format"]["json_schema"]["name"] == "helpfulness"
    assert request["response_format"]["json_schema"]["strict"] is True
    unit = endpoint.headers[0]["x-lr-unit"]
    assert unit.startswith("a%20b%2F%C3%BC")
    assert unit.endswith("/3/helpfulness/0")
    assert len(unit) < 200
    assert row.usage == {
        "calls": 1,
        "reused": 0,
        "retries": 0,
        "prompt_tokens": 7,
        "cached_tokens": 2,
        "completion_tokens": 3,
    }


def test_without_json_schema_the_schema_stands_in_the_prompt(tmp_path: Path) -> None:
    fenced = chat('```json\n{"analysis": "fine", "score": 7}\n```')
    (answer,), endpoint, _ = ask(tmp_path, in_turn(fenced), structured_output="prompt")
    assert answer.score == 7
    assert "response_format" not in endpoint.requests[0]
    assert orjson.dumps(SCHEMAS["helpfulness"]).decode() in endpoint.requests[0]["messages"][0]["content"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        None,
        "I say [[10]]",
        "[[10]]",
        '{"analysis": "x", "score": 100}',
        '{"analysis": "x", "score": -1}',
        '{"analysis": "x", "score": true}',
        '{"analysis": "x", "score": "10"}',
        '{"analysis": "x", "score": 7.5}',
        '{"analysis": "x", "score": 7.0}',
        '{"analysis": "x", "score": NaN}',
        '{"score": 7}',
        '{"analysis": "x", "score": 7, "note": "[[10]]"}',
        '{"analysis": "x", "score": 7} {"analysis": "x", "score": 10}',
        'Sure: {"analysis": "x", "score": 7}',
        "[" * 3000,
        '{"analysis": "x", "score": ' + "9" * 5000 + "}",
        '{"analysis": "' + "x" * 5000 + '", "score": 7}',
    ],
)
def test_what_is_no_valid_answer_never_becomes_a_score(tmp_path: Path, content: str | None) -> None:
    (answer,), endpoint, row = ask(tmp_path, in_turn(chat(content), GOOD))
    assert answer == Rating(analysis="fine", score=7)
    assert [request["temperature"] for request in endpoint.requests] == [0.0, 0.95]
    assert row.usage["retries"] == 1
    assert row.usage["calls"] == 2


def test_after_all_attempts_there_is_a_reason_and_no_answer(tmp_path: Path) -> None:
    (answer,), endpoint, _ = ask(tmp_path, in_turn(chat('{"analysis": "x", "score": 11}')), attempts=3)
    assert isinstance(answer, Unusable)
    assert "score: Input should be less than or equal to 10 (3 attempts)" in str(answer)
    assert [request["temperature"] for request in endpoint.requests] == [0.0, 0.95, 0.95]


def test_a_reply_cut_off_gets_more_room_once_at_the_same_temperature(tmp_path: Path) -> None:
    cut = chat('{"analysis": "fi', "length")
    (answer,), endpoint, _ = ask(tmp_path, in_turn(cut, cut, GOOD), max_tokens=100)
    assert answer.score == 7
    sent = [(request["temperature"], request["max_tokens"]) for request in endpoint.requests]
    assert sent == [(0.0, 100), (0.0, 200), (0.95, 200)]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (chat(None, refusal="I would rather not"), "the judge refused (2 attempts)"),
        (chat("", "content_filter"), "a content filter stopped the judge (2 attempts)"),
        # Filtered text that happens to be a valid answer is none.
        (chat('{"analysis": "x", "score": 10}', "content_filter"), "a content filter stopped the judge"),
    ],
)
def test_a_refusal_gets_one_new_sample_and_then_a_reason(tmp_path: Path, reply: Answer, reason: str) -> None:
    (answer,), endpoint, row = ask(tmp_path, in_turn(reply))
    assert isinstance(answer, Unusable)
    assert reason in str(answer)
    assert len(endpoint.requests) == 2
    assert row.usage["retries"] == 1


def test_a_request_the_endpoint_will_never_take_has_a_reason(tmp_path: Path) -> None:
    (answer,), endpoint, _ = ask(tmp_path, in_turn(error(400, "context_length_exceeded")))
    assert isinstance(answer, Unusable)
    assert "context_length_exceeded" in str(answer)
    assert len(endpoint.requests) == 1


def test_equal_requests_of_a_row_are_one_request(tmp_path: Path) -> None:
    answers, endpoint, row = ask(tmp_path, in_turn(GOOD), rating("a"), rating("b"), rating("a", candidate=1))
    assert [answer.score for answer in answers] == [7, 7, 7]
    assert len(endpoint.requests) == row.usage["calls"] == 2


def test_a_repeated_row_is_answered_from_the_ledger_bad_replies_included(tmp_path: Path) -> None:
    first, endpoint, _ = ask(tmp_path, in_turn(chat("no json"), chat(""), GOOD))
    assert len(endpoint.requests) == 3
    again, endpoint, row = ask(tmp_path, in_turn(error(500)), timeout=99, concurrency=3)
    assert again == first == [Rating(analysis="fine", score=7)]
    assert endpoint.requests == []
    assert row.usage["calls"] == row.usage["reused"] == 3
    assert row.usage["prompt_tokens"] == 0


@pytest.mark.parametrize(
    "changes",
    [{"model": "other"}, {"parameters": {"top_p": 0.1}}, {"max_tokens": 99}, {"structured_output": "prompt"}],
)
def test_what_can_change_an_answer_is_asked_again(tmp_path: Path, changes: dict[str, Any]) -> None:
    ask(tmp_path, in_turn(GOOD))
    _, endpoint, _ = ask(tmp_path, in_turn(GOOD), **changes)
    assert len(endpoint.requests) == 1


def test_what_cannot_change_an_answer_is_not(tmp_path: Path) -> None:
    ask(tmp_path, in_turn(GOOD))
    changes: dict[str, Any] = {"parameters": {"extra_headers": {"x-team": "a"}}, "attempts": 2}
    _, endpoint, _ = ask(tmp_path, in_turn(GOOD), **changes)
    assert endpoint.requests == []


def test_hints_are_sent_but_an_answer_is_found_without_them(tmp_path: Path) -> None:
    hints = {"parameters": {"user": "me", "service_tier": "flex", "extra_body": {"priority": 3}}}
    (answer,), endpoint, _ = ask(tmp_path, in_turn(GOOD), **hints)
    (sent,) = endpoint.requests
    assert (sent["user"], sent["service_tier"], sent["priority"]) == ("me", "flex", 3)
    assert answer.score == 7
    assert ask(tmp_path, in_turn(GOOD))[1].requests == []


def test_parameters_pass_through_under_their_own_names(tmp_path: Path) -> None:
    parameters = {
        "temperature": None,
        "max_completion_tokens": 50,
        "extra_body": {"top_k": 3},
        "extra_headers": {"x-team": "a"},
        "extra_query": {"v": "2"},
    }
    _, endpoint, _ = ask(tmp_path, in_turn(chat("{", "length"), GOOD), parameters=parameters)
    first, second = endpoint.requests
    assert "temperature" not in first
    assert "max_tokens" not in first
    assert (first["max_completion_tokens"], second["max_completion_tokens"]) == (50, 100)
    assert first["top_k"] == 3
    assert endpoint.headers[0]["x-team"] == "a"


def test_replies_become_valid_utf8(tmp_path: Path) -> None:
    hostile = chat('{"analysis": "a\\ud800b\\u0000c\x07d\\n", "score": 7}')
    (answer,), _, _ = ask(tmp_path, in_turn(hostile))
    assert answer.analysis == "a\ufffdb\ufffdc\ufffdd\n"
    assert scrub({"\ud800": ["\x1b[0m", 1, None]}) == {"\ufffd": ["\ufffd[0m", 1, None]}


def test_what_an_endpoint_does_not_say_is_estimated_from_bytes_and_marked(tmp_path: Path) -> None:
    text = '{"analysis": "' + "fine " * 40 + '", "score": 7}'
    silent = (200, {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}, {})
    prices = {"prompt": 1e6, "completion": 1e6}
    (answer,), _, row = ask(tmp_path, in_turn(silent), rating("x" * 4000), prices=prices)
    assert answer.score == 7
    assert 1000 < row.usage["prompt_tokens"] < 1500
    assert row.usage["completion_tokens"] == -(-len(text) // 4)
    assert row._account.estimated
    store = Store(str(tmp_path))
    (segment,) = store.files("calls", ".jsonl")
    (record,) = map(parse, lines(store, segment))
    assert record is not None
    assert record["reply"]["estimated"] is True
    assert usage.money(store, Prices(**prices)) == sum(row.usage[name] for name in TOKENS[::2])  # pyrefly: ignore
    # What says so itself is taken at its word.
    _, _, row = ask(tmp_path, in_turn(GOOD), rating("y"))
    assert row.usage["prompt_tokens"] == 7
    assert not row._account.estimated


def test_a_reply_without_choices_or_usage_is_no_answer(tmp_path: Path) -> None:
    (answer,), _, row = ask(
        tmp_path, in_turn((200, {"choices": [], "usage": {"prompt_tokens": "7"}}, {}), GOOD)
    )
    assert answer.score == 7
    assert row.usage["prompt_tokens"] == 7


def test_a_reply_of_another_shape_is_no_answer_and_what_it_claims_to_cost_is_bounded(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 10**30, "prompt_tokens_details": {"cached_tokens": 9}}
    (answer,), _, row = ask(tmp_path, in_turn((200, {"data": None, "usage": usage}, {}), GOOD))
    assert answer.score == 7
    assert row.usage["prompt_tokens"] == 7  # of the good reply alone
    assert row.usage["cached_tokens"] == 2  # never more than there were prompt tokens


def test_text_in_parts_is_the_text_of_its_text_parts(tmp_path: Path) -> None:
    parts: Any = [
        {"type": "reasoning", "text": "I say [[10]]"},
        {"type": "text", "text": '{"analysis": "fine", '},
        {"type": "text", "text": '"score": 7}'},
    ]
    (answer,), endpoint, _ = ask(tmp_path, in_turn(chat(parts), error(500)))
    assert answer == Rating(analysis="fine", score=7)
    assert len(endpoint.requests) == 1
    nothing: Any = [{"type": "image_url"}, "text", {"type": "text", "text": None}]
    (answer,), _, _ = ask(tmp_path, in_turn(chat(nothing)), rating("another"), attempts=1)
    assert "the reply was empty" in str(answer)
