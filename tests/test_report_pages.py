"""All pages of a run that holds everything: what is from outside stays text, and links lead on."""

import json
import re
from pathlib import Path, PurePosixPath

import pytest

from lr_ray import report
from lr_ray.store import Store
from tests.report_results import RUNS, SEEDS, everything
from tests.report_run import Page, build

Pages = dict[str, str]


def written(store: Store) -> Pages:
    report.write(store)
    root = Path(store.root)
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*.html")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = build(tmp_path_factory.mktemp("runs") / "lights<script>", prompts=8)
    everything(store)
    return store


@pytest.fixture(scope="module")
def pages(run: Store) -> Pages:
    return written(run)


@pytest.fixture(scope="module")
def parsed(pages: Pages) -> dict[str, Page]:
    return {name: Page(html) for name, html in pages.items()}


def test_there_is_a_page_for_every_two_models(pages: Pages) -> None:
    compared = {f"report/{name}-seed{seed}.html" for name in RUNS for seed in SEEDS}
    compared |= {
        f"report/{name}-seed{seed}~longreward-seed{seed}.html"
        for name in RUNS
        for seed in SEEDS
        if name != "longreward"
    }
    assert set(pages) == {"report.html", "report/before-after.html", "report/agreement.html", *compared}


def test_every_link_leads_to_a_page_or_a_section(parsed: dict[str, Page]) -> None:
    for name, page in parsed.items():
        links = [attrs["href"] or "" for tag, attrs in page.tags if tag == "a"]
        assert links
        for link in links:
            if link.startswith("#"):
                assert link[1:] in {attrs.get("id") for _, attrs in page.tags}
            else:
                parts: list[str] = []
                for part in (PurePosixPath(name).parent / link).parts:
                    parts = parts[:-1] if part == ".." else [*parts, part]
                assert "/".join(parts) in parsed
    linked = {attrs["href"] for tag, attrs in parsed["report.html"].tags if tag == "a"}
    assert set(parsed) - {"report.html"} <= linked


def test_sections_are_in_order(parsed: dict[str, Page]) -> None:
    ids = [attrs["id"] for _, attrs in parsed["report.html"].tags if "id" in attrs]
    results = ["comparison", "benchmarks", "compared", "agreement"]
    assert ids == [
        *results,
        *("rewards", "training", "synthesis", "dropped", "effort", "examples", "settings"),
    ]


def test_only_our_elements_and_attributes(pages: Pages, parsed: dict[str, Page]) -> None:
    for name, page in parsed.items():
        html = pages[name]
        assert page.open == []
        tags = {tag for tag, _ in page.tags}
        assert not tags & {"script", "img", "iframe", "object", "embed", "form", "link", "base"}
        names = {name for _, attrs in page.tags for name in attrs}
        assert not {name for name in names if name.startswith("on")}
        assert not names & {"src", "srcset", "style", "action"}
        assert "<!--" not in html
        assert not re.search(r"url\(|@import|https?://", html)
        policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
        assert policy is not None
        assert policy.startswith("default-src 'none'; style-src 'sha256-")


def test_hostile_text_is_shown_as_text(pages: Pages, parsed: dict[str, Page]) -> None:
    for name, html in pages.items():
        text = parsed[name].text
        assert "<script>alert(1)</script> </script><img src=x onerror=alert(2)>" in text
        assert "⟨U+202E⟩gnp.exe⟨U+202C⟩" in text
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)


def test_no_python_values_leak(parsed: dict[str, Page]) -> None:
    for page in parsed.values():
        text = page.text
        assert not re.search(r"\b(None|nan|NaN|inf|True|False|Undefined)\b", text)
        assert "{'" not in text
        assert not re.search(r"\d\.\d{5,}", text.split("config.yaml, as resolved")[0])
        drawn = [value for _, attrs in page.tags for value in attrs.values() if value is not None]
        assert not [value for value in drawn if re.search(r"\b(nan|inf|None)\b", value)]


def test_tables_and_plots_say_what_they_are(pages: Pages) -> None:
    """Every plot has a title, every figure a caption, every table of results a caption and column headers."""
    for html in pages.values():
        assert html.count("<svg") == html.count("<title>") - 1
        assert html.count("<figure>") == html.count("<figcaption")
        assert html.count("<table") == html.count("<caption>")
        assert not re.search(r"<th(?! scope=)[ >]", html)


def test_names_in_files_are_no_paths(tmp_path: Path) -> None:
    """Pages are named by folders that lr-ray makes; a run of another name in compare.json adds none."""
    store = Store(str(tmp_path / "run"))
    from tests.report_results import answered

    answered(store.sub("evaluation", "before"), "before", 0.0, 2)
    for folder in ("good-seed1", "bad name-seed1", "<b>-seed1", "unseeded"):
        answered(store.sub("compare", folder, "evaluation", "after"), "after", 0.1, 2)
    outside = tmp_path / "outside-seed0"
    answered(Store(str(outside)).sub("evaluation", "after"), "after", 0.1, 2)
    run = {"name": "../../outside", "changes": {}, "seeds": [{"seed": 0}]}
    good = {"name": "good", "changes": {}, "seeds": [{"seed": 1}]}
    result = {
        "prompts": 2,
        "n": 1,
        "against": "../../outside",
        "before": {},
        "runs": [run, good],
        "table": [],
    }
    store.write(json.dumps(result).encode(), "compare.json")
    pages = written(store)
    assert set(pages) == {"report.html", "report/good-seed1.html"}
    links = [attrs["href"] for tag, attrs in Page(pages["report.html"]).tags if tag == "a"]
    assert [link for link in links if link and not link.startswith("#")] == ["report/good-seed1.html"]
    assert not list(outside.glob("*.html"))


@pytest.mark.parametrize("name", ["compare.json", "agreement.json", "synthesis.json"])
def test_lone_surrogates_are_shown_by_name(run: Store, tmp_path: Path, name: str) -> None:
    content = json.loads(run.read(name) or b"")
    strange = "\udfff\ud800"  # the other way round JSON has a pair
    if name == "compare.json":
        content["runs"][0]["name"] = strange
        content["runs"][0]["changes"] = {strange: strange}
        for row in content["table"]:
            row["metric"] += strange
            row["run"] = strange
    elif name == "agreement.json":
        content["judge"] = strange
        content["methods"][0]["method"] = strange
        content["subsets"][0]["name"] = strange
    else:
        content["kinds"] = {strange: 3}
        content["documents"]["dropped"] = {strange: 3}
    store = Store(str(tmp_path / "run"))
    store.write(json.dumps(content).encode(), name)
    text = Page(written(store)["report.html"]).text
    assert text.count("⟨U+DFFF⟩⟨U+D800⟩") > 2
