"""A refusal of one request, as by a provider's filter, goes on; one of all that is asked stops the run."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

import pytest

from lr_ray.llm import client as clients
from lr_ray.llm.client import HARMLESS, Client, harmless
from lr_ray.llm.failures import EndpointRefused, GaveUp, Unanswerable
from lr_ray.llm.governor import Governor
from tests.endpoint import Answer, Endpoint, Script, chat, error, run, serving, settings

FILTERED = error(400, "data_inspection_failed")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.001)


def request(text: str, **more: Any) -> bytes:
    messages = [{"role": "system", "content": "Rate."}, {"role": "user", "content": text}]
    return json.dumps({"model": "m", "messages": messages, **more}).encode()


def text_of(asked: dict[str, Any]) -> str:
    return asked["messages"][-1]["content"]


def minding(word: str, answer: Answer = FILTERED) -> Script:
    """An endpoint whose filter minds a word."""
    return lambda asked: answer if word in text_of(asked) else chat("yes")


def post(
    script: Script, *asked: tuple[str, bytes], at_once: bool = False, **changes: Any
) -> tuple[list[Any], Endpoint, Client]:
    """What requests of units give (None: an answer), one after another or at once."""

    async def work() -> Any:
        async with serving(script) as endpoint:
            client = Client(settings(endpoint.url, **changes), "k", Governor(64))
            counts: Counter[Any] = Counter()
            found: list[Any] = []

            async def one(unit: str, body: bytes) -> Any:
                try:
                    await client.post("/x", body, unit, lambda name, n: counts.update({name: n}))
                except Exception as failure:
                    return failure
                return None

            if at_once:
                found = await asyncio.gather(*(one(*each) for each in asked))
            else:
                for each in asked:
                    found.append(await one(*each))
            await client.close()
            assert counts["calls_started"] == counts["calls_finished"]
            return found, endpoint, client

    return run(work)


def kinds(found: list[Any]) -> list[Any]:
    return [one and type(one) for one in found]


@pytest.mark.parametrize("answer", [FILTERED, error(403), error(422), (200, {"error": {"code": 403}}, {})])
def test_the_first_text_of_a_run_may_be_the_filtered_one(answer: Answer) -> None:
    units = [("p/0/support/0", request("bad")), ("p/0/support/1", request("good"))]
    found, endpoint, _ = post(minding("bad", answer), *units)
    assert kinds(found) == [Unanswerable, None]
    assert "the endpoint refused the request (HTTP 4" in str(found[0])
    assert [text_of(one) for one in endpoint.requests] == ["bad", HARMLESS, "good"]


def test_a_filter_that_meets_many_at_once_stops_nothing() -> None:
    bad = [(f"{n}/-/extract/0", request("bad")) for n in range(8)]
    found, _, _ = post(minding("bad"), *bad, ("z/-/extract/0", request("good")), at_once=True)
    assert kinds(found) == [Unanswerable] * 8 + [None]


def test_a_filter_is_asked_after_again_only_when_prompt_after_prompt_meets_it() -> None:
    bad = [(f"{n}/0/support/{i}", request("bad")) for n in range(4) for i in range(2)]
    found, endpoint, _ = post(minding("bad"), ("z/0/support/0", request("good")), *bad)
    assert kinds(found) == [None] + [Unanswerable] * 8
    assert Counter(text_of(one) for one in endpoint.requests) == {"good": 1, "bad": 8, HARMLESS: 1}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            error(400, "unknown top_q"),
            "refuses our requests (HTTP 400, unknown top_q): Error code: 400 - it is",
        ),
        (error(422), "refuses our requests (HTTP 422)"),
        (error(403, "k"), "refuses the key in OPENAI_API_KEY (HTTP 403)"),
    ],
)
def test_what_is_wrong_with_all_requests_stops_the_run_at_once(answer: Answer, says: str) -> None:
    units = [(f"{n}/0/support/0", request(f"text {n}", top_q=1)) for n in range(64)]
    found, endpoint, _ = post(lambda asked: answer if "top_q" in asked else chat("yes"), *units, at_once=True)
    assert set(kinds(found)) == {EndpointRefused}
    assert all(says in str(one) for one in found)
    texts = Counter(text_of(one) for one in endpoint.requests)
    assert texts[HARMLESS] == 1
    assert all(one["top_q"] == 1 for one in endpoint.requests)


def test_what_goes_wrong_with_all_requests_later_stops_the_run_too() -> None:
    units = [(f"{n}/0/support/0", request("text")) for n in range(9)]
    answers = [chat("yes")] * 2
    found, endpoint, _ = post(lambda _: answers.pop() if answers else error(403), *units)
    assert kinds(found) == [None] * 2 + [Unanswerable] * 2 + [EndpointRefused] * 5
    assert len(endpoint.requests) == 6


def test_each_kind_has_a_form_of_its_own() -> None:
    def script(asked: dict[str, Any]) -> Answer:
        return error(400, "bad schema") if asked.get("schema") == "extract" else chat("yes")

    units = [("p/0/support/0", request("x")), ("p/-/extract/0", request("x", schema="extract"))]
    assert kinds(post(script, *units)[0]) == [None, EndpointRefused]


def test_a_filter_that_minds_everything_is_no_filter() -> None:
    found, endpoint, _ = post(lambda _: error(400, "bad_words"), ("p/0/support/0", request("x")))
    assert kinds(found) == [EndpointRefused]
    found, endpoint, _ = post(
        lambda asked: error(400, "content_filter" if text_of(asked) == HARMLESS else "bad_words"),
        ("p/0/support/0", request("x")),
    )
    assert kinds(found) == [EndpointRefused]
    assert "bad_words" in str(found[0])
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("trouble", [error(503), error(429), (200, None, {})])
def test_where_nothing_answers_the_question_the_call_is_tried_again(trouble: Answer) -> None:
    troubles = [trouble]

    def script(asked: dict[str, Any]) -> Answer:
        if text_of(asked) == HARMLESS and troubles:
            return troubles.pop()
        return minding("bad")(asked)

    found, endpoint, _ = post(script, ("p/0/support/0", request("bad")))
    assert kinds(found) == [Unanswerable]
    assert [text_of(one) for one in endpoint.requests] == ["bad", HARMLESS] * 2


def test_what_the_question_costs_counts_against_the_budget() -> None:
    prices = {"prompt": 1e6, "cached_prompt": 0, "completion": 1e6}
    _, _, client = post(minding("bad"), ("p/0/support/0", request("bad")), prices=prices)
    governor = client.governor
    assert governor._spent + governor.account.take().money == 7 - 2 + 3


def test_a_harmless_request_has_the_form_and_none_of_the_text() -> None:
    made = json.loads(harmless(request("secret", response_format={"a": 1}, max_tokens=7)))
    assert made["messages"] == [{"role": role, "content": HARMLESS} for role in ("system", "user")]
    assert (made["response_format"], made["max_tokens"], made["model"]) == ({"a": 1}, 7, "m")
    body = json.dumps({"model": "e", "input": ["secret", "x"], "encoding_format": "base64"}).encode()
    assert json.loads(harmless(body)) == {"model": "e", "input": [HARMLESS], "encoding_format": "base64"}


@pytest.mark.parametrize(
    ("said", "result", "tries"),
    [
        ({"code": 429}, GaveUp, 9),
        ({"code": "429"}, GaveUp, 9),
        ({"code": "rate_limit_exceeded"}, GaveUp, 9),
        ({"code": 502}, GaveUp, 8),
        ({"code": "nonsense"}, GaveUp, 8),
        ({"code": 200}, GaveUp, 8),
        ({"code": ["x"]}, GaveUp, 8),
        ("busy", GaveUp, 8),
        ({"code": 401}, EndpointRefused, 1),
        ({"code": "insufficient_quota"}, EndpointRefused, 1),
        ({"code": "context_length_exceeded"}, Unanswerable, 1),
        ({"code": 413}, Unanswerable, 1),
    ],
)
def test_an_error_in_a_200_is_what_its_code_says(
    said: Any, result: type[Exception], tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "THROTTLED_TRIES", 9)
    answer: Answer = (200, {"error": said}, {"retry-after": "0"})
    found, endpoint, _ = post(lambda _: answer, ("p/0/support/0", request("x")))
    assert kinds(found) == [result]
    assert len(endpoint.requests) == tries


def test_a_429_in_a_200_waits_as_long_as_it_says() -> None:
    answers: list[Answer] = [(200, {"error": {"code": 429}}, {"retry-after": "0.5"})]
    began = time.monotonic()
    found, _, _ = post(lambda _: answers.pop() if answers else chat("yes"), ("p/0/support/0", request("x")))
    assert kinds(found) == [None]
    assert time.monotonic() - began >= 0.5
