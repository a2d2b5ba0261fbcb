"""The verb `agreement` end to end on the simulated judge, and what it refuses."""

import asyncio
import json
import urllib.request
from pathlib import Path
from typing import Any

import orjson
import pytest

from jobs import known_pairs
from lr_ray import agreement, config, data, labelled, pipeline, preflight, rows, schemas, simulated
from lr_ray.agreement import cases, direct, figures, inputs
from lr_ray.config import DIMENSIONS
from lr_ray.judge.actor import JudgeActor
from lr_ray.llm import client as clients
from lr_ray.llm import usage
from lr_ray.llm.spending import Stopped
from lr_ray.store import Store
from tests.test_agreement_figures import item

SHARED = Path(__file__).parents[2] / "shared" / "data"


def settings(tmp_path: Path, url: str, name: str = "run", **sections: Any) -> config.Config:
    judge = {"model": "sim", "base_url": url, **sections.pop("judge", {})}
    given = {"pairs": [str(tmp_path / "pairs.jsonl")], **sections.pop("agreement", {})}
    tree = {"run_dir": str(tmp_path / name), "judge": judge, "agreement": given, **sections}
    return config.Config.model_validate(tree)


def write(tmp_path: Path, *pairs: dict[str, Any]) -> None:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def requests(url: str) -> int:
    with urllib.request.urlopen(f"{url}/stats", timeout=10) as reply:  # noqa: S310 - loopback
        return json.load(reply)["requests"]


def read(tmp_path: Path, name: str = "run") -> dict[str, Any]:
    return orjson.loads((tmp_path / name / "agreement.json").read_bytes())


SHORT = {
    **{"id": "short", "prompt": "What does Mira keep in the mill?", "subset": "chat"},
    **{"chosen": ["Mira keeps copper in the mill."], "rejected": ["The weather is fine.", "x x x x."]},
}


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "BACKOFF", 0.005)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"NOT RUN: the real prompts are not there, {SHARED}")
@pytest.mark.usefixtures("_quick")
def test_known_qualities_on_real_documents(tmp_path: Path) -> None:
    """Known qualities on long documents, judged by the actor itself."""
    known_pairs.main(
        *(str(SHARED / f"real_{kind}.jsonl") for kind in ("prompts", "candidates")),
        str(tmp_path / "pairs.jsonl"),
    )
    with simulated.running() as url:
        asked = settings(tmp_path, url)
        there = Store(asked.run_dir).sub(labelled.FOLDER)
        items = inputs.write(there, labelled.scan(asked), 0, None, set())

        async def work() -> list[rows.Packed]:
            actor = JudgeActor(asked, there)
            given = [data.load(one.pointer, asked.data.prompt_template) for one in items]
            try:
                return await asyncio.gather(*(actor(rows.pack("sampled", one)) for one in given))
            finally:
                await actor.close()

        there.write_rows("judged", [rows.unpack(one) for one in asyncio.run(work())], schemas.JUDGED)
    found = list(cases.cases(items, [cases.judging(there)], None, asked.judge.weights))
    result = figures.figures(found, None)
    assert (result["pairs"], result["prompts"], result["n"], result["unscored"]) == (6, 3, 6, 0)
    assert all(one.tokens > 2500 for one in items)
    by_subset = {group["name"]: group["methods"] for group in result["subsets"]}
    # Faithfulness knows the unsupported ones and completeness the incomplete ones; neither alone knows both.
    assert by_subset["unsupported"]["faithfulness"]["accuracy"] == 1
    assert by_subset["incomplete"]["completeness"]["accuracy"] == 1
    assert result["accuracy"] == 1


FACTS = {"Mira": "copper", "Toben": "salt", "Sela": "tin", "Kano": "honey", "Runa": "amber"}


def made_pair(name: str) -> dict[str, Any]:
    filler = "A cold wind blows over the hills and the old mill stands near the river. "
    told = " ".join(f"{filler * 3}{one} keeps {good}." for one, good in FACTS.items())
    return {
        **{"prompt_id": name, "context": told, "question": f"What does {name} keep?"},
        **{"chosen": f"{name} keeps {FACTS[name]}.", "rejected": f"{name} keeps silk."},
    }


