import base64
import json
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import IncompleteRead
from typing import Any

import pytest

from lr_ray import simulated
from lr_ray.judge.answers import SCHEMAS
from lr_ray.judge.requests import Block, messages
from lr_ray.simulated.limits import FAULTS, Bucket, PrefixCache, Schedule

QUESTION = "What do Mira, Toben and Sela keep?"


def request(kind: str, **changes: Any) -> dict[str, Any]:
    blocks = [Block("question", QUESTION), Block("answer", changes.pop("answer", "Mira keeps copper."))]
    schema = {"type": "json_schema", "json_schema": {"name": kind, "strict": True, "schema": {}}}
    body = {
        "model": "m",
        "messages": messages(kind, "en", blocks),
        "temperature": 0,
        "response_format": schema,
    }
    return body | changes


def post(
    url: str, body: Any, path: str = "/chat/completions", key: str = "k", timeout: float = 10
) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    call = urllib.request.Request(f"{url}{path}", data, headers)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(call, timeout=timeout) as reply:  # noqa: S310
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, error.headers["retry-after"]
    except (IncompleteRead, ConnectionError):
        return 0, None


def stats(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/stats", timeout=10) as reply:  # noqa: S310
        return json.load(reply)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulated.running(api_key="k") as base_url:
        yield base_url


def answers(url: str) -> bool:
    try:
        return post(url, request("statements"))[0] == 200
    except urllib.error.URLError:
        return False


class TestServer:
    def test_it_speaks_openai(self, url: str) -> None:
        import openai

        with openai.OpenAI(base_url=url, api_key="k") as api:
            assert [model.id for model in api.models.list()] == ["simulated-judge"]
            reply = api.chat.completions.create(**request("statements"))
            content = reply.choices[0].message.content or ""
            assert json.loads(content) == {"statements": ["Mira keeps copper."]}
            assert reply.usage is not None
            assert reply.usage.prompt_tokens > 100
            vectors = api.embeddings.create(model="m", input=["copper and salt", "salt, copper", "rain"]).data
            one, two, other = (vector.embedding for vector in vectors)
            assert sum(a * b for a, b in zip(one, two, strict=True)) > 0.99
            assert sum(a * b for a, b in zip(one, other, strict=True)) < 0.5

    def test_embeddings_come_as_numbers_or_base64(self, url: str) -> None:
        numbers = post(url, {"model": "m", "input": "salt"}, "/embeddings")[1]["data"][0]["embedding"]
        packed = post(url, {"model": "m", "input": "salt", "encoding_format": "base64"}, "/embeddings")[1]
        data = base64.b64decode(packed["data"][0]["embedding"])
        assert list(struct.unpack(f"{len(data) // 4}f", data)) == pytest.approx(numbers)

    def test_a_wrong_key_and_nonsense_are_refused(self, url: str) -> None:
        assert post(url, request("statements"), key="wrong")[0] == 401
        assert post(url, b"{")[0] == 400
        assert post(url, {"model": "m"})[0] == 400
        unknown = request("statements") | {"response_format": {"json_schema": {"name": "poetry"}}}
        assert post(url, unknown)[0] == 400
        assert post(url, {}, "/nothing")[0] == 404

    @pytest.mark.parametrize("kind", list(SCHEMAS))
    def test_without_json_schema_the_prompt_says_what_is_asked(self, url: str, kind: str) -> None:
        from lr_ray.llm.requests import with_schema

        blocks = [Block("question", QUESTION)]
        if kind == "completeness":
            blocks.append(Block("extract", "Mira keeps copper.", 0.5))
        asked = messages(kind, "en", [*blocks, Block("answer", "Mira keeps copper.")])
        body = {"model": "m", "temperature": 0, "messages": with_schema(asked, SCHEMAS[kind])}
        status, reply = post(url, body)
        assert status == 200
        content = json.loads(reply["choices"][0]["message"]["content"])
        assert content == simulated.rules.answer(kind, asked[1]["content"])

    def test_samples_vary_a_little_and_are_repeatable(self, url: str) -> None:
        def sample(i: int, temperature: float) -> int:
            answer = "Mira keeps copper. " + "The river is long. " * (i % 3) + f"Sign {i} hangs near Toben."
            body = request("helpfulness", temperature=temperature, answer=answer)
            return json.loads(post(url, body)[1]["choices"][0]["message"]["content"])["score"]

        cold = [sample(i, 0) for i in range(30)]
        warm = [sample(i, 0.95) for i in range(30)]
        assert warm == [sample(i, 0.95) for i in range(30)]
        assert {abs(a - b) for a, b in zip(cold, warm, strict=True)} == {0, 1}

    def test_repeated_prefixes_are_cached(self, url: str) -> None:
        first = post(url, request("logicality", answer="x" * 5000))[1]["usage"]
        second = post(url, request("logicality", answer="x" * 5000))[1]["usage"]
        assert first["prompt_tokens_details"]["cached_tokens"] < first["prompt_tokens"] / 2
        assert second["prompt_tokens_details"]["cached_tokens"] > 0.8 * second["prompt_tokens"]


def test_a_rate_limit_refuses_what_is_over_it_and_says_how_long() -> None:
    with simulated.running(requests_per_minute=600) as url:
        results = [post(url, request("statements")) for _ in range(40)]
        refused = [float(wait) for status, wait in results if status == 429]
        assert refused
        assert all(0 < wait <= 0.1 for wait in refused)
        time.sleep(0.15)
        assert post(url, request("statements"))[0] == 200


def test_a_limit_changes_on_schedule() -> None:
    now = [0.0]
    bucket = Bucket(Schedule("600@0,60@20", "x"), lambda: now[0])

    def let_through(seconds: float) -> int:
        begun, count = now[0], 0
        while now[0] < begun + seconds:
            if not bucket.wait(1):
                bucket.charge(1)
                count += 1
            now[0] += 0.01
        return count

    assert let_through(10) == pytest.approx(110, abs=2)
    assert let_through(10) == pytest.approx(100, abs=2)
    assert let_through(20) == pytest.approx(20, abs=2)


def test_tokens_are_limited_by_what_the_answers_used() -> None:
    with simulated.running(tokens_per_minute=60_000, headers=True) as url:
        results = [post(url, request("logicality", answer="x" * 2000)) for _ in range(12)]
        used = sum(reply["usage"]["total_tokens"] for status, reply in results if status == 200)
        told = stats(url)
    assert 1000 <= used <= 3500
    assert told["refused"] == {"tokens": 12 - told["answered"]}
    assert told["prompt_tokens"] + told["completion_tokens"] == used
    assert [sum(column) for column in zip(*told["seconds"], strict=True)] == [
        12,
        told["answered"],
        told["refused"]["tokens"],
    ]


def test_more_in_flight_than_allowed_are_refused() -> None:
    with simulated.running(max_concurrency=3, latency=0.3) as url:
        with ThreadPoolExecutor(8) as pool:
            got = list(pool.map(lambda _: post(url, request("statements")), range(8)))
        assert sorted(status for status, _ in got) == [200] * 3 + [429] * 5
        assert [wait for status, wait in got if status == 429] == [None] * 5
        assert stats(url)["refused"] == {"concurrency": 5}
        assert stats(url)["in_flight_peak"] <= 8


def test_the_limits_stand_in_headers_when_asked_and_the_wait_can_be_left_out() -> None:
    with simulated.running(requests_per_minute=120, headers=True, retry_after=False) as url:
        call = urllib.request.Request(f"{url}/chat/completions", json.dumps(request("statements")).encode())  # noqa: S310
        with urllib.request.urlopen(call, timeout=10) as reply:  # noqa: S310
            told = {name: value for name, value in reply.headers.items() if name.startswith("x-ratelimit")}
        assert told["x-ratelimit-limit-requests"] == "120"
        assert told["x-ratelimit-remaining-requests"] == "1"
        assert 0 < float(told["x-ratelimit-reset-requests"].removesuffix("ms")) <= 500
        assert (429, None) in [post(url, request("statements")) for _ in range(4)]


def test_a_small_cache_forgets_and_an_unlimited_one_is_reckoned() -> None:
    cache = PrefixCache(blocks=4, size=2)
    assert cache.take("aabbcc").characters == 0
    assert cache.take("aabbdd").characters == 4
    assert cache.take("xxyy").characters == 0  # cc leaves, then the end of the least recent prompt
    hit = cache.take("aabbcc")
    assert (hit.characters, hit.possible) == (4, 6)
    assert cache.take("xxyy").characters == 2
    assert PrefixCache(9, 2).take("a" * 7).possible == 0


def test_plain_answers_fit_every_kind(url: str) -> None:
    from lr_ray.judge import answers as kinds

    with simulated.running(plain=True) as plain:
        for kind, model in (
            ("helpfulness", kinds.Rating),
            ("statements", kinds.Statements),
            ("support", kinds.Verdict),
            ("extract", kinds.Facts),
            ("completeness", kinds.Rating),
        ):
            status, reply = post(plain, request(kind))
            assert status == 200
            model.model_validate_json(reply["choices"][0]["message"]["content"])
            assert reply["usage"]["prompt_tokens"] > 100


def kinds_of_faults(url: str, count: int) -> list[str]:
    def kind(i: int) -> str:
        try:
            status, reply = post(url, request("helpfulness", answer=f"Mira keeps copper {i}."), timeout=3)
        except TimeoutError:
            return "timeout"
        if status != 200:
            return {0: "hangup", 429: "throttled", 500: "error", 503: "unavailable"}[status]
        choice = reply["choices"][0]
        if choice["message"]["refusal"]:
            return "refusal"
        if choice["finish_reason"] != "stop":
            return {"length": "truncated"}.get(choice["finish_reason"], choice["finish_reason"])
        return content(choice["message"]["content"])

    def content(text: str | None) -> str:
        try:
            return "empty" if not text else "fine" if json.loads(text)["score"] <= 10 else "out_of_range"
        except ValueError:
            return "invalid"

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(kind, range(count)))


