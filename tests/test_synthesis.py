"""Synthesis with a real endpoint of plain rules: paid once, all counted, read by the stages after it."""

import asyncio
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lr_ray import config as configs
from lr_ray import data, pipeline, rows, runtime, simulated
from lr_ray.cli import cli, guarded
from lr_ray.config import Config
from lr_ray.judge.chunks import measure
from lr_ray.llm import client as clients
from lr_ray.llm.messages import language
from lr_ray.rows import Asked, Synthesized, no_usage
from lr_ray.schemas import DOCUMENT, FAILED, SYNTHESIZED
from lr_ray.store import Store
from lr_ray.synthesis import contexts, documents, forecast, outputs, run, settings
from lr_ray.synthesis.actor import Synthesizer
from lr_ray.synthesis.contexts import Known
from lr_ray.training import source

SHARED = Path(__file__).parents[2] / "shared" / "data" / "real_prompts.jsonl"
MEASURE = measure(None)
TOWNS = ["Lauda", "Sorn", "Meriva", "Tolk", "Anvers", "Quill", "Brann", "Ostra"]
GOODS = ["rye", "tin", "glass", "salt", "honey", "copper", "paper", "silk"]


def story(number: int) -> str:
    """A chronicle of one town, whose sentences each tell something else."""
    town, goods = TOWNS[number % 8], GOODS[number // 8 % 8]
    told = [f"# The chronicle of {town} and its {goods}\n"]
    for i in range(60):
        other, what = TOWNS[(number + i + 1) % 8], GOODS[(number * 3 + i) % 8]
        told.append(
            f"In {1300 + 7 * i + number} the guild of {town} sent {11 * i} carts of {what} to {other}."
        )
        told.append(
            f"Master Keeper {other}{i} wrote in register {number}-{i} that the road was closed for snow."
        )
    return " ".join(told)


def chinese(number: int) -> str:
    goods = "麦锡玻盐蜜铜纸丝"[number % 8]
    told = (
        f"第{i}年，行会把{11 * i + number}车{goods}运到了第{i + number}座城镇的集市上。" for i in range(200)
    )
    return "".join(told)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.005)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with simulated.running() as base_url:
        yield base_url


def asked(folder: Path, url: str, judge: dict[str, Any] | None = None, **synthesis: Any) -> Config:
    section = {"lengths": [2048, 4096], **synthesis}
    made = {"model": "sim", "base_url": url, **(judge or {})}
    return Config.model_validate(
        {"run_dir": str(folder), "synthesis": section, "judge": made, "log": {"level": "off"}}
    )


