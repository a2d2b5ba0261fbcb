"""The page of a run: its sections, and that nothing from outside becomes more than text."""

import json
import random
import re
from pathlib import Path

import pytest

from lr_ray import report, schemas
from lr_ray.store import Store
from tests.report_run import Page, build, judged


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = build(tmp_path_factory.mktemp("runs") / "lights")
    report.write(store)
    data = store.read("report.html")
    assert data is not None
    return data.decode()


def test_every_section_is_there(html: str) -> None:
    ids = [attrs["id"] for _, attrs in Page(html).tags if "id" in attrs]
    assert ids == ["comparison", "rewards", "training", "dropped", "effort", "examples", "settings"]


def test_only_our_elements_and_attributes(html: str) -> None:
    """Hostile text adds no element, no attribute and no load: what is in the page is what we wrote."""
    page = Page(html)
    assert page.open == []
    assert not {tag for tag, _ in page.tags} & {
        "script",
        "img",
        "iframe",
        "object",
        "embed",
        "form",
        "link",
        "base",
    }
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {name for name in names if name.startswith("on")} | (
        names & {"src", "srcset", "style", "action"}
    )
    links = {attrs["href"] for tag, attrs in page.tags if tag == "a"}
    assert all(link and link.startswith("#") for link in links)
    assert "<!--" not in html.replace("&lt;!--", "")
    assert not re.search(r"url\(|@import|https?://", html)


def test_policy_forbids_everything_but_the_style_sheet(html: str) -> None:
    policy = next(a["content"] for t, a in Page(html).tags if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_hostile_text_is_shown_as_text(html: str) -> None:
    text = Page(html).text
    assert "<script>alert(1)</script> </script><img src=x onerror=alert(2)>" in text
    assert "{{7*7}} {% raw %} ${7*7}" in text
    assert "⟨U+202E⟩gnp.exe⟨U+202C⟩" in text
    assert "⟨U+0000⟩⟨U+001B⟩[31m" in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", html)


def test_no_python_values_leak(html: str) -> None:
    text = Page(html).text
    assert not re.search(r"\b(None|nan|NaN|inf|True|False|Undefined)\b", text)
    assert "{'" not in text
    assert not re.search(r"\d\.\d{5,}", text.split("config.yaml, as resolved")[0])
    drawn = [str(value) for _, attrs in Page(html).tags for value in attrs.values()]
    assert not [value for value in drawn if re.search(r"\b(nan|inf)\b", value)]


def test_a_run_that_only_judged(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "only"))
    store.write_rows("judged", [judged(n, random.Random(n)) for n in range(3)], schemas.JUDGED)
    report.write(store)
    page = Page((store.read("report.html") or b"").decode())
    assert [a["id"] for _, a in page.tags if "id" in a] == ["rewards", "dropped", "effort", "examples"]
    assert "3 of 3 judged prompts" in " ".join(page.text.split())


def test_an_empty_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "empty"))
    report.write(store)
    assert "holds no results yet" in (store.read("report.html") or b"").decode()


def test_nothing_scored_before_and_after(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    nothing = dict.fromkeys(("before", "after", "difference", "low", "high"))
    table = [{"metric": name, **nothing, "prompts": 0} for name in ("reward", "accuracy")]
    value = {"model": "b", "baseline": "a", "prompts": 0, "n": 1, "table": table, "unscored": {}}
    store.write(json.dumps(value).encode(), "evaluation.json")
    report.write(store)
    text = Page((store.read("report.html") or b"").decode()).text
    assert "No held-out prompt has a reward both before and after training." in text


@pytest.mark.parametrize(
    ("name", "content"), [("config.yaml", b"no_such: 1"), ("evaluation.json", b"{"), ("pairs.json", b"[]")]
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    store = Store(str(tmp_path / "run"))
    store.write(content, name)
    with pytest.raises(ValueError, match=name):
        report.write(store)