def test_faults_come_in_every_kind_as_often_as_asked_and_the_same_every_time() -> None:
    with simulated.running(faults=0.3) as url:
        first = kinds_of_faults(url, 300)
        told = stats(url)
    with simulated.running(faults="0.3") as url:
        again = kinds_of_faults(url, 300)
    assert first == again
    counts = Counter(first)
    assert set(counts) == {*FAULTS, "fine"}
    assert 60 <= 300 - counts["fine"] <= 120
    assert told["answered"] == counts.pop("fine")
    assert told["faulted"] == counts


def test_faults_can_be_named() -> None:
    with simulated.running(faults="empty=0.5,invalid=0.5") as url:
        assert set(kinds_of_faults(url, 20)) == {"empty", "invalid"}


def test_a_503_says_when_to_come_back() -> None:
    with simulated.running(faults="unavailable=1") as url:
        assert post(url, request("statements")) == (503, "0.05")


@pytest.mark.parametrize(
    ("knob", "value", "says"),
    [
        ("faults", "boredom=0.1", "faults: no kind 'boredom'"),
        ("faults", "empty=0.6,invalid=0.6", "at most 1 together"),
        ("faults", "many", "no share"),
        ("requests_per_minute", "600@x", "requests_per_minute: '600@x' is no number"),
        ("requests_per_minute", "600@9,300@3", "seconds in rising order"),
        ("max_concurrency", "0", "max_concurrency: '0': values must be above 0"),
    ],
)
def test_knobs_that_say_nothing_are_one_sentence(knob: str, value: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        simulated.App(simulated.Knobs(**{knob: value}))


def test_latency_is_added_without_holding_up_others() -> None:
    with simulated.running(latency=0.3) as url:
        began = time.monotonic()
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(lambda _: post(url, request("statements")), range(10)))
        assert 0.3 <= time.monotonic() - began < 1.5