def composed(texts: list[str], config: Config) -> list[rows.Composed]:
    known = [
        Known(str(i), f"{i:04}" * 4, language(text), int(MEASURE.upto(text)[-1]) // 4)
        for i, text in enumerate(texts)
    ]
    made = contexts.plans(known, config.synthesis)
    return [contexts.compose(plan, lambda key: (f"{key}.txt", texts[int(key)]), MEASURE) for plan in made]


def work(config: Config, made: list[rows.Composed]) -> list[Any]:
    async def ask() -> list[rows.Packed]:
        actor = Synthesizer(config, Store(config.run_dir))
        try:
            return await asyncio.gather(*(actor(rows.pack("context", row)) for row in made))
        finally:
            await actor.close()

    done = asyncio.run(ask())
    assert [row["kind"] for row in done] == ["synthesized"] * len(made)
    return [rows.unpack(row) for row in done]


def requests(url: str) -> int:
    with urllib.request.urlopen(f"{url}/stats") as reply:  # noqa: S310 - loopback
        return json.load(reply)["requests"]


def outcomes(made: list[Any]) -> list[str]:
    return [one["outcome"] for row in made for one in row["questions"]]


def test_questions_in_both_languages_pass_and_nothing_is_paid_twice(url: str, tmp_path: Path) -> None:
    config = asked(tmp_path, url, keep="all", unanswerable=0.25)
    texts = [story(i) for i in range(8)] + [chinese(i) for i in range(4)]
    given = composed(texts, config)
    before = requests(url)
    made = work(config, given)
    paid = requests(url) - before
    assert paid == sum(row["usage"]["calls"] for row in made)
    assert outcomes(made).count("kept") >= 0.8 * 48
    for language_ in ("en", "zh"):
        kept = [
            one
            for row in made
            if row["language"] == language_
            for one in row["questions"]
            if one["outcome"] == "kept"
        ]
        assert {one["answerable"] for one in kept} == {True, False}
        assert all(language(one["question"]) == language_ == language(one["answer"]) for one in kept)
    again = work(config, given)
    assert requests(url) - before == paid
    assert [row["questions"] for row in again] == [row["questions"] for row in made]
    assert all(row["usage"]["reused"] == row["usage"]["calls"] for row in again)


def test_a_document_of_common_knowledge_is_dropped_as_such(url: str, tmp_path: Path) -> None:
    fact = "The capital of France is Paris. "
    config = asked(
        tmp_path, url, multi_document=0, keep="all", questions=1, kinds=["look-up"], unanswerable=0
    )
    assert outcomes(work(config, composed([fact * 300], config))) == ["context_free"]
    config = asked(tmp_path / "other", url, **{**config.synthesis.model_dump(), "closed_book": False})
    assert outcomes(work(config, composed([fact * 300], config))) == ["kept"]


def test_faults_cost_repeats_and_change_nothing(tmp_path: Path) -> None:
    texts = [story(i) for i in range(6)]
    results = []
    for faults in (0.0, 0.2):
        with simulated.running(faults=faults) as url:
            config = asked(
                tmp_path / str(faults),
                url,
                keep="all",
                judge={"attempts": 8, "max_error_rate": 1.0, "timeout": 2.0},
            )
            results.append(work(config, composed(texts, config)))
    clean, faulty = results
    assert sum(row["usage"]["retries"] for row in faulty) > 0
    unchecked = sum(one == "unchecked" for one in outcomes(faulty))
    same = sum(a == b for a, b in zip(outcomes(clean), outcomes(faulty), strict=True))
    assert same >= len(outcomes(clean)) - unchecked - 1
    assert all(one["reason"] for row in faulty for one in row["questions"] if one["outcome"] == "unchecked")


def kept(number: int, question: str, outcome: str = "kept", **changes: Any) -> Asked:
    made: Asked = {
        "number": number,
        "kind": "look-up",
        "question": question,
        "reference": "Rye.",
        "answerable": True,
        "answer": "Rye, by Mira.",
        "outcome": outcome,
        "reason": None,
    }
    return {**made, **changes}  # pyrefly: ignore


def synthesized(number: int, *questions: Asked, context: str = "Lauda grinds {question} rye.") -> Synthesized:
    return {
        "prompt_id": f"abc-{number}",
        "language": "en",
        "target_tokens": 2048,
        "tokens": 7,
        "context": context,
        "parts": [{"name": "a.txt", "asked": True, "start": 0, "end": len(context)}],
        "gaps": 0,
        "questions": list(questions),
        "unwritten": None,
        "usage": no_usage(),
    }


def written(folder: Path, made: list[Synthesized], **synthesis: Any) -> tuple[Any, list[Any]]:
    store = Store(str(folder))
    store.write_rows("synthesized", made, SYNTHESIZED)  # pyrefly: ignore
    summary, fresh = outputs.write(
        asked(folder, "http://x", **synthesis), store, {"used": 1}, {"asked_for": 1}
    )
    assert fresh
    lines = (store.read("prompts.jsonl") or b"").splitlines()
    return summary, [json.loads(line) for line in lines]


def test_every_question_is_counted_once(tmp_path: Path) -> None:
    first = "What does the mill of Lauda grind on Sundays?"
    made = [
        synthesized(10, kept(0, first), kept(1, "Who keeps the mill?", "spare")),
        synthesized(
            2, kept(0, first.upper()), kept(1, "Why is there snow?", "unchecked", reason="the reply is odd")
        ),
        synthesized(3, kept(0, "Where is the mine?", answerable=False, kind="unanswerable")),
        {**synthesized(4), "unwritten": "questions: the reply is odd"},
    ]
    summary, prompts = written(tmp_path, made)  # pyrefly: ignore
    counts = summary["questions"]
    assert counts["written"] == 5 == counts["kept"] + counts["spare"] + sum(counts["dropped"].values())
    assert counts["dropped"] == {"duplicate": 1, "unchecked": 1}
    assert counts["unwritten"] == {"questions: the reply is odd": 1}
    assert summary["kinds"] == {"look-up": 1, "unanswerable": 1}
    # In order of the contexts' numbers: of two alike the one of the first context stays.
    assert [row["prompt_id"] for row in prompts] == ["abc-2-q0", "abc-3-q0"]
    assert prompts[1]["answerable"] is False


def test_the_files_are_made_anew_only_when_something_changed(tmp_path: Path) -> None:
    made = [synthesized(0, kept(0, "What does the mill grind?"))]
    written(tmp_path, made)
    store, counts = Store(str(tmp_path)), ({"used": 1}, {"asked_for": 1})
    assert not outputs.write(asked(tmp_path, "http://x"), store, *counts)[1]
    assert outputs.write(asked(tmp_path, "http://x", sft=True), store, *counts)[1]
    assert store.exists("sft.jsonl")
    assert outputs.write(asked(tmp_path, "http://x"), store, *counts)[1]
    assert not store.exists("sft.jsonl")


def test_the_files_are_made_anew_when_one_is_gone(tmp_path: Path) -> None:
    written(tmp_path, [synthesized(0, kept(0, "What does the mill grind?"))])
    store, counts = Store(str(tmp_path)), ({"used": 1}, {"asked_for": 1})
    store.fs.delete_file(store.path("prompts.jsonl"))
    assert outputs.write(asked(tmp_path, "http://x"), store, *counts)[1]
    assert store.exists("prompts.jsonl")


def test_where_all_is_done_ray_is_not_started(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.txt").write_text(story(number))
    config = asked(tmp_path / "run", url, documents=[str(tmp_path / "in")])
    store = Store(config.run_dir)
    found = documents.files(config.synthesis.documents).found
    read = [row for file in found for row in documents.read(file, config.synthesis, MEASURE)]
    assert not run.finished(config, store)
    store.write_rows("document", read, DOCUMENT)
    store.write(b'{"files": 2, "other_files": 0, "documents": 2}', "documents.json")
    first, second = contexts.plans(run.known(store)[0], config.synthesis)
    made = {**synthesized(0, kept(0, "What does the mill grind?")), "prompt_id": first.prompt_id}
    store.write_rows("synthesized", [made], SYNTHESIZED)
    assert not run.finished(config, store)
    reason = {"prompt_id": second.prompt_id, "stage": "synthesize", "reason": "the endpoint was down"}
    store.write_rows("failed", [reason], FAILED)

    def started() -> None:
        raise AssertionError("Ray is started")

    monkeypatch.setattr(runtime, "start", started)
    assert pipeline.execute(config, ("synthesize",)) == 1
    assert len((tmp_path / "run" / "prompts.jsonl").read_text().splitlines()) == 1


def test_prompts_and_targets_are_read_by_the_stages_after(tmp_path: Path) -> None:
    question = "What does the mill of Lauda grind, {context}?"
    written(tmp_path, [synthesized(0, kept(0, question))], sft=True)
    (pointer,) = data.scan([str(tmp_path / "prompts.jsonl")])
    prompt: Any = data.load(pointer, "{context}\n\n{question}")
    assert (prompt["question"], prompt["reference_answer"]) == (question, "Rye, by Mira.")
    training = configs.Training(method="sft", data=[str(tmp_path / "sft.jsonl")])
    source.check(training)
    target = json.loads((tmp_path / "sft.jsonl").read_text())["messages"]
    assert target == [*prompt["prompt"], {"role": "assistant", "content": "Rye, by Mira."}]


def test_changed_settings_are_refused_where_they_matter(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    one = asked(tmp_path, "http://x")
    settings.claim(one, store, read=False)
    other = asked(tmp_path, "http://x", seed=1)
    settings.claim(other, store, read=True)  # nothing is written yet
    with pytest.raises(ValueError, match=r"synthesis\.documents=\[\]; the config now says \['x'\]"):
        settings.claim(asked(tmp_path, "http://x", documents=["x"]), store, read=True)
    store.write_rows("synthesized", [synthesized(0)], SYNTHESIZED)  # pyrefly: ignore
    with pytest.raises(ValueError, match=r"synthesis\.seed=1; the config now says 0: use another run_dir"):
        settings.claim(one, store, read=True)
    with pytest.raises(ValueError, match=r"judge\.model='sim'"):
        settings.claim(asked(tmp_path, "http://x", {"model": "other"}, seed=1), store, read=True)
    settings.claim(asked(tmp_path, "http://y", {"concurrency": 2}, seed=1, sft=True), store, read=True)
    before = json.loads(store.read(settings.FILE) or b"")
    store.write(json.dumps({**before, settings.PROMPTS: "0"}).encode(), settings.FILE)
    with pytest.raises(ValueError, match="another version of lr-ray"):
        settings.claim(other, store, read=True)


def test_the_forecast_counts_the_calls_that_are_made(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    texts = [story(i) for i in range(12)]
    for i, text in enumerate(texts):
        (folder / f"{i:02}.txt").write_text(text)
    config = asked(tmp_path / "run", url, documents=[str(folder)], keep="all", unanswerable=0.25)
    made = forecast.make(config)
    assert (made.documents, made.contexts) == (12, 12)
    before = requests(url)
    done = work(config, composed(texts, config))
    calls = {kind: used.calls for kind, used in made.kinds.items()}
    assert sum(calls.values()) == pytest.approx(requests(url) - before, rel=0.1)
    assert made.context_tokens == pytest.approx(sum(row["tokens"] for row in done) / 12, rel=0.05)
    shown = forecast.render(made, config)
    assert "reading" in shown
    assert "assumed: all questions" in shown


@pytest.mark.skipif(not SHARED.exists(), reason="the real prompts are not here")
def test_real_documents_make_questions_on_them(url: str, tmp_path: Path) -> None:
    texts = [json.loads(line)["context"] for line in SHARED.open()][:12]
    config = asked(tmp_path, url, lengths=[4096], contexts=6, unanswerable=0.17)
    made = work(config, composed(texts, config))
    assert outcomes(made).count("kept") >= 5
    for row in made:
        for one in row["questions"]:
            if one["outcome"] == "kept" and one["answerable"]:
                assert one["reference"][:40] in row["context"]


@pytest.mark.slow
def test_from_a_folder_to_prompts_twice(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = tmp_path / "in", tmp_path / "run"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.txt").write_text(story(i))
    (folder / "page.html").write_text(f"<script>bad()</script><p>{story(7)}")
    (folder / "copy.md").write_text(story(0))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7")
    (folder / "notes.docx").write_bytes(b"PK")
    file = tmp_path / "run.yaml"

    def verb(*arguments: str) -> int:
        return guarded(lambda: cli.main([arguments[0], str(file), *arguments[1:]], standalone_mode=False))

    def synthesize(*overrides: str) -> int:
        return verb("synthesize", *overrides)

    with simulated.running() as url:
        config = asked(run, url, documents=[str(folder)], sft=True, unanswerable=0.3, contexts=9)
        file.write_text(configs.dump(config))
        assert synthesize() == 0
        summary = json.loads((run / "synthesis.json").read_text())
        assert summary["documents"] == {
            **{"files": 9, "other_files": 1, "documents": 9, "used": 7},
            "dropped": {"it is no PDF that can be read": 1, "the same text as another": 1},
        }
        prompts = [json.loads(line) for line in (run / "prompts.jsonl").open()]
        assert len(prompts) == summary["questions"]["kept"] >= 7
        assert sum(not row["answerable"] for row in prompts) == summary["kinds"]["unanswerable"] > 0
        assert len(data.scan([str(run / "prompts.jsonl")])) == len(prompts)
        assert "bad()" not in "".join(row["context"] for row in prompts)
        paid, files = requests(url), (run / "prompts.jsonl").stat().st_mtime_ns
        capsys.readouterr()
        assert synthesize() == 0
        assert "made already" in capsys.readouterr().err
        assert requests(url) == paid
        assert (run / "prompts.jsonl").stat().st_mtime_ns == files
        assert synthesize("synthesis.seed=5") == 2
        assert "synthesis.seed=0; the config now says 5" in capsys.readouterr().err
        # Contexts whose rows are lost, as by a crash before they were saved, are made again for nothing;
        # those that failed for good, when they are taken up again.
        store = Store(str(run))
        name = store.files("synthesized")[0]
        ids = store.table("synthesized", name)["prompt_id"].to_pylist()
        store.fs.delete_file(store.path("synthesized", name))
        failed = [{"prompt_id": ids[0], "stage": "synthesize", "reason": "the endpoint was down"}]
        store.write_rows("failed", failed, FAILED)
        assert synthesize() == 1
        assert "1 contexts failed" in capsys.readouterr().err
        assert verb("retry-failed") == 0
        assert not store.files("failed")
        assert requests(url) == paid
        assert [json.loads(line) for line in (run / "prompts.jsonl").open()] == prompts
