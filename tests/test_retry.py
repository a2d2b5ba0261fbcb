"""What misses a score is taken up again: new samples for its units alone, the row replaced whole."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from lr_ray import config, pipeline, rows, schemas, simulated
from lr_ray.config import DIMENSIONS
from lr_ray.judge.actor import JudgeActor
from lr_ray.llm.records import FOLDER, SUFFIX, lines, parse
from lr_ray.retry import newest, unscored
from lr_ray.store import Store
from tests.test_llm_faults import stats
from tests.test_pipeline import judged
from tests.test_rollout import inputs, packed_rows, settings


def judge(asked: config.Config, *only: str) -> list[Any]:
    """The rows with the prompt ids `only` (none: all) through one judge actor in this process."""

    async def work() -> list[rows.Packed]:
        actor = JudgeActor(asked, Store(asked.run_dir))
        packed = [row for row in packed_rows(asked) if not only or row["prompt_id"] in only]
        try:
            return await asyncio.gather(*map(actor, packed))
        finally:
            await actor.close()

    return [rows.unpack(row) for row in asyncio.run(work())]


def missing(judged: list[Any]) -> dict[tuple[str, int, str], str]:
    return {
        (row["prompt_id"], one["index"], gap["dimension"]): gap["reason"]
        for row in judged
        for one in row["candidates"]
        for gap in one["unscored"]
    }


def scores(judged: list[Any]) -> dict[tuple[str, int, str], float]:
    return {
        (row["prompt_id"], one["index"], name): one["scores"][name]
        for row in judged
        for one in row["candidates"]
        for name in DIMENSIONS
        if one["scores"][name] is not None
    }


def recorded(store: Store) -> dict[str, int]:
    """How many answers the ledger holds, by unit."""
    found: dict[str, int] = {}
    for segment in store.files(FOLDER, SUFFIX):
        for record in map(parse, lines(store, segment)):
            assert record is not None
            found[record["unit"]] = found.get(record["unit"], 0) + 1
    return found


def test_new_samples_are_paid_for_unscored_units_alone_and_kept(tmp_path: Path) -> None:
    given = inputs(tmp_path, 6)
    with simulated.running() as url:
        clean = judge(settings(tmp_path / "clean", url, given))
    with simulated.running(faults="invalid=0.3,refusal=0.1") as url:
        asked = settings(tmp_path, url, given, attempts=2, max_error_rate=1)
        first = judge(asked)
    store = Store(asked.run_dir)
    paid = recorded(store)
    gaps = missing(first)
    mendable = {key for key, reason in gaps.items() if reason != "no factual statements"}
    assert mendable
    with simulated.running() as url:
        # What is of no use stays so, unpaid, unless new samples are asked for.
        again = settings(tmp_path, url, given, attempts=2, max_error_rate=1)
        assert missing(judge(again)) == gaps
        assert stats(url)["requests"] == 0
        retried = again.model_copy(update={"judge": again.judge.model_copy(update={"retry_unscored": True})})
        second = judge(retried)
        asked_now = stats(url)["requests"]
        # They count as the unit's answers from now on, in any run.
        third = judge(again)
        assert stats(url)["requests"] == asked_now
    assert missing(second).keys() == missing(clean).keys()
    assert third[0]["candidates"] == second[0]["candidates"]
    assert [row["candidates"] for row in third] == [row["candidates"] for row in second]
    now = recorded(store)
    grown = {unit for unit, number in now.items() if number > paid.get(unit, 0)}
    assert sum(now.values()) - sum(paid.values()) == asked_now
    # Only units of answers that missed a score, or that all share, were asked again.
    of_gaps = {f"{prompt}/{candidate}" for prompt, candidate, _ in mendable}
    assert grown
    assert all(unit.rsplit("/", 2)[0] in of_gaps or "/-/" in unit for unit in grown)
    # What had a score keeps it.
    before, after = scores(first), scores(second)
    assert all(after[key] == score for key, score in before.items())
    assert len(after) == len(scores(clean))


def test_a_retry_has_as_many_new_attempts_as_a_first_try(tmp_path: Path) -> None:
    given = inputs(tmp_path, 1, answers=1)
    with simulated.running(faults="empty=1") as url:
        for number, lives in ((3, False), (6, True), (9, True), (9, False)):
            asked = settings(
                tmp_path, url, given, attempts=3, retry_unscored=lives, max_error_rate=1, weights=ONE
            )
            (row,) = judge(asked)
            (reason,) = (v for k, v in missing([row]).items() if k[2] == "helpfulness")
            assert reason == f"the reply was empty ({number} attempts)"
            assert stats(url)["requests"] == number
    with simulated.running(faults="refusal=1") as url:
        for number, lives in ((2, False), (4, True)):
            asked = settings(
                tmp_path / "two", url, given, attempts=3, retry_unscored=lives, max_error_rate=1, weights=ONE
            )
            judge(asked)
            assert stats(url)["requests"] == number


ONE = {"helpfulness": 1, "logicality": 0, "faithfulness": 0, "completeness": 0}


def unscored_row(prompt_id: str, reason: str, at: float = 1.0) -> dict[str, Any]:
    row = judged(prompt_id, [5, None])
    row["candidates"][1]["unscored"] = [{"dimension": "helpfulness", "reason": reason}]
    return row | {"judged_at": at}


def test_only_reasons_that_new_samples_may_mend_are_taken_up(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    reasons = {
        "a": "the reply was cut off at its longest (5 attempts)",
        "b": "no factual statements",
        "c": "not judged: its weight is 0",
        "d": "the endpoint refused the request (HTTP 400, context_length_exceeded)",
        "e": "a statement has no verdict: a content filter stopped the judge (2 attempts)",
        "f": "the endpoint refused the request (HTTP 400, no code)",
    }
    store.write_rows("judged", [unscored_row(*one) for one in reasons.items()], schemas.JUDGED)
    asked = config.Config.model_validate({"run_dir": store.url})
    assert unscored(asked, store) == set()
    wanted = config.Config.model_validate({"run_dir": store.url, "judge": {"retry_unscored": True}})
    assert unscored(wanted, store) == {"a", "e", "f"}
    store.write(b"", "checkpoints", "x")
    with pytest.raises(ValueError, match="trained on pairs of its scores"):
        unscored(wanted, store)


@pytest.mark.parametrize(("at", "crashed"), [(2.0, False), (2.0, True), (0.5, False)])
@pytest.mark.parametrize("seed", range(4))
def test_the_newer_row_stays_whatever_its_file_is_called_and_its_clock_said(
    tmp_path: Path, seed: int, at: float, crashed: bool
) -> None:
    store, rng = Store(str(tmp_path / "run")), random.Random(seed)
    ids = [f"{seed}{n}" for n in range(12)]
    for start in range(0, 12, 4):
        store.write_rows(
            "judged", [unscored_row(one, "old") for one in ids[start : start + 4]], schemas.JUDGED
        )
    redone, before = rng.sample(ids, 5), store.files("judged")
    for part in (redone[:2], redone[2:]):
        store.write_rows("judged", [unscored_row(one, "new", at) for one in part], schemas.JUDGED)
    assert {row["prompt_id"] for row in store.rows("judged")} == set(ids)
    # After a crash in mid-retry both were there before.
    newest(store, store.files("judged") if crashed else before)
    tables = [store.table("judged", name).to_pylist() for name in store.files("judged")]
    found = [row for table in tables for row in table]
    assert sorted(row["prompt_id"] for row in found) == sorted(ids)
    for row in found:
        expected = "new" if row["prompt_id"] in redone else "old"
        assert row["candidates"][1]["unscored"][0]["reason"] == expected


@pytest.mark.slow
def test_retry_failed_replaces_rows_that_miss_scores(
    ray_cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = inputs(tmp_path, 8, answers=5)
    with simulated.running(faults="invalid=0.25") as url:
        asked = settings(tmp_path, url, given, attempts=1, max_error_rate=1)
        assert pipeline.execute(asked, ("judge", "pairs")) == 0
    store = Store(asked.run_dir)
    with simulated.running() as url:
        plain = settings(tmp_path, url, given, attempts=1)
        assert pipeline.execute(plain, pipeline.RETRY) == 0
        assert stats(url)["requests"] == 0
        again = settings(tmp_path, url, given, attempts=1, retry_unscored=True)
        taken = unscored(again, store)
        assert taken
        # The flag is of retry-failed alone.
        assert pipeline.execute(again, ("judge",)) == 0
        assert stats(url)["requests"] == 0
        assert pipeline.execute(again, pipeline.RETRY) == 0
        assert f"{len(taken)} prompts taken up, {len(taken)} judged" in capsys.readouterr().err
    assert unscored(again, store) == set()
    ids = [
        one for name in store.files("judged") for one in store.table("judged", name)["prompt_id"].to_pylist()
    ]
    assert len(ids) == len(set(ids)) == 8
    assert not store.exists("pairs.json")