def test_the_judge_starts_alone_and_ends_with_its_block() -> None:
    imports = "import sys, lr_ray.simulated; print([m for m in sys.modules if m.startswith('lr_ray.')])"
    found = subprocess.run([sys.executable, "-c", imports], capture_output=True, text=True, check=True).stdout
    assert all(name.startswith("lr_ray.simulated") for name in json.loads(found.replace("'", '"')))
    with simulated.running() as url:
        assert post(url, request("statements"))[0] == 200
    with pytest.raises(urllib.error.URLError):
        post(url, request("statements"))


def test_it_ends_when_its_parent_is_killed() -> None:
    code = """if True:
        import time
        from lr_ray import simulated
        with simulated.running() as url:
            print(url, flush=True)
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        assert post(url, request("statements"))[0] == 200
        parent.kill()
    for _ in range(200):
        time.sleep(0.05)
        if not answers(url):
            return
    pytest.fail("it still answers ten seconds later")


def test_a_port_in_use_is_one_sentence(url: str) -> None:
    port = int(url.split(":")[2].split("/", maxsplit=1)[0])
    with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"):
        simulated.serve(port)


def test_the_port_can_be_chosen() -> None:
    with simulated.running() as url:
        port = int(url.split(":")[2].split("/")[0])
    with simulated.running(port=port) as again:
        assert again == url
