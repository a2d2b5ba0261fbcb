"""What a run shows outside: metrics and logs."""

import asyncio
import json
import math
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lr_ray import journal, metrics, rows
from lr_ray.benchmarks import grading
from lr_ray.config import DIMENSIONS, Config, Prices, Training
from lr_ray.judge import core, direct
from lr_ray.judge.actor import JudgeActor
from lr_ray.judge.answers import SCHEMAS, Rating
from lr_ray.llm import client as clients
from lr_ray.llm import replies
from lr_ray.llm.bureau import Bureau
from lr_ray.llm.lease import Report, Seen
from lr_ray.llm.shared import shown
from lr_ray.llm.spending import Report as Account
from lr_ray.llm.spending import Spending
from lr_ray.progress import Tally
from lr_ray.store import Store
from tests.endpoint import Endpoint, Script, chat, error, in_turn, serving
from tests.sampled_row import sampled_row
from tests.test_synthesis_questions import KINDS as WRITING

CONTEXT = "Mira keeps copper. Toben keeps salt. The mill stands near the river. " * 4
KEY = "sk-live-0123456789abcdef"
HOSTILE_ID = f"p\n\x1b[31m\x7f\u202e\u2028{KEY}"
WORDS = "words of the judge"
HOSTILE_REPLY = json.dumps({"analysis": f"{WORDS} \x1b[2J\n{KEY} Bearer abcdefgh123", "score": 5})


def bad(**reply: Any) -> str:
    """Why `replies.read` refuses the reply, as it stands in `unscored`."""
    whole = {"finish_reason": "stop", "refusal": None, "content": '{"analysis": "", "score": 5}', **reply}
    with pytest.raises(replies.Bad) as found:
        replies.read(whole, Rating)
    return f"{found.value} (5 attempts)"


def test_every_reason_for_a_missing_score_has_a_class() -> None:
    assert metrics.reason(bad(finish_reason="length")) == "cut"
    assert metrics.reason(bad(refusal="no")) == "refused"
    assert metrics.reason(bad(finish_reason="content_filter")) == "refused"
    for content in ("", "no json", '{"score": 11, "analysis": ""}', '{"score": 1, "score": 2}'):
        assert metrics.reason(bad(content=content)) == "invalid"
    assert metrics.reason(core.NO_STATEMENTS) == "no_statements"
    refused = "the endpoint refused the request (HTTP 413, too large)"
    assert metrics.reason(refused) == "unanswerable"
    assert metrics.reason(f"a statement has no verdict: {refused}") == "unanswerable"
    assert metrics.reason(f"an extract of the document is missing: {bad(content='')}") == "invalid"
    # What a judge wrote decides nothing, and never becomes a label.
    assert metrics.reason(bad(content='{"the judge refused": 1}')) == "invalid"
    assert metrics.reason(f"{HOSTILE_ID} the judge refused") == "other"


def test_labels_are_few_whatever_the_data() -> None:
    of = metrics.KINDS
    assert {kind for kind in of if of[kind] in DIMENSIONS} == {*SCHEMAS, "embeddings"}
    assert {kind for kind in of if of[kind] == "grading"} == set(grading.KINDS.values())
    assert {kind for kind in of if of[kind] == "comparison"} == {direct.KIND}
    assert {kind for kind in of if of[kind] == "synthesis"} == set(WRITING)
    assert {*DIMENSIONS, "grading", "comparison", "synthesis"} == set(of.values())
    assert metrics.call(direct.KIND, "cut") == ("lr_calls", "comparison", "direct", "cut")
    assert metrics.call(HOSTILE_ID, "cut") == ("lr_calls", "other", "other", "cut")
    assert metrics.kind("a%2Fb/-/extract/3") == "extract"
    assert metrics.kind("u") == metrics.kind("u/v") == ""
    label = metrics.run_label("s3://bucket/runs/first\x1b one/?region=x")
    assert re.fullmatch(r"first__one-[0-9a-f]{8}", label)
    assert label != metrics.run_label("s3://other/runs/first\x1b one/?region=x")
    assert len(metrics.run_label("x" * 4000)) < 60


def test_a_tally_takes_keys_of_the_table_and_no_others() -> None:
    tally = Tally("r", Prices())  # no Ray: nothing is exported, all is checked
    tally.add({"judged": 1, metrics.call("support", "answered"): 3, ("lr_call_seconds", "held"): 0.5})
    tally.put({("lr_pairs", "tie"): 0, "train_steps": 3})
    assert tally.snapshot() == {"judged": 1, "train_steps": 3}
    for wrong in (("lr_calls", "support"), ("lr_pairs", "tie"), ("lr_none",)):
        with pytest.raises(ValueError, match=wrong[0]):
            tally.add({"judged": 1, wrong: 1})
    with pytest.raises(ValueError, match="lr_call_seconds"):
        tally.put({("lr_call_seconds", "held"): 0.5})
    assert tally.snapshot()["judged"] == 1


