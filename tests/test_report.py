import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lr_ray import config, pairs, report, schemas
from lr_ray.report import facts, plots, words
from lr_ray.store import Store

HOSTILE = (
    "<script>alert(1)</script> </script><img src=x onerror=alert(2)> \"quoted\" 'single' &amp; "
    "{{7*7}} {% raw %} ${7*7} \u202egnp.exe\u202c \u2066isolated\u2069 \x00\x1b[31m ]]> <!-- -->"
)
NAMES = ["Arvika", "Bodø", "Celje", "Dungeness", "Eemshaven", "Fécamp", "Gdynia"]


def passage(random_: random.Random) -> str:
    name, year, height = random_.choice(NAMES), random_.randint(1850, 1990), random_.randint(12, 60)
    return (
        f"The light at {name} was first lit in {year}. Its tower stands {height} m high and carries a lamp"
        " of 1,000 candelas, tended until the keepers left. In the records of the harbour office the"
        " station is listed with its foghorn, its two boats and the names of its keepers."
    )


def candidate(index: int, random_: random.Random, hostile: bool) -> dict[str, Any]:
    name, year = random_.choice(NAMES), random_.randint(1850, 1990)
    quality = random_.random()
    text = f"The light at {name} was first lit in {year}, and its tower is {random_.randint(12, 60)} m high. "
    text = text * random_.randint(1, 4) + (HOSTILE if hostile else "")
    scores: dict[str, float | None] = {
        "helpfulness": float(round(4 + 6 * quality)),
        "logicality": float(round(5 + 5 * random_.random())),
        "faithfulness": 10 * round(quality * 4) / 4,
        "completeness": float(round(10 * quality**1.5)),
    }
    missing = []
    if random_.random() < 0.06:
        scores["faithfulness"] = None
        missing.append({"dimension": "faithfulness", "reason": "the answer makes no factual statement"})
    known = [score for score in scores.values() if score is not None]
    verdicts = [
        "full" if random_.random() < quality else random_.choice(["partial", "none"]) for _ in range(4)
    ]
    return {
        "index": index,
        "text": text,
        "finish_reason": "stop",
        "reward": sum(known) / 4 if len(known) == 4 else None,
        "scores": scores,
        "unscored": missing,
        "statements": [
            {
                "text": f"The light at {name} was first lit in {year + place}."
                + (HOSTILE if hostile else ""),
                "verdict": None if hostile and place == 3 else verdict,
                "analysis": "The second passage gives the year, and it is the same.",
                "unscored": f"no valid answer in 5 attempts {HOSTILE}" if hostile and place == 3 else None,
                "passages": [
                    {"position": place / 5, "text": passage(random_) + (HOSTILE if hostile else "")}
                    for place in range(5)
                ],
            }
            for place, verdict in enumerate(verdicts)
        ],
        "analyses": {
            "helpfulness": "The answer names the place and the year that were asked for.",
            "logicality": "No step contradicts another one." + (HOSTILE if hostile else ""),
            "completeness": "One of the two key points is missing.",
        },
    }


def judged(number: int, random_: random.Random) -> dict[str, Any]:
    hostile = number % 5 == 0
    context = "\n\n".join(passage(random_) for _ in range(120))
    question = f"When was the light at {random_.choice(NAMES)} first lit, and how high is its tower?"
    question += HOSTILE if hostile else ""
    return {
        "prompt_id": f"light-{number}" + (HOSTILE.replace("\x00", "") if hostile else ""),
        "context": context + (HOSTILE if hostile else ""),
        "question": question,
        "reference_answer": "In 1901; 34 m." + (HOSTILE if hostile else ""),
        "prompt": [{"role": "user", "content": question}],
        "candidates": [candidate(index, random_, hostile) for index in range(8)],
        "extracts": [
            {"position": place / 6, "facts": [passage(random_)[:80]] * (place % 3)} for place in range(6)
        ],
        "language": "en",
        "usage": {
            "calls": 120,
            "reused": 3,
            "retries": 1,
            "prompt_tokens": 90_000,
            "cached_tokens": 60_000,
            "completion_tokens": 9_000,
        },
        "sampled_at": 1.0,
        "first_call_at": 2.0,
        "judged_at": 3.0,
    }


