"""Repeats of the ratings: when they are asked for, what they decide, and what they cost on resume."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from lr_ray import rows, schemas
from lr_ray.config import Config, Judge
from lr_ray.judge import repeats
from lr_ray.judge.actor import JudgeActor
from lr_ray.llm import calls
from lr_ray.store import Store
from tests import endpoint
from tests.sampled_row import sampled_row

DIMENSIONS = ("helpfulness", "logicality", "faithfulness", "completeness")


def candidate(index: int, *scores: float | None, text: str = "") -> Any:
    named = dict(zip(DIMENSIONS, scores, strict=True))
    reward = None if None in scores else sum(scores) / 4  # type: ignore[arg-type]
    return {
        "index": index,
        "text": text or f"Answer {index}.",
        "reward": reward,
        "scores": named,
        "repeats": [],
    }


def settle(candidates: list[Any], script: dict[tuple[str, int, int], float | None], **changes: Any) -> Any:
    """The settled candidates and what was asked: (dimension, candidate, sample); unscripted ones give 5."""
    asked: list[tuple[str, int, int]] = []

    async def again(kind: str, one: Any, sample: int) -> float | None:
        asked.append(key := (kind, one["index"], sample))
        await asyncio.sleep(0)
        return script.get(key, 5.0)

    settings = Judge.model_validate({"repeats": {"samples": 2, "margin": 0.5}, **changes})
    return asyncio.run(repeats.settle(candidates, again, settings)), asked


def test_close_candidates_are_decided_by_the_mean() -> None:
    close = [candidate(0, 5.0, 5.0, 10.0, 5.0), candidate(1, 6.0, 5.0, 10.0, 5.0)]
    # The second only looked better: its first rating was lucky.
    script = {("helpfulness", 1, 1): 3.0, ("helpfulness", 1, 2): 3.0}
    (first, second), asked = settle(close, script)
    assert len(asked) == len(set(asked)) == 2 * 3 * 2
    assert {kind for kind, _, _ in asked} == set(repeats.RATED)
    assert {sample for _, _, sample in asked} == {1, 2}
    assert second["scores"] == {
        "helpfulness": 4.0, "logicality": 5.0, "faithfulness": 10.0, "completeness": 5.0,
    }  # fmt: skip
    assert first["reward"] == 6.25
    assert second["reward"] == 6.0
    (helpful,) = [one for one in second["repeats"] if one["dimension"] == "helpfulness"]
    assert helpful == {"dimension": "helpfulness", "scores": [6.0, 3.0, 3.0], "missing": 0, "variance": 3.0}


@pytest.mark.parametrize(
    ("candidates", "changes"),
    [
        ([candidate(0, 5, 5, 5, 5), candidate(1, 8, 5, 5, 5)], {}),  # 0.75 apart
        ([candidate(0, 5, 5, 5, 5)], {}),
        ([candidate(0, 5, 5, 5, 5), candidate(1, None, 5, 5, 5)], {}),
        ([candidate(0, 5, 5, 5, 5, text="same"), candidate(1, 5, 5, 5, 6, text=" same\n")], {}),
        ([], {}),
        ([candidate(0, 5, 5, 5, 5), candidate(1, 5, 5, 5, 5)], {"repeats": {"samples": 0, "margin": 10}}),
    ],
)
def test_others_cost_nothing_and_stay_as_they_are(candidates: list[Any], changes: dict[str, Any]) -> None:
    settled, asked = settle(candidates, {}, **changes)
    assert asked == []
    assert settled == candidates


def test_the_margin_is_inclusive_and_of_best_and_worst() -> None:
    apart = [candidate(0, 5, 5, 5, 5), candidate(1, 6, 5, 5, 5), candidate(2, 7, 5, 5, 5)]
    assert len(settle(apart, {})[1]) == 3 * 3 * 2
    apart.append(candidate(3, 4, 5, 5, 5))
    assert settle(apart, {})[1] == []


def test_an_unusable_repeat_is_a_sample_fewer_and_never_a_score() -> None:
    close = [candidate(0, 5, 5, 5, 5), candidate(1, 6, 5, 5, 5)]
    lost = {("helpfulness", 1, 1): None, ("helpfulness", 1, 2): None, ("logicality", 1, 2): None}
    (_, second), _ = settle(close, lost)
    by_name = {one["dimension"]: one for one in second["repeats"]}
    assert by_name["helpfulness"] == {
        "dimension": "helpfulness", "scores": [6.0], "missing": 2, "variance": None,
    }  # fmt: skip
    assert by_name["logicality"]["scores"] == [5, 5]
    assert by_name["logicality"]["missing"] == 1
    assert second["scores"]["helpfulness"] == 6


def test_the_unscored_take_no_part_and_weightless_dimensions_are_not_asked() -> None:
    close = [candidate(0, 5, 5, 5, 5), candidate(1, None, 5, 5, 5), candidate(2, 5, 5, 5, 5)]
    settled, asked = settle(close, {}, weights={"completeness": 0})
    assert {index for _, index, _ in asked} == {0, 2}
    assert {kind for kind, _, _ in asked} == {"helpfulness", "logicality"}
    assert settled[1] == close[1]


def test_a_failed_transport_is_raised_after_all_was_asked() -> None:
    asked = []

    async def again(kind: str, one: Any, sample: int) -> float | None:
        asked.append((kind, one["index"], sample))
        if len(asked) == 1:
            raise RuntimeError("gone")
        return 5.0

    settings = Judge.model_validate({"repeats": {"samples": 2}})
    close = [candidate(0, 5, 5, 5, 5), candidate(1, 5, 5, 5, 6)]
    with pytest.raises(RuntimeError, match="gone"):
        asyncio.run(repeats.settle(close, again, settings))
    assert len(asked) == 12


REPLIES = {
    "statements": {"statements": ["Mira keeps copper."]},
    "support": {"analysis": "a", "verdict": "full"},
    "extract": {"facts": ["Mira keeps copper."]},
}


def sampled(*texts: str) -> rows.Packed:
    row = sampled_row("p", "Mira keeps copper. " * 30, "What does Mira keep?", texts)
    return rows.pack("sampled", row)


def judged_over_http(folder: Path, times: int, **changes: Any) -> tuple[list[Any], list[Any], list[str]]:
    """The row judged `times` times with one ledger: rows, requests and their units.

    At temperature 0 a rating is 5; its k-th repeat gives 5 + k, the second and third after a refusal.
    """

    def script(request: dict[str, Any]) -> endpoint.Answer:
        kind = request["response_format"]["json_schema"]["name"]
        score = 5
        if request["temperature"] > 0:
            units = [headers["x-lr-unit"] for headers in server.headers]
            sample = int(units[-1].rpartition("/")[2])
            if sample in (2, 3) and units.count(units[-1]) == 1:
                return endpoint.chat("no score", refusal="I would rather not")
            score = 5 + sample
        return endpoint.chat(json.dumps(REPLIES.get(kind, {"analysis": "a", "score": score})))

    settings = {"repeats": {"samples": 3, "margin": 1.0}, **changes}

    async def work() -> tuple[list[Any], list[Any], list[str]]:
        nonlocal server
        async with endpoint.serving(script) as server:
            judge = {"model": "m", "base_url": server.url, "concurrency": 4, **settings}
            config = Config.model_validate({"run_dir": str(folder), "judge": judge})
            found = []
            for _ in range(times):
                actor = JudgeActor(config, Store(str(folder)))
                found.append(rows.unpack(await actor(sampled("Mira keeps copper.", "Copper."))))
                await actor.close()
            return found, server.requests, [headers["x-lr-unit"] for headers in server.headers]

    server: Any = None
    return endpoint.run(work)


def test_over_http_repeats_are_new_samples_with_records_of_their_own(tmp_path: Path) -> None:
    (first, again), requests, units = judged_over_http(tmp_path, 2)
    ratings = [r for r in requests if r["response_format"]["json_schema"]["name"] in repeats.RATED]
    once = [r for r in ratings if r["temperature"] == 0]
    assert len(once) == 6
    # Three more of each, two of them once more after a refusal; the second run pays for none again.
    warm = [r for r in ratings if r["temperature"] == calls.NEW_SAMPLE_TEMPERATURE]
    assert len(warm) == 6 * 5
    assert again["usage"]["reused"] == again["usage"]["calls"] == first["usage"]["calls"]
    assert again["candidates"] == first["candidates"]
    assert {unit.rpartition("/")[2] for unit in units if "/helpfulness/" in unit} == {"0", "1", "2", "3"}
    for one in first["candidates"]:
        assert one["scores"]["faithfulness"] == 10
        assert [repeat["dimension"] for repeat in one["repeats"]] == list(repeats.RATED)
        for repeat in one["repeats"]:
            assert repeat["missing"] + len(repeat["scores"]) == 4
            assert one["scores"][repeat["dimension"]] == pytest.approx(
                sum(repeat["scores"]) / len(repeat["scores"])
            )


def test_repeated_rows_fit_their_schema_and_old_ones_are_still_read(tmp_path: Path) -> None:
    import pyarrow as pa

    from lr_ray.report import words
    from lr_ray.report.facts import gather

    ((row,), _, _) = judged_over_http(tmp_path, 1)
    store = Store(str(tmp_path))
    store.write_rows("judged", [row], schemas.JUDGED)
    assert next(store.rows("judged")) == row
    found = gather(store)
    assert found.repeated.prompts == 1
    samples = sum(len(one["scores"]) - 1 for c in row["candidates"] for one in c["repeats"])
    sentence = next(text for text in words.verdict(found) if "close" in text)
    assert f"On 1 prompt best and worst were close, and {samples} more ratings" in sentence
    spread = sum(one["variance"] for c in row["candidates"] for one in c["repeats"][:1]) / 2
    assert f"standard deviation of a rating: helpfulness {spread**0.5:.2f}" in sentence
    old = Store(str(tmp_path / "old"))
    for one in row["candidates"]:
        del one["repeats"]
    fields = [f for f in schemas.JUDGED.field("candidates").type.value_type if f.name != "repeats"]
    place = schemas.JUDGED.get_field_index("candidates")
    schema = schemas.JUDGED.set(place, pa.field("candidates", pa.list_(pa.struct(fields))))
    old.write_rows("judged", [row], schema)
    assert "repeats" not in next(old.rows("judged"))["candidates"][0]
    found = gather(old)
    assert found.prompts == 1
    assert found.repeated.prompts == 0


def test_the_plan_names_repeats_as_an_upper_bound(tmp_path: Path) -> None:
    from lr_ray import plan

    prompt = {"prompt_id": "p", "context": "c " * 100, "question": "q", "candidates": ["a", "b"]}
    (tmp_path / "candidates.jsonl").write_text(json.dumps(prompt) + "\n")
    settings = {
        "run_dir": str(tmp_path / "run"),
        "data": {"candidates": [str(tmp_path / "candidates.jsonl")]},
    }
    without = plan.make(Config.model_validate(settings))
    config = Config.model_validate({**settings, "judge": {"repeats": {"samples": 3}}})
    again = plan.make(config)
    assert again.all == without.all
    # Two candidates, three ratings each, three samples more of each.
    assert any("judge.repeats: up to 18 calls more" in note for note in again.notes)
    assert not any("judge.repeats" in note for note in without.notes)