def test_tokens_and_money_are_what_was_bought() -> None:
    counts = {"prompt_tokens": 1000, "cached_tokens": 600, "completion_tokens": 50, "judged": 1}
    bought = metrics.bought(counts, Prices(prompt=1e6, cached_prompt=5e5, completion=2e6))
    assert bought == {
        ("lr_tokens", "prompt"): 400,
        ("lr_tokens", "cached"): 600,
        ("lr_tokens", "completion"): 50,
        ("lr_money",): 400 + 300 + 100,
    }
    assert metrics.bought(counts, Prices())["lr_money",] == 0


def test_limits_are_shown_with_their_use_and_the_budget() -> None:
    bureau = Bureau(7, 2, requests=10.0, spending=Spending(20.0, 5.0))
    seen = Seen(elapsed=9.0, granted=36, tokens=900.0, in_flight=3)
    bureau.report("actor", Report([Seen(), seen], Account(), spent=2.0), 1.0)
    gauges = shown(bureau)
    assert gauges["lr_limit", "1", "requests a second"] == 5.0
    assert gauges["lr_limit", "0", "tokens a second"] == math.inf
    assert gauges["lr_limit", "0", "in flight"] <= 7
    assert gauges["lr_use", "0", "in flight"] == 0
    assert gauges["lr_use", "1", "in flight"] == 3
    assert gauges["lr_use", "1", "requests a second"] == pytest.approx(4.0)
    assert gauges["lr_use", "1", "tokens a second"] == pytest.approx(100.0)
    assert gauges["lr_budget_left",] == 13.0
    for key in gauges:
        metrics.check(key, "gauge")
    assert ("lr_budget_left",) not in shown(Bureau(7))


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(clients, "BACKOFF", 0.005)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    journal._secrets.cache_clear()
    yield
    journal._secrets.cache_clear()


class Counts(dict[Any, float]):
    """Stands where the handle of the run's tally stands."""

    @property
    def add(self) -> "Counts":
        return self

    put = add

    def remote(self, counts: dict[Any, float]) -> None:
        for name, number in counts.items():
            self[name] = self.get(name, 0) + number

    def calls(self) -> dict[str, float]:
        """Calls by outcome."""
        found: dict[str, float] = {}
        for key, number in self.items():
            if key[0] == metrics.CALLS:
                found[key[-1]] = found.get(key[-1], 0) + number
        return found


def judge(script: Script, folder: Path, **log: Any) -> tuple[Counts, Endpoint, str]:
    """Judge one answer for helpfulness at a scripted endpoint: counts, endpoint, kind of the row."""
    counts = Counts()
    weights = dict.fromkeys(DIMENSIONS, 0) | {"helpfulness": 1}
    row = rows.pack("sampled", sampled_row(HOSTILE_ID, CONTEXT, "Who?", ["Mira keeps copper."]))

    async def work() -> tuple[Counts, Endpoint, str]:
        async with serving(script) as endpoint:
            asked = {"model": "m", "base_url": endpoint.url, "weights": weights}
            config = Config.model_validate({"run_dir": str(folder), "judge": asked, "log": log})
            actor = JudgeActor(config, Store(str(folder)), counts)
            try:
                return counts, endpoint, (await actor(row))["kind"]
            finally:
                await actor.close()

    return asyncio.run(work())


def lines(capsys: pytest.CaptureFixture[str]) -> tuple[str, list[dict[str, Any]]]:
    """What was logged: as it stands there, and parsed."""
    text = capsys.readouterr().err
    return text, [json.loads(line) for line in text.splitlines()]


ROUGH = (
    *(error(429), error(503), chat('{"nothing": "words of the judge"}')),
    *(chat(HOSTILE_REPLY, finish_reason="length"), chat(None, refusal=WORDS), chat(HOSTILE_REPLY)),
)


@pytest.mark.usefixtures("_key")
def test_each_try_is_counted_once_by_how_it_ended(tmp_path: Path) -> None:
    counts, endpoint, _ = judge(in_turn(*ROUGH), tmp_path, level="off")
    assert counts.calls() == {
        **{"throttled": 1, "broken": 1},
        **{"invalid": 1, "cut": 1, "refused": 1, "answered": 1},
    }
    assert sum(counts.calls().values()) == len(endpoint.requests) == counts["calls_started"]
    assert {key[1:3] for key in counts if key[0] == metrics.CALLS} == {("helpfulness", "helpfulness")}
    assert counts[metrics.SECONDS, "held"] > 0
    counts, endpoint, _ = judge(in_turn(*ROUGH), tmp_path, level="off")
    assert counts.calls() == {"reused": 4}
    assert not endpoint.requests
    counts, _, _ = judge(in_turn(error(413)), tmp_path / "2", level="off")
    assert counts.calls() == {"unanswerable": 1}
    assert counts[metrics.UNSCORED, "helpfulness", "unanswerable"] == counts["unscored"] == 1


