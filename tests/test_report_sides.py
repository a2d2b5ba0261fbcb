"""Which prompts are shown side by side, what is said of them, and the verb that writes the pages."""

import json
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from lr_ray import cli, report, schemas
from lr_ray import config as configs
from lr_ray.benchmark_results import RULES
from lr_ray.benchmark_runs import HELD_OUT
from lr_ray.benchmarks import wins
from lr_ray.benchmarks.grades import given
from lr_ray.judge.together import Missing
from lr_ray.report import sides, tried
from lr_ray.store import Store
from tests import report_results as results
from tests.report_results import graded
from tests.report_run import Page
from tests.test_pipeline import judged


def evaluated(store: Store, before: dict[str, Any], after: dict[str, Any]) -> sides.Pair:
    for name, rewards in (("before", before), ("after", after)):
        rows = [judged(key, value) for key, value in rewards.items()]
        for start in range(0, len(rows), 7):
            store.sub("evaluation", name).write_rows("judged", rows[start : start + 7], schemas.JUDGED)
    (pair,) = sides.pairs(store)
    return pair


def test_prompts_are_picked_at_random_and_by_how_far_they_moved(tmp_path: Path) -> None:
    before = {f"p{number:03d}": [5.0] for number in range(100)}
    after = {f"p{number:03d}": [5.0 + (number - 30) / 20] for number in range(100)}
    after["p099"] = [None]
    pair = evaluated(Store(str(tmp_path)), before, after | {"other": [1.0]})
    found = sides.gather(pair)
    assert (found.prompts, found.unpaired, found.better, found.worse) == (100, 1, 68, 30)
    assert sum(found.counts) == 99
    assert found.counts[10] == 1
    why = {row["prompt_id"]: row["why"] for row in found.rows}
    assert {one for one, reasons in why.items() if sides.GAIN in reasons} == {"p098", "p097", "p096"}
    assert {one for one, reasons in why.items() if sides.LOSS in reasons} == {"p000", "p001", "p002"}
    picked = [one for one, reasons in why.items() if sides.RANDOM in reasons]
    assert len(picked) == sides.PICKED
    assert picked == sorted(picked)
    again = [row["prompt_id"] for row in sides.gather(pair).rows]
    assert again == list(why)
    assert [row["prompt_id"] for row in sides.gather(pair, seed=1).rows] != again
    moved = {row["prompt_id"]: row["moved"] for row in found.rows}
    assert moved["p000"] == -1.5
    sides_of = next(row for row in found.rows if row["prompt_id"] == "p000")
    assert sides_of["before"]["candidates"][0]["reward"] == 5.0
    assert sides_of["after"]["candidates"][0]["reward"] == 3.5


def test_where_nothing_got_worse_nothing_is_a_loss(tmp_path: Path) -> None:
    pair = evaluated(Store(str(tmp_path)), {"a": [1.0], "b": [2.0]}, {"a": [1.0], "b": [4.0, None]})
    found = sides.gather(pair)
    assert {row["prompt_id"]: row["why"] for row in found.rows} == {
        "a": [sides.RANDOM],
        "b": [sides.RANDOM, sides.GAIN],
    }


