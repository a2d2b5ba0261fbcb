"""A run directory as a finished run leaves it, and a page as a browser reads it, for the report's tests."""

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from lr_ray import config, pairs, schemas
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
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.parts: list[str] = []
        self.feed(html)
        self.close()
        self.text = "".join(self.parts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "rect", "circle", "line", "path"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.parts.append(" " if tag in ("td", "th", "title") else "")

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.parts.append(data)