@pytest.mark.usefixtures("_key")
def test_logs_hold_ids_and_neither_text_nor_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, endpoint, _ = judge(in_turn(*ROUGH), tmp_path, level="debug")
    assert endpoint.headers[0]["authorization"] == f"Bearer {KEY}"
    text, found = lines(capsys)
    events = [(line["event"], line["level"], line.get("outcome")) for line in found]
    assert events == [
        ("try", "debug", "throttled"),
        ("try", "warning", "broken"),
        ("answer", "warning", "invalid"),
        ("answer", "warning", "cut"),
        ("answer", "warning", "refused"),
        ("answer", "debug", "answered"),
        ("judged", "info", None),
    ]
    assert {line["run"] for line in found} == {metrics.run_label(str(tmp_path))}
    assert all("helpfulness" in line["unit"] for line in found[:-1])
    assert found[1]["reason"] == "HTTP 503"
    assert found[-1]["prompt_id"] == HOSTILE_ID.replace(KEY, "***")
    assert found[-1]["rewards"] == [5.0]
    assert found[5]["prompt_tokens"] == 7
    assert found[5]["seconds"] > 0
    assert WORDS not in text
    assert "nothing" not in text  # a name that the judge gave
    for secret in (KEY, "Bearer", "Authorization", CONTEXT[:20], "Mira"):
        assert secret not in text
    assert re.fullmatch(r"[ -~\n]*", text)  # nothing that a terminal obeys


@pytest.mark.usefixtures("_key")
def test_logs_hold_texts_when_asked_and_still_no_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge(in_turn(chat(HOSTILE_REPLY)), tmp_path, level="debug", text=True)
    text, found = lines(capsys)
    assert found[0]["text"] == HOSTILE_REPLY.replace(KEY, "***").replace("Bearer abcdefgh123", "***")
    assert KEY not in text
    assert re.fullmatch(r"[ -~\n]*", text)


@pytest.mark.usefixtures("_key")
def test_levels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge(in_turn(*ROUGH), tmp_path / "info")
    assert [line["event"] for line in lines(capsys)[1]] == ["try", "answer", "answer", "answer", "judged"]
    judge(in_turn(*ROUGH), tmp_path / "off", level="off", text=True)
    assert not capsys.readouterr().err
    _, _, kind = judge(in_turn(error(503)), tmp_path / "warning", level="warning")
    assert kind == "failed"
    *tries, last = lines(capsys)[1]
    assert len(tries) == clients.BROKEN_TRIES
    assert (last["event"], last["stage"]) == ("failed", "judge")
    assert "HTTP 503" in last["reason"]


def test_a_journal_bounds_its_lines_and_travels(capsys: pytest.CaptureFixture[str]) -> None:
    log = pickle.loads(pickle.dumps(journal.Journal("r", "info", text=True)))
    log.info("sampled", texts=["x" * 10**6, "short"], reason="y" * 10**6, url="http://me:pass@host/v1")
    text, (line,) = lines(capsys)
    assert len(text) < 25_000
    assert line["texts"][1] == "short"
    assert line["texts"][0].startswith("xxx")
    assert "980000 more characters" in line["texts"][0]
    assert line["url"] == "http://***@host/v1"


def test_samples_and_steps_are_logged_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from lr_ray.sampling import Sampler
    from lr_ray.training.record import Record

    for text in (False, True):
        sampler = object.__new__(Sampler)  # without its engine
        sampler.journal = journal.Journal("r", "info", text)
        sampler._log(sampled_row("p", CONTEXT, "Who?", ["one", "two"]), 0.25)
        _, (line,) = lines(capsys)
        assert (line["event"], line["prompt_id"], line["candidates"]) == ("sampled", "p", 2)
        assert line.get("texts") == (["one", "two"] if text else None)
    shown = Counts()
    store = Store(str(tmp_path))
    record = Record(store, Training(report_to=[]), 3, 9, shown, journal.Journal("r", "info"))
    record.add(4, {"loss": 0.5, "rewards/margins": 2.0, "num_tokens": 7})
    record.close()
    _, (began, step) = lines(capsys)
    assert (began["event"], began["after_step"], began["planned"]) == ("training", 3, 9)
    assert (step["event"], step["step"], step["loss"]) == ("step", 4, 0.5)
    keys = {key for key in shown if isinstance(key, tuple)}
    assert {("lr_training", "loss"), ("lr_training", "rewards/margins")} <= keys
    for key in keys:
        metrics.check(key, "gauge")
