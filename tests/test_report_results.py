"""Sections on comparisons, agreement, benchmarks, synthesis: their figures, what is missing or broken."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lr_ray import report
from lr_ray.report import agreed, compared, evaluated, forest, labels, shapes, sides, synthesized
from lr_ray.store import Store
from tests.report_run import Page


def difference(move: float | None, half: float = 0.5, before: float = 5.0) -> dict[str, Any]:
    ends = (None, None) if move is None else (move - half, move + half)
    after = None if move is None else before + move
    known = {"before": before, "after": after, "difference": move, "prompts": 9}
    return {**known, "low": ends[0], "high": ends[1]}


def line(run: str, metric: str = "reward", move: float | None = 1.0, against: Any = None) -> dict[str, Any]:
    mean = {"mean": 5.0 + (move or 0), "low": 4.0, "high": 7.0, "count": 9}
    of = {"before": difference(move), "against": against, "seeds": [move, None]}
    return {"metric": metric, "run": run, **mean, **of}


def comparison(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    runs = [
        {"name": name, "changes": {}, "seeds": [{"seed": 0, "pairs": 7, "steps": 3}]}
        for name in dict.fromkeys(row["run"] for row in rows)
    ]
    tree = {"prompts": 9, "n": 1, "against": "one", "before": {}, "runs": runs, "table": list(rows)}
    return {**tree, **more}


def page_of(tmp_path: Path, **files: Any) -> Page:
    store = Store(str(tmp_path / "run"))
    for name, content in files.items():
        store.write(json.dumps(content).encode(), f"{name}.json")
    report.write(store)
    return Page((store.read("report.html") or b"").decode())


def text_of(page: Page) -> str:
    return " ".join(page.text.split())


def test_a_comparison_claims_what_its_intervals_do(tmp_path: Path) -> None:
    rows = [
        line("one"),
        line("up", against=difference(0.9)),
        line("down", against=difference(-0.9)),
        line("open", against=difference(0.4)),
        line("none", move=None, against=difference(None)),
    ]
    found = shapes.Compared.model_validate(comparison(*rows))
    assert compared.sentence(found) == (
        "5 runs compared; held-out reward against one: clearly higher: up; clearly lower: down; "
        "not clearly apart: open."
    )
    links = {"up-seed0": "report/up-seed0.html", "down-seed0~one-seed0": "report/x.html"}
    section = compared.section(found, links)
    assert [run["pages"] for run in section["runs"]] == [[], [(0, "report/up-seed0.html")], [], [], []]
    assert [run["others"] for run in section["runs"]] == [[], [], [(0, "report/x.html")], [], []]
    (table,) = [table for table in section["tables"] if table["metrics"]]
    cells = {run["name"]: run["cells"][0] for run in table["runs"]}
    assert (cells["one"]["mean"], cells["one"]["difference"]) == ("6.00", "+1.00")
    assert (cells["one"]["interval"], cells["one"]["side"]) == ("+0.50 … +1.50", "up")
    assert (cells["none"]["difference"], cells["none"]["side"]) == ("–", "open")
    before, other = section["figures"]
    assert before["title"].capitalize() == "Reward, against the model before"
    assert "up +0.90, +0.40 to +1.40; down −0.90, −1.40 to −0.40; open +0.40" in other["plot"]
    text = text_of(page_of(tmp_path, compare=comparison(*rows)))
    assert "5 trainings on the same candidates, each on 9 held-out prompts" in text


def test_seeds_are_rings_and_only_of_several() -> None:
    rows = [line("one") | {"seeds": [0.5, 1.0, None]}]
    (figure,) = compared.section(shapes.Compared.model_validate(comparison(*rows)), {})["figures"]
    assert figure["plot"].count('class="seed"') == 2
    rows = [line("one") | {"seeds": [1.0]}]
    (figure,) = compared.section(shapes.Compared.model_validate(comparison(*rows)), {})["figures"]
    assert 'class="seed"' not in figure["plot"]


def test_a_forest_is_coloured_by_its_intervals_and_lies_on_its_axis() -> None:
    marks = [
        forest.Mark("up", 2.0, 1.0, 3.0),
        forest.Mark("down", -2.0, -3.0, -1.0),
        forest.Mark("open", 0.0, -1.0, 1.0),
        forest.Mark("none", None),
        forest.Mark("alone", 1.0),
        forest.Mark("leaning", 0.5, -0.5, 1.5),
    ]
    plot = str(forest.forest(marks, "title", "axis", str))
    kinds = re.findall(r'circle class="dot (\w+)" cx="([\d.]+)"', plot)
    assert [kind for kind, _ in kinds] == ["up", "down", "open", "open", "open"]
    places = {kind: float(x) for kind, x in kinds[:3]}
    assert places["open"] - places["down"] == pytest.approx(places["up"] - places["open"], abs=0.2)
    assert "<title>title: up 2.0, 1.0 to 3.0; " in plot
    many = [forest.Mark(f"run {number}", float(number)) for number in range(10_000)]
    assert str(forest.forest(many, "t", "a", str)).count("<circle") == forest.MOST
    assert "no result" in forest.forest([], "t", "a", str)


def share(hit: int, n: int) -> dict[str, Any]:
    known = {"accuracy": hit / n if n else None, "low": 0.1 if n else None, "high": 0.9 if n else None}
    return {"n": n, **known, "right": hit, "wrong": n - hit, "ties": 0, "unscored": 2}


def agreement(**more: Any) -> dict[str, Any]:
    of = {"n": 4, "share": 0.5, "low": 0.2, "high": 0.8}
    rho = {"pearson": 0.1, "spearman": -0.25, "low": -0.5, "high": 0.1, "count": 8}
    tree = {
        **{"judge": "m", **share(3, 4), "pairs": 6, "prompts": 5, "chance": 0.5},
        "methods": [
            {"method": "longreward", **share(3, 4)},
            {"method": "length", **share(1, 4), "longreward_ahead": difference(0.5)},
        ],
        "contexts": [
            {"name": name, "pairs": 3, "chance": 0.5, "methods": {"longreward": share(hit, 2)}}
            for name, hit in (("below 4k tokens", 1), ("8k to 16k tokens", 2))
        ],
        "subsets": [],
        "answer_length": {
            **{"answers": rho, "differences": rho},
            **{"judge_prefers_longer": of, "label_prefers_longer": of},
        },
        "kappa": [{"with": "direct", "kappa": 0.31, "low": 0.1, "high": 0.5, "agreement": 0.7, "count": 4}],
        **{"unlabelled": 3, "failed": 0, "other": None, "seed": 0},
    }
    return {**tree, **more}


def test_an_agreement_in_figures(tmp_path: Path) -> None:
    page = page_of(tmp_path, agreement=agreement())
    text = text_of(page)
    assert "The judge agrees with 75.0% of 4 labelled pairs (95% interval 10.0 … 90.0%)." in text
    assert "Cohen's kappa with direct 0.31 +0.10 … +0.50 4 pairs" in text
    assert "rank correlation of reward and length, all answers −0.25 −0.50 … +0.10 8 answers" in text
    assert "longreward 75.0% 10.0 … 90.0% 4 1 0 2" in text
    assert "Rows without a label that tells their answers apart, left out: 3." in text
    assert "8k to 16k tokens 100.0%" in text
    assert "+50.0" in text
    assert "on 3 pairs" not in text
    fewer = {"method": "length", **share(1, 4), "longreward_ahead": difference(0.5) | {"pairs": 3}}
    methods = [agreement()["methods"][0], fewer]
    assert "on 3 pairs" in text_of(page_of(tmp_path, agreement=agreement(methods=methods)))
    assert "Labelled pairs with their answers" not in text  # there are none
    nothing = shapes.Agreement.model_validate(agreement(**share(0, 0)))
    assert agreed.sentence(nothing) == "None of 6 labelled pairs was scored."


def test_further_judgings_and_direct_calls(tmp_path: Path) -> None:
    of = {"n": 4, "share": 0.25, "low": 0.2, "high": 0.8}
    more = {
        "direct": {"consistent": of, "first": of},
        "repeats": {"judgings": 3, "same": of, "flips": 0.125, "accuracies": [], "mean": share(1, 2)},
        "settled": {"n": 7, "turned": 2},
        "paper": {"pairs": 464, "longreward": 0.662, "source": "x"},
    }
    text = text_of(page_of(tmp_path, agreement=agreement(**more)))
    assert "all 3 judgings of a pair agree 25.0% 20.0 … 80.0% 4 pairs" in text
    assert "two judgings of a pair differ 12.5%" in text
    assert "direct calls: the answer shown first won 25.0%" in text
    assert "close pairs that further ratings turned 2 7 pairs" in text
    assert "The paper reports 66.2% on 464 pairs" in text


def evaluation(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    tree = {"baseline": "a", "model": "b", "prompts": 0, "n": 1, "table": list(rows), "unscored": {}}
    return {**tree, **more}


def test_benchmarks_stand_apart_and_their_gaps_are_counted(tmp_path: Path) -> None:
    needles = [
        {"metric": f"ruler, {size} tokens: found", "benchmark": "ruler", "group": f"{size} tokens"}
        | difference(move, before=50.0)
        for size, move in ((4096, 10.0), (8192, -5.0))
    ]
    whole = {"metric": "ruler: found", "benchmark": "ruler", "group": None} | difference(9.0, before=50.0)
    won = {"metric": "held-out prompts: win rate", "benchmark": "held-out prompts", "group": None}
    told = {
        "ruler": {
            **{"kind": "ruler", "cases": 40, "truncated": {"before": 0, "after": 0}},
            "failed": {"before": 0, "after": 3},
            "unscored": {"before": {"found": {"no answer": 5}}, "after": {"found": {"no answer": 6}}},
        },
        "held-out prompts": {
            "comparisons": {
                "unscored": {"win": {"no verdict": 2}},
                "the order decided": {"share": 0.25, "comparisons": 8},
            }
        },
    }
    held = {"metric": "reward", **difference(1.0)}
    rows = [held, whole, *needles, won | difference(20.0, before=40.0)]
    page = page_of(tmp_path, evaluation=evaluation(*rows, prompts=9, benchmarks=told))
    text = text_of(page)
    assert "Benchmarks clearly up: ruler found, held-out prompts win rate." in text
    assert "Facts and benchmarks" not in text
    first, last = text.split("held-out prompts held-out prompts: both models", 1)
    assert "prompts that failed for good 0 3" in first
    assert "unscored: no answer 5 6" in first
    assert "lost some of the document" not in text
    assert "unscored: no verdict 2" in last
    assert "of 8 comparisons, those that the order of the answers decided 2" in last
    (plot,) = re.findall(r"<title>(ruler: found by length[^<]*)", page.html)
    assert plot == ("ruler: found by length of prompt: before 4k 50%, 8k 50%; after 4k 60%, 8k 45%")


def test_rows_of_one_measure_share_an_axis() -> None:
    rows = [
        {"metric": f"b, {name}: score", "benchmark": "b", "group": name} | difference(move, half=1.0)
        for name, move in (("x", 1.0), ("y", 9.0))
    ]
    found = evaluated.benchmarks({"table": rows})
    assert found is not None
    places = [
        re.search(r'circle class="dot \w+" cx="([\d.]+)"', row["plot"]) for row in found["shown"][0]["rows"]
    ]
    near, far = (float(place[1]) - 120 for place in places if place)
    assert far == pytest.approx(9 * near, rel=0.02)


def test_a_synthesis_in_figures(tmp_path: Path) -> None:
    made = {
        "documents": {"files": 3, "other_files": 1, "documents": 9, "used": 7, "dropped": {"no text": 2}},
        "contexts": {"asked_for": 12, "failed": 1},
        "questions": {
            **{"written": 40, "kept": 11, "spare": 20, "unwritten": {}},
            "dropped": {"context_free": 4, "disputed": 5},
        },
        "kinds": {"fact": 11},
        "languages": {"en": 8, "zh": 3},
        "made_of": {"one": 6, "several": 5},
        "lengths": {"8192": {"contexts": 11, "mean_tokens": 8001, "under_90_percent": 2}},
        "usage": {},
        "rules": {},
    }
    text = text_of(page_of(tmp_path, synthesis=made))
    assert "11 prompts made of 7 documents; 40 questions were written." in text
    assert "a reader of the whole context answers otherwise 5" in text
    assert text.index("answers otherwise 5") < text.index("answered as well without the context 4")
    assert "8,192 tokens 11 8,001 2" in text
    assert "Questions never written" not in text
    assert synthesized.sentence(shapes.Synthesis.model_validate(made)).startswith("11 prompts")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("compare.json", "{", "not valid JSON"),
        ("compare.json", "[" * 100_000, "not valid JSON"),
        ("compare.json", "[]", "expected a JSON object"),
        ("compare.json", json.dumps(comparison(line("x") | {"mean": "9"})), r"table\.0\.mean: .*number"),
        ("compare.json", json.dumps(comparison(line("x") | {"mean": float("nan")})), r"table\.0\.mean"),
        (
            "compare.json",
            json.dumps(comparison() | {"\x1b[2J": 1, "runs": [{"\x1b[2J": 1}]}),
            r"runs\.0\.name",
        ),
        ("agreement.json", json.dumps({"n": 1, "accuracy": 1.0}), "Field required"),
        ("agreement.json", json.dumps(agreement(judge=["x"])), "judge: .*string"),
        ("synthesis.json", "{}", "documents: Field required"),
        ("evaluation.json", json.dumps(evaluation({"metric": "reward"})), r"table\.0\.before"),
        ("evaluation.json", json.dumps(evaluation(benchmarks=[])), "benchmarks: .*dictionary"),
    ],
)
def test_a_broken_file_is_named_in_one_sentence(tmp_path: Path, name: str, content: str, says: str) -> None:
    store = Store(str(tmp_path / "run"))
    store.write(content.encode(), name)
    with pytest.raises(ValueError, match=f"run/{name}: .*{says}") as raised:
        report.write(store)
    assert "\n" not in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 400


def test_no_result_no_section(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert not [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert "holds no results yet" in page.text


def test_ten_thousand_rows_of_each_stay_bounded(tmp_path: Path) -> None:
    many = 10_000
    long = "w" * 400
    rows = [line(f"run{number}", f"metric {number} {long}") for number in range(many)]
    groups = [
        {"name": f"s{number}{long}", "pairs": 1, "chance": 0.5, "methods": {"longreward": share(1, 2)}}
        for number in range(many)
    ]
    tested = [
        {"metric": f"b{number}: score{long}", "benchmark": f"b{number % 200}", "group": None}
        | difference(1.0)
        for number in range(many)
    ]
    missing = {"before": {"score": {f"{long} {number}": 1 for number in range(2000)}}}
    made = {
        "documents": {
            "files": 1,
            "documents": 1,
            "used": 1,
            "dropped": {f"{n}{long}": 1 for n in range(many)},
        },
        "contexts": {"asked_for": 1, "failed": 0},
        "questions": {"written": 1, "kept": 1, "spare": 0, "dropped": {}, "unwritten": {}},
        **{"kinds": {f"{n}{long}": n for n in range(many)}, "languages": {}, "made_of": {}, "lengths": {}},
    }
    page = page_of(
        tmp_path,
        compare=comparison(*rows),
        agreement=agreement(subsets=groups, methods=agreement()["methods"] * 5000),
        evaluation=evaluation(*tested, benchmarks={"b1": {"unscored": missing}}),
        synthesis=made,
    )
    assert len(page.html) < 4_000_000
    text = text_of(page)
    more = ("… 9,600 more rows in compare.json", "… 9,976 more runs", "… 170 more benchmarks", "9,970 more")
    for said in more:
        assert said in text


def test_labelled_pairs_by_how_far_apart_they_are(tmp_path: Path) -> None:
    from lr_ray import schemas
    from tests.test_pipeline import judged

    store = Store(str(tmp_path / "run")).sub("agreement")
    rewards = {
        "far": [1.0, 9.5],
        "near": [4.0, 4.3],
        "right": [9.0, 2.0],
        "even": [5.0, 5.0],
        "none": [None, 5.0],
    }
    outcomes = {"far": "wrong", "near": "wrong", "right": "right", "even": "tie", "none": "unscored"}
    store.write_rows("judged", [judged(name, list(given)) for name, given in rewards.items()], schemas.JUDGED)
    lines = [
        {
            **{"key": "k", "prompt_id": name, "subset": "s", "tokens": 1, "chosen": [0], "rejected": [1]},
            **{
                "lengths": [1, 1],
                "rewards": given,
                "choice": None,
                "outcomes": {"longreward": outcomes[name]},
            },
        }
        for name, given in rewards.items()
    ]
    store.write("".join(json.dumps(line) + "\n" for line in lines).encode(), "outcomes.jsonl")
    found = labels.gather(Store(str(tmp_path / "run")))
    assert found.counts == {"wrong": 2, "right": 1, "a tie": 1}
    assert {place - 10: count for place, count in enumerate(found.apart) if count} == {
        -9: 1,
        -1: 1,
        0: 1,
        7: 1,
    }
    assert [(row["prompt_id"], row["why"]) for row in found.rows] == [
        *(("far", labels.FAR), ("near", labels.FAR), ("even", labels.TIE), ("right", labels.RIGHT)),
    ]
    assert [(side, one["index"]) for side, one in found.rows[0]["answers"]] == [("better", 0), ("worse", 1)]
    store.write(json.dumps({**lines[0], "chosen": [7]}).encode(), "outcomes.jsonl")
    with pytest.raises(ValueError, match=r"outcomes\.jsonl: line 1: names answers that it has no rewards of"):
        labels.gather(Store(str(tmp_path / "run")))
    store.write(b"{}", "outcomes.jsonl")
    with pytest.raises(ValueError, match=r"outcomes\.jsonl: line 1: prompt_id: Field required"):
        labels.gather(Store(str(tmp_path / "run")))


def test_sizes_of_figures() -> None:
    assert [compared.decimals(value) for value in (None, 0.4, 5.0, 100.0, 250.0)] == [3, 3, 2, 1, 0]
    assert [sides.nearest(value) for value in (0.0, 0.2, -0.2, 1.4, -1.6, 99.0)] == [0, 1, -1, 1, -2, 99]