@pytest.mark.slow
@pytest.mark.usefixtures("_quick", "ray_cluster")
def test_the_verb_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A budget stops it, it goes on and ends, a second call is free, and what failed is taken up."""
    write(tmp_path, *map(made_pair, ("Mira", "Toben")), SHORT)
    prices = {"prices": {"prompt": 1000.0, "completion": 3000.0}, "concurrency": 4}
    more = {"direct": True, "repeats": 1}
    with simulated.running() as url:
        small = settings(tmp_path, url, agreement=more, judge={**prices, "budget": 10.0})
        with pytest.raises(Stopped, match=r"judge\.budget"):
            pipeline.execute(small, ("agreement",))
        assert not (tmp_path / "run" / "agreement.json").exists()
        store = Store(small.run_dir)
        spent, stopped_at = usage.money(store, small.judge.prices), requests(url)
        assert spent > 9

        asked = settings(tmp_path, url, agreement=more, judge=prices)
        assert pipeline.execute(asked, ("agreement",)) == 0
        paid, result = requests(url), read(tmp_path)
        assert paid > stopped_at > 0
        # What direct calls and repeats cost counts for a budget too.
        there = store.sub(labelled.FOLDER)
        names = ("short", "repeat-1", "repeat-1-short", direct.folder(there).url.rpartition("/")[2])
        each = [usage.money(place, asked.judge.prices) for place in (there, *map(there.sub, names))]
        assert all(each)
        assert usage.money(store, asked.judge.prices) == pytest.approx(sum(each))
        assert "agreement of sim with 3 labelled pairs on 3 prompts" in capsys.readouterr().err

        again = settings(tmp_path, url, agreement={**more, "other": asked.run_dir}, judge=prices)
        assert pipeline.execute(again, ("agreement",)) == 0
        assert requests(url) == paid
        kappa = read(tmp_path)["kappa"][-1]
        assert (kappa["with"], kappa["kappa"], kappa["count"]) == ("other", 1.0, 3)

        write(tmp_path, *map(made_pair, ("Mira", "Toben", "Sela")), SHORT)
        failed = {"prompt_id": "Sela", "stage": "judge", "reason": "a bad day"}
        store.sub(labelled.FOLDER).write_rows("failed", [failed], schemas.FAILED)
        assert pipeline.execute(asked, ("agreement",)) == 1
        assert (read(tmp_path)["failed"], read(tmp_path)["unscored"]) == (1, 1)
        assert pipeline.execute(asked, preflight.RETRY) == 0
        after = read(tmp_path)
    assert (result["pairs"], result["n"], result["unscored"], result["accuracy"]) == (3, 3, 0, 1.0)
    assert (after["pairs"], after["n"], after["failed"], after["accuracy"]) == (4, 4, 0, 1.0)
    assert result["repeats"]["judgings"] == 2
    assert result["direct"]["consistent"]["n"] == 4  # two of the pair with two worse answers
    lines = [orjson.loads(line) for line in (tmp_path / "run/agreement/outcomes.jsonl").open()]
    assert {line["prompt_id"] for line in lines} == {"Mira", "Toben", "Sela", "chat-short"}
    assert all("unscored" not in line["outcomes"].values() for line in lines)


def test_what_is_checked_before_anything_is_paid(tmp_path: Path) -> None:
    write(tmp_path, {"prompt_id": "p", "context": "c", "question": "q", "chosen": "a"})
    asked = settings(tmp_path, "http://127.0.0.1:9")
    with pytest.raises(ValueError, match=r"pairs\.jsonl: line 1: rejected is neither"):
        pipeline.execute(asked, ("agreement",))
    write(tmp_path, SHORT)
    with pytest.raises(ValueError, match=r"judge\.model"):
        pipeline.execute(settings(tmp_path, "http://127.0.0.1:9", judge={"model": ""}), ("agreement",))
    assert not (tmp_path / "run").exists()


def test_a_run_directory_keeps_to_the_judge_its_pairs_were_judged_by(tmp_path: Path) -> None:
    write(tmp_path, SHORT)
    asked = settings(tmp_path, "http://127.0.0.1:9")
    preflight.claim(asked, ("agreement",))
    preflight.claim(settings(tmp_path, "http://127.0.0.1:9", judge={"model": "b"}), ("agreement",))
    preflight.claim(asked, ("agreement",))
    (tmp_path / "run/agreement/short/judged").mkdir(parents=True)
    (tmp_path / "run/agreement/short/judged/x.parquet").write_bytes(b"")
    preflight.claim(settings(tmp_path, "http://127.0.0.1:9", sampling={"n": 3}), ("agreement",))
    with pytest.raises(ValueError, match=r"judge\.model='sim'; the config now says 'b'"):
        preflight.claim(settings(tmp_path, "http://127.0.0.1:9", judge={"model": "b"}), ("agreement",))


def test_what_failed_is_known(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert not agreement.lost(store)
    row = {"prompt_id": "p", "stage": "judge", "reason": "broken"}
    store.sub(labelled.FOLDER, "repeat-1").write_rows("failed", [row], schemas.FAILED)
    assert agreement.lost(store)


def test_repeats_ask_for_new_samples_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    items = [item("a"), item("s", short=True)]
    asked = settings(
        tmp_path, "u", agreement={"repeats": 2}, judge={"parameters": {"seed": None, "top_p": 0.5}}
    )
    store = Store(asked.run_dir).sub(labelled.FOLDER)
    found = list(agreement.parts(asked, store, items))
    assert [part.judging for part in found] == [0, 0, 1, 1, 2, 2]
    assert len({part.store.url for part in found}) == 6
    assert found[0].config == asked
    assert found[2].config.judge.parameters == {"temperature": 0.95, "seed": None, "top_p": 0.5}
    weights = found[1].config.judge.weights
    assert [getattr(weights, name) for name in DIMENSIONS] == [1, 1, 0, 0]


def test_what_any_judging_has_seen_keeps_its_order_and_labels(tmp_path: Path) -> None:
    """Also where the first judging failed: direct calls and repeats name answers by their places."""
    write(tmp_path, SHORT)
    asked = settings(tmp_path, "u")
    there = Store(asked.run_dir).sub(labelled.FOLDER)
    inputs.write(there, labelled.scan(asked), 0, None, agreement.seen(there))
    failed = {"prompt_id": "chat-short", "stage": "judge", "reason": "broken"}
    there.sub("short").write_rows("failed", [failed], schemas.FAILED)

    def write_all(seeds: range) -> None:
        for seed in seeds:
            inputs.write(there, labelled.scan(asked), seed, None, agreement.seen(there))

    write_all(range(1, 9))
    calls = [{"first": 0, "second": 1, "winner": "first", "analysis": "", "unscored": None}]
    direct.folder(there).write_rows(
        "preferred", [{"prompt_id": "chat-short", "calls": calls}], schemas.SCHEMAS["preferred"]
    )
    assert agreement.seen(there) == {"chat-short"}
    with pytest.raises(ValueError, match="'chat-short' was judged with other answers, labels or seed"):
        write_all(range(9))