def evaluation(random_: random.Random) -> dict[str, Any]:
    table = []
    for metric, before, move in [
        ("reward", 5.31, 1.42),
        ("helpfulness", 6.02, 0.91),
        ("logicality", 7.4, 0.08),
        ("faithfulness", 4.4, 2.4),
        ("completeness", 3.42, 2.28),
        ("exact_match", 0.41, 0.22),
    ]:
        spread = 0.05 if before < 1 else 0.2 + 0.15 * random_.random()
        table.append(
            {
                "metric": metric,
                "before": before,
                "after": before + move,
                "difference": move,
                "low": move - spread,
                "high": move + spread,
                "prompts": 128,
            }
        )
    return {
        "model": "runs/demo/model",
        "baseline": f"models/tiny{HOSTILE}",
        "prompts": 128,
        "n": 4,
        "table": table,
        "unscored": {"before": {"faithfulness": 7, "logicality": 0}, "after": {"faithfulness": 2}},
    }


def build(path: Path, prompts: int = 40) -> Store:
    """A run directory as a finished run leaves it, with hostile text wherever text comes from outside."""
    random_ = random.Random(3)
    store = Store(str(path))
    rules = config.Pairs(min_candidates=5, margin=0.5)
    found: list[dict[str, Any]] = []
    dropped: dict[str, int] = {pairs.TIE: 3}
    for start in range(0, prompts, 8):
        batch = [judged(number, random_) for number in range(start, min(start + 8, prompts))]
        store.write_rows("judged", batch, schemas.JUDGED)
        for row in batch:
            pair = pairs.choose(row, rules)  # type: ignore[arg-type]
            if isinstance(pair, str):
                dropped[pair] = dropped.get(pair, 0) + 1
            else:
                found.append(dict(pair))
    store.write_rows("pairs", found, schemas.PAIRS)
    failures = [
        {
            "prompt_id": f"f{n}",
            "stage": "sampling",
            "reason": f"prompt has {9000 + n} tokens, the window is 8192",
        }
        for n in range(7)
    ]
    failures.append({"prompt_id": "g", "stage": "judging", "reason": f"refused {HOSTILE}"})
    store.write_rows("failed", failures, schemas.FAILED)
    settings = config.Config(
        run_dir=str(path),
        judge=config.Judge(model=HOSTILE, prices=config.Prices(prompt=0.4, completion=1.6)),
    )
    store.write(config.dump(settings).encode(), "config.yaml")
    audit = {"prompts": prompts, "pairs": len(found), "dropped": dropped}
    store.write(json.dumps(audit).encode(), "pairs.json")
    store.write(json.dumps(evaluation(random_)).encode(), "evaluation.json")
    timing = {"sampling and judging": 212.0, "training": 96.4, "evaluation": 41.0}
    store.write(json.dumps(timing).encode(), "timing.json")
    lines = []
    for step in range(1, 121):
        margin = 1.6 * (1 - 0.97**step) + random_.gauss(0, 0.12)
        values = {
            "step": step,
            "loss": 0.69 * 0.985**step + random_.random() * 0.05 if step != 60 else float("nan"),
            "rewards/margins": margin,
            "rewards/accuracies": min(1.0, 0.5 + 0.45 * (1 - 0.96**step) + random_.gauss(0, 0.05)),
            "rewards/chosen": margin * 0.4,
            "rewards/rejected": -margin * 0.6,
            "grad_norm": 3 + random_.random(),
            "learning_rate": 1e-6 * min(step / 12, (121 - step) / 109),
        }
        lines.append(json.dumps(values))
    store.write(("\n".join([*lines, '{"step": 121, "lo']) + "\n").encode(), "metrics.jsonl")
    return store