def test_verdicts_of_the_two_against_each_other(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    names = ("won", "lost", "tie", "turned", "missing")
    pair = evaluated(store, {name: [5.0] for name in names}, {name: [6.0] for name in names})
    values = {"won": 100.0, "lost": 0.0, "tie": 50.0, "turned": 50.0, "missing": Missing("no answer")}
    rows = []
    for name, value in values.items():
        flipped = Missing("no answer") if isinstance(value, Missing) else 100.0 * (name == "turned")
        grades = [given(0, wins.WIN, value, analysis="So."), given(0, wins.FLIPPED, flipped)]
        rows.append(dict(graded(name, HELD_OUT, [], *grades)))
    rows.append(dict(graded("elsewhere", "alpaca_eval", [], given(0, wins.WIN, 100.0))))
    pair.wins.write_rows("graded", rows, schemas.GRADED)
    found = sides.gather(pair)
    assert found.wins == (1, 2, 1)
    said = {row["prompt_id"]: row["wins"][0]["said"] for row in found.rows}
    assert said == {
        "won": "after wins",
        "lost": "before wins",
        "tie": "a tie",
        "turned": "undecided: each order of the two answers gave another winner",
        "missing": "no verdict",
    }
    report.write(store)
    text = " ".join(Page((store.read("report", "before-after.html") or b"").decode()).text.split())
    assert "5 held-out prompts answered and judged with both models" in text
    assert "rose on 5, fell on 0" in text
    assert "the model after won 1 and the model before 1 of the comparisons, and 2 were even" in text
    assert "no answer" in text


def test_answers_to_benchmarks_have_their_grades(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    results.tried(store)
    (pair,) = sides.pairs(store)
    found = tried.gather(pair)
    assert [row["label"] for row in found] == ["chat"] * 2 + ["ruler"] * 2
    assert [row["prompt_id"] for row in tried.gather(pair)] == [row["prompt_id"] for row in found]
    before, after = found[0]["answers"]
    assert (before["side"], after["side"]) == ("before", "after")
    assert before["text"].startswith("before says")
    assert [(one["metric"], one["value"]) for one in after["grades"]] == [("score", 70.0), ("other", None)]
    assert found[2]["answers"][0]["grades"] == []
    # Grades by plain rules are kept in a folder of their own.
    ruled = dict(graded(found[2]["prompt_id"], "ruler", [], given(0, "found", 50.0), given(1, "found", 0.0)))
    pair.tried[1].write_rows(RULES, [ruled], schemas.GRADED)
    (only,) = tried.gather(pair)[2]["answers"][1]["grades"]
    assert (only["metric"], only["value"]) == ("found", 50.0)
    report.write(store)
    page = Page((store.read("report", "before-after.html") or b"").decode())
    assert [attrs["id"] for _, attrs in page.tags if "id" in attrs] == ["benchmarks"]
    assert "unscored: no answer <script>" in page.text
    assert "found 50.00" in " ".join(page.text.split())


def test_two_runs_of_a_comparison_have_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each seed that both have, under their names, without the verdicts against the model before."""
    store = Store(str(tmp_path / "run"))
    rewards = {"first-seed0": 4.0, "other-seed0": 7.0, "other-seed1": 9.0}
    for name, reward in rewards.items():
        there = store.sub("compare", name)
        rows = [judged("a", [reward]), judged("b", [reward])]
        there.sub("evaluation", "after").write_rows("judged", rows, schemas.JUDGED)
        won = dict(graded("a", HELD_OUT, [], given(0, wins.WIN, 100.0)))
        there.sub("evaluation", "wins").write_rows("graded", [won], schemas.GRADED)
        results.tried(there)
    assert not list(sides.pairs(store, "none"))
    (pair,) = sides.pairs(store, "first")
    assert (pair.key, pair.title) == ("other-seed0~first-seed0", "other-seed0 against first-seed0")
    found = sides.gather(pair)
    assert (found.better, found.worse, found.wins) == (2, 0, (0, 0, 0))
    assert [row["moved"] for row in found.rows] == [3.0, 3.0]
    answer = tried.gather(pair)[0]["answers"][0]
    assert answer["text"].startswith("after says")  # of both it is the model that was trained
    page = report.beside("run", pair, found, tried.gather(pair))
    text = " ".join(Page(page).text.split())
    assert "from first-seed0 to other-seed0 the mean reward of a prompt rose on 2, fell on 0" in text
    assert "Mean reward of a prompt, other-seed0 minus first-seed0" in text
    assert "before" not in text.replace("before says", "")
    many = {f"r{number:03d}-seed0": 5.0 for number in range(6)}
    for name in many:
        there = store.sub("compare", name, "evaluation", "after")
        there.write_rows("judged", [judged("a", [5.0])], schemas.JUDGED)
    monkeypatch.setattr(sides, "PAGES", 4)
    assert len(list(sides.pairs(store, "first"))) == 2


def test_a_page_stays_bounded(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    many = {f"p{number}": [float(number % 10)] * 3 for number in range(40)}
    evaluated(store, many, many)
    for side in ("before", "after"):
        there = store.sub("evaluation", side)
        rows = [{**row, "context": "c" * 50_000, "question": "q" * 9000} for row in there.rows("judged")]
        for row in rows:
            for candidate in row["candidates"]:
                candidate["text"] = "t" * 30_000
        there.clear("judged")
        there.write_rows("judged", rows, schemas.JUDGED)
    report.write(store)
    page = (store.read("report", "before-after.html") or b"").decode()
    assert len(page) < 600_000
    assert "24,000 characters not shown" in page


def test_one_model_alone_has_no_page(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.sub("evaluation", "before").write_rows("judged", [judged("a", [1.0])], schemas.JUDGED)
    report.write(store)
    assert not (tmp_path / "run" / "report").exists()


def test_pages_of_a_run_on_object_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "local")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        address = f"{host}:{port}"
        made = pafs.S3FileSystem(endpoint_override=address, scheme="http", allow_bucket_creation=True)
        made.create_dir("bucket")
        store = Store(f"s3://bucket/run?endpoint_override={address}&scheme=http")
        evaluated(store, {"a": [1.0]}, {"a": [2.0]})
        there = store.sub("compare", "one-seed0", "evaluation", "after")
        there.write_rows("judged", [judged("a", [3.0])], schemas.JUDGED)
        report.write(store)
        page = Page((store.read("report", "one-seed0.html") or b"").decode())
        assert "1 held-out prompt answered" in page.text
        assert address not in page.text
        assert store.exists("report", "before-after.html")
        assert store.exists("report.html")
    finally:
        server.stop()


def verb(*arguments: str) -> int:
    return cli.guarded(lambda: cli.cli.main(list(arguments), standalone_mode=False))


def test_the_verb_takes_a_config_or_a_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tmp_path / "run", tmp_path / "run.yaml"
    config.write_text(json.dumps({"run_dir": str(run)}))
    assert verb("report", str(config)) == 2
    assert not run.exists()
    Store(str(run)).write(configs.dump(configs.load(str(config))).encode(), "config.yaml")
    assert verb("report", str(config), "training.beta=3") == 0
    assert f"report: {run}/report.html" in capsys.readouterr().err
    (run / "report.html").unlink()
    saved = (run / "config.yaml").read_bytes()
    assert verb("report", str(run)) == 0
    assert (run / "report.html").exists()
    assert (run / "config.yaml").read_bytes() == saved
    assert verb("report", str(run), "judge.model=m") == 2
    assert "judge.model=m would change a config" in capsys.readouterr().err
    assert verb("report", str(tmp_path)) == 2
    assert "not a run directory, it has no config.yaml" in capsys.readouterr().err
    assert verb("report", str(tmp_path / "none.yaml")) == 2
    assert not (tmp_path / "report.html").exists()


def test_verbs_that_end_with_a_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lr_ray import compare, pipeline

    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(pipeline, "execute", lambda _, stages: asked.append(stages) or 0)
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({"run_dir": str(tmp_path / "run")}))
    for name in ("run", "agreement", "synthesize"):
        assert verb(name, str(config)) == 0
        assert asked.pop()[-1] == "report"
    monkeypatch.setattr(compare, "execute", lambda _: (0, {}))
    monkeypatch.setattr(compare, "show", lambda _: None)
    loaded = configs.load(str(config))
    Store(loaded.run_dir).write(configs.dump(loaded).encode(), "config.yaml")
    assert verb("compare", str(config)) == 0
    assert (tmp_path / "run" / "report.html").exists()