class Page(HTMLParser):
    """The page as a browser reads it: every tag with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "circle", "line", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " " if tag in ("td", "th", "title") else ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


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


def test_figures_are_right(tmp_path: Path) -> None:
    store = build(tmp_path / "run")
    found = facts.gather(store)
    scored = [
        c["reward"] for row in store.rows("judged") for c in row["candidates"] if c["reward"] is not None
    ]
    spread = found.spreads["reward"]["all"]
    assert (found.prompts, found.candidates) == (40, 320)
    assert (spread.count, sum(spread.bins)) == (len(scored), len(scored))
    assert spread.mean == pytest.approx(sum(scored) / len(scored))
    chosen = [row["score_chosen"] for row in store.rows("pairs")]
    assert found.spreads["reward"]["chosen"].mean == pytest.approx(sum(chosen) / len(chosen))
    assert found.usage["prompt_tokens"] == 40 * 90_000
    assert found.unscored.total == 320 - len(scored)
    # Seven refusals that differ in a token count are one reason.
    assert ("sampling", "prompt has 9000 tokens, the window is 8192", 7) in found.failed.rows()
    text = " ".join(Page(report.render(found)).text.split())
    assert "On 128 held-out prompts the mean reward rose: 5.31 before, 6.73 after: +1.42" in text
    assert "Not clearly moved: logicality" not in text
    assert "not clearly moved: logicality" in text
    assert "1 unreadable line of metrics.jsonl" in text
    # 40 prompts at 90k × 0.4 + 9k × 1.6 a million, cached tokens at the same price
    assert "2.02" in text


def test_examples_are_bounded_and_the_same_each_time(tmp_path: Path) -> None:
    store = build(tmp_path / "run")
    found = facts.gather(store, examples=6)
    assert len(found.examples) == 6
    again = facts.gather(store, examples=6)
    assert [row["prompt_id"] for row in again.examples] == [row["prompt_id"] for row in found.examples]
    other = facts.gather(store, examples=6, seed=1)
    assert [row["prompt_id"] for row in other.examples] != [row["prompt_id"] for row in found.examples]
    row = found.examples[0]
    rewards = {c["index"]: c["reward"] for c in row["candidates"]}
    assert rewards[row["chosen"]] == max(value for value in rewards.values() if value is not None)
    row["candidates"][row["chosen"]]["text"] = "x" * 5_000_000
    page = report.render(found)
    assert "… 4,994,000 characters not shown …" in Page(page).text
    assert len(page) < 2_000_000


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


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 1.0, "rose"), (-1.0, -0.1, "fell"), (-0.1, 1.0, "no clear change")]
)
def test_the_verdict_claims_what_the_interval_does(low: float, high: float, said: str) -> None:
    row = {"metric": "reward", "before": 5.0, "after": 5.4, "difference": 0.4, "low": low, "high": high}
    found = facts.Gathered("run", evaluation={"table": [{**row, "prompts": 9}]})
    assert said in words.verdict(found)[0]


def test_metrics_of_a_resumed_run(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    store.write(
        b'{"step": 1, "loss": 9}\n{"step": 2, "loss": 8}\n{"step": 2, "loss": 7}\n[1]\n', "metrics.jsonl"
    )
    found = facts.gather(store)
    assert [(row["step"], row["loss"]) for row in found.metrics] == [(1, 9), (2, 7)]
    assert found.unreadable_metrics == 1


def test_reasons_stay_bounded() -> None:
    reasons = facts.Reasons()
    for number in range(5000):
        reasons.add("judging", f"strange reason {chr(0x4E00 + number)}")
    assert reasons.total == 5000
    assert len(reasons.rows()) <= 201


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (0.013, 0.69, [0, 0.2, 0.4, 0.6, 0.8]), (3.0, 3.0, [3.0])],
)
def test_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert plots._ticks(low, high) == ticks


def test_long_curves_are_thinned_without_moving() -> None:
    points = [(float(x), 2.0 * x) for x in range(10_000)]
    thin = plots._thin(points)
    assert len(thin) <= 300
    assert all(y == pytest.approx(2 * x) for x, y in thin)
    assert all(y == pytest.approx(2 * x) for x, y in plots._smooth(thin)[15:-15])


def test_clip_counts_what_it_hides() -> None:
    assert (
        words.clip("<a>" * 4, 4, 2) == '&lt;a&gt;&lt;<span class="cut">… 6 characters not shown …</span>a&gt;'
    )
    assert words.clip("short", 5) == "short"
