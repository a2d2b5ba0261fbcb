"""Forecasts of comparisons and agreements, held against what the judge's actors then use; no Ray."""

import asyncio
import json
import random
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from jobs.demo import task
from lr_ray import (
    agreement,
    benchmark_runs,
    data,
    dry_run,
    evaluation,
    labelled,
    metrics,
    plan,
    rows,
    schemas,
    simulated,
)
from lr_ray.agreement import direct, inputs
from lr_ray.agreement import forecast as agreed
from lr_ray.benchmarks import forecast as benchmarked
from lr_ray.benchmarks.comparing import Comparer as Duels
from lr_ray.compare import forecast as compared
from lr_ray.config import Config
from lr_ray.judge import chunks
from lr_ray.judge.actor import JudgeActor
from lr_ray.llm import usage
from lr_ray.llm.records import FOLDER, SUFFIX, lines, parse
from lr_ray.llm.usage import Used
from lr_ray.rewards.direct import Comparer as Rewarder
from lr_ray.store import Store
from tests import benchmark_files
from tests.sampled_row import sampled_row

KINDS: Any = ("good", "wrong", "incomplete", "off_point")
SMALL = {"extract_chunk_tokens": 256, "retrieval": {"chunk_tokens": 32}, "model": "sim"}


def through(actor_of: Any, config: Config, store: Store, given: Iterable[tuple[rows.Kind, Any]]) -> list[Any]:
    """Rows through one actor in this process, its calls recorded in `store`."""

    async def work() -> list[Any]:
        actor = actor_of(config, store)
        try:
            return await asyncio.gather(*(actor(rows.pack(kind, row)) for kind, row in given))
        finally:
            await actor.close()

    made = [rows.unpack(one) | {"kind": one["kind"]} for one in asyncio.run(work())]
    assert {one["kind"] for one in made} == {actor_of.makes}
    return made


def used(stores: Iterable[Store]) -> dict[str, Used]:
    found: dict[str, Used] = {}
    for store in stores:
        for kind, one in usage.by_kind(store).items():
            found.setdefault(kind, Used()).add(one)
    return found


def paid(stores: Iterable[Store]) -> dict[str, Used]:
    """As `used`, without what was taken from elsewhere, which is recorded without tokens."""
    found: dict[str, Used] = {}
    for store in stores:
        for segment in store.files(FOLDER, SUFFIX):
            for record in filter(None, map(parse, lines(store, segment))):
                reply = record["reply"]
                tokens = Used(1, reply["prompt_tokens"], 0, reply["completion_tokens"])
                if tokens.prompt_tokens:
                    found.setdefault(metrics.kind(record["unit"]), Used()).add(tokens)
    return found


def off(expected: dict[str, Used], got: dict[str, Used]) -> dict[str, dict[str, float]]:
    """Relative errors by kind of call and of all; the kinds must be the same."""
    assert expected.keys() == got.keys()
    sums = {"all": (plan.total(expected), plan.total(got))}
    pairs = {kind: (expected[kind], got[kind]) for kind in got} | sums
    return {
        kind: {name: getattr(one, name) / getattr(other, name) - 1 for name in ("calls", "prompt_tokens")}
        for kind, (one, other) in pairs.items()
    }


def close(errors: dict[str, dict[str, float]]) -> bool:
    return all(abs(error) < 0.1 for error in errors["all"].values())


def answered(seed: str, count: int, answers: int) -> list[Any]:
    """Sampled rows of the demo's task with answers of all its kinds."""
    rng = random.Random(seed)
    return [
        sampled_row(
            prompt["prompt_id"],
            prompt["context"],
            prompt["question"],
            [task.answer_of_kind(rng.choice(KINDS), item, rng) for _ in range(answers)],
        )
        for prompt, item in zip(task.make_prompts(seed, count)[0], task.make_items(seed, count), strict=True)
    ]


def write(path: Path, lines: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def prompts(path: Path, given: list[Any]) -> str:
    return write(path, ({k: row[k] for k in ("prompt_id", "context", "question")} for row in given))


def test_an_agreement_is_forecast(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Both orders, a second judging, answers in several pairs, and pairs without a context."""
    rng = random.Random(0)
    items = task.make_items("labels", 12)
    lines: list[dict[str, Any]] = [
        {
            **{"prompt_id": f"p{n}", "context": item.context, "question": item.question},
            **{"chosen": task.answer_of_kind("good", item, rng)},
            **{"rejected": task.answer_of_kind(kind, item, rng)},
        }
        for n, item in enumerate(items)
        for kind in ("wrong", "incomplete")
    ]
    lines.append(
        {"id": "s", "prompt": "What does Mira do?", "chosen": ["Mira bakes."], "rejected": ["Rain."]}
    )
    with simulated.running() as url:
        config = Config.model_validate(
            {
                "run_dir": str(tmp_path / "run"),
                "judge": {**SMALL, "base_url": url, "prices": {"prompt": 0.5, "completion": 1.5}},
                "agreement": {
                    "pairs": [write(tmp_path / "pairs.jsonl", lines)],
                    "direct": True,
                    "repeats": 1,
                },
            }
        )
        made = agreed.make(config)
        there = Store(config.run_dir).sub(labelled.FOLDER)
        found = inputs.write(there, labelled.scan(config), 0, None, set())
        parts = list(agreement.parts(config, there, found))
        for part in parts:
            template = config.data.prompt_template
            given = [("sampled", data.load(one, template)) for one in part.pointers]
            through(JudgeActor, part.config, part.store, given)  # type: ignore[arg-type]
        asked = [("sampled", data.row_at(one.pointer.prompt)) for one in found]
        through(direct.Comparer, config, direct.folder(there), asked)  # type: ignore[arg-type]
    got = used([*(part.store for part in parts), direct.folder(there)])
    errors = off(made.kinds, got)
    record_property("relative errors", errors)
    assert close(errors), errors
    for kind in ("helpfulness", "logicality", "statements", "extract", "completeness", "direct"):
        assert made.kinds[kind].calls == got[kind].calls, kind
    low, high = made.ends
    total = plan.total(got)
    for name in ("calls", "prompt_tokens", "completion_tokens"):
        assert getattr(low, name) <= getattr(total, name) <= getattr(high, name), name
    text = dry_run.text(config)
    assert "judgings                  2   of each" in text
    assert "at most" in text


def test_a_comparison_is_forecast(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Three trainings: their candidates once, the direct reward's calls, the evaluation of four models."""
    sampled, held_out = answered("candidates", 16, 6), answered("before", 8, 2)
    with simulated.running() as url:
        config = Config.model_validate(
            {
                "run_dir": str(tmp_path / "run"),
                "data": {"prompts": [prompts(tmp_path / "p.jsonl", sampled)]},
                "judge": {**SMALL, "base_url": url},
                "compare": {"rewards": ["longreward", "direct", "length"]},
                "evaluation": {
                    "prompts": [prompts(tmp_path / "h.jsonl", held_out)],
                    "n": 2,
                    "win_rate": "question",
                },
            }
        )
        base = Store(config.run_dir)
        base.write_rows("sampled", sampled, schemas.SAMPLED)
        runs = compared.runs(config)
        made = plan.make(config, runs)
        judged = through(JudgeActor, config, base, (("sampled", row) for row in sampled))
        stores = [base, base.sub("direct")]
        through(Rewarder, runs[1], stores[1], (("judged", row) for row in judged))
        for number, run in enumerate(runs):
            of_run = evaluation.sides(run, base.sub(f"run-{number}"), base)
            _, of_before, before = next(of_run)
            if not number:
                stores.append(before)
                through(JudgeActor, of_before, before, (("sampled", row) for row in held_out))
            _, of_after, after = next(of_run)
            stores.append(after)
            other = changed(held_out, number)
            through(JudgeActor, of_after, after, (("sampled", row) for row in other))
            duels = [("sampled", duel(one, two)) for one, two in zip(held_out, other, strict=True)]
            through(Duels, run, after, duels)  # type: ignore[arg-type]
    errors = off({"all of it": made.all}, {"all of it": plan.total(paid(stores))})
    record_property("relative errors", errors)
    assert close(errors), errors
    got = used(stores[:2])
    errors = off(made.kinds, got)
    assert errors["direct"] == pytest.approx({"calls": 0, "prompt_tokens": 0}, abs=0.05)
    assert close(errors), errors
    of_evaluation = paid(stores[2:])
    errors = off({"evaluation": made.evaluation}, {"evaluation": plan.total(of_evaluation)})
    record_property("relative errors of the evaluation", errors)
    assert close(errors), errors
    # Four models, and each held-out document was looked through once.
    assert of_evaluation["extract"].calls == paid(stores[2:3])["extract"].calls > 8
    text = dry_run.text(config)
    assert "reward       direct                 16" in text
    assert "3 x training: at most 16 pairs, 1 optimizer steps" in text
    # One training, and no direct calls: less.
    alone = plan.make(config)
    assert "direct" not in alone.kinds
    extracts = of_evaluation["extract"].calls
    assert alone.evaluation.calls - extracts == pytest.approx((made.evaluation.calls - extracts) / 2, rel=0.1)


@pytest.mark.parametrize("embedding_model", [None, "embedder"])
def test_what_no_answer_changes_is_forecast_once_for_all_models(
    tmp_path: Path, embedding_model: str | None
) -> None:
    """Of each model its answers' calls alone, at both ends too, with the extracts in its ratings."""
    held_out = answered("held out", 3, 1)
    judge = SMALL | {"retrieval": {"chunk_tokens": 32, "embedding_model": embedding_model}}
    tree: dict[str, Any] = {"run_dir": str(tmp_path / "run"), "judge": judge}
    tree["data"] = {"prompts": [prompts(tmp_path / "p.jsonl", answered("prompts", 2, 1))]}
    tree["evaluation"] = {"prompts": [prompts(tmp_path / "h.jsonl", held_out)], "n": 1}

    def made(*rewards: str, **more: Any) -> plan.Forecast:
        config = Config.model_validate(tree | {"compare": {"rewards": rewards}} | more)
        return plan.make(config, compared.runs(config))

    none = made("longreward", evaluation={})
    one, two, three = made("longreward"), made("longreward", "length"), made("longreward", "length", "random")
    passages = sum(len(chunks.split(row["context"], 256, chunks.measure(None))) for row in held_out)
    of_ends = zip(none.ends or (), one.ends or (), two.ends or (), three.ends or (), strict=True)
    shared: list[tuple[float, float]] = []
    for zero, less, more, most in ((none.all, one.all, two.all, three.all), *of_ends):
        for name in ("calls", "prompt_tokens", "completion_tokens"):
            first, second = (getattr(b, name) - getattr(a, name) for a, b in ((less, more), (more, most)))
            assert first == pytest.approx(second)
        both, a_model = (
            {name: getattr(b, name) - getattr(a, name) for name in ("calls", "prompt_tokens")}
            for a, b in ((zero, less), (less, more))
        )
        shared.append(tuple(both[name] - 2 * a_model[name] for name in both))  # type: ignore[arg-type]
    assert len(shared) == 3
    assert shared[0][0] == pytest.approx(passages + 3 * bool(embedding_model))
    # Documents are as long at both ends.
    assert shared[1] == pytest.approx(shared[0])
    assert shared[2] == pytest.approx(shared[0])
    # Four calls an answer, a verdict a statement, and where passages are embedded one for the statements.
    a_model = two.all.calls - one.all.calls
    assert a_model == pytest.approx(3 * (4 + 10 + bool(embedding_model)))


def changed(given: list[Any], number: int) -> list[Any]:
    """The same prompts with other answers of the same kinds, as another model would give in its own words."""
    rng, items = random.Random(number), task.make_items("before", len(given))
    return [
        sampled_row(
            row["prompt_id"],
            row["context"],
            row["question"],
            [
                task.answer_of_kind(rng.choice(KINDS), item, rng).replace(".", f" {number}.")
                for _ in row["candidates"]
            ],
        )
        for row, item in zip(given, items, strict=True)
    ]


def duel(before: Any, after: Any) -> dict[str, Any]:
    case = asdict(benchmark_runs._held_out(after["prompt_id"]).light()) | {"question": after["question"]}
    return {**after, "case": case, "others": before["candidates"], "sees": "question"}


def test_seeds_share_the_direct_rewards_calls_and_settings_do_not(tmp_path: Path) -> None:
    sampled = answered("seeds", 4, 5)
    tree: dict[str, Any] = {
        "run_dir": str(tmp_path / "run"),
        "data": {"prompts": [prompts(tmp_path / "p.jsonl", sampled)]},
        "judge": {**SMALL},
    }
    Store(tree["run_dir"]).write_rows("sampled", sampled, schemas.SAMPLED)

    def asked(**given: Any) -> Used:
        config = Config.model_validate(tree | {"compare": given})
        return plan.make(config, compared.runs(config)).kinds.get("direct", Used())

    def calls(**given: Any) -> float:
        return asked(**given).calls

    assert calls(rewards=["direct"], seeds=[0, 1]) == 4
    blind = {"pairs.reward": "direct", "rewards.direct.context": False}
    assert calls(rewards=["direct"], runs={"blind": blind}) == 8
    document = sum(len(row["context"]) for row in sampled) / 4
    seeing, unseeing = asked(rewards=["direct"]), asked(runs={"blind": blind})
    assert seeing.prompt_tokens - unseeing.prompt_tokens > 0.9 * document
    unasked = {"pairs.reward": "direct", "training.data": [prompts(tmp_path / "x.jsonl", sampled)]}
    assert calls(runs={"short": unasked}) == 0
    reward = Config.model_validate(tree | {"pairs": {"reward": "direct"}})
    assert plan.make(reward).kinds["direct"].calls == 4


def test_each_training_is_compared_with_the_model_before(tmp_path: Path) -> None:
    sampled = [
        sampled_row(f"p{n}", f"Document {n}.", "Q?", [f"Answer {i} of {n}." for i in range(3)])
        for n in range(4)
    ]
    path = prompts(tmp_path / "p.jsonl", sampled)
    Store(str(tmp_path / "run")).write_rows("sampled", sampled, schemas.SAMPLED)

    def calls(**evaluation: Any) -> float:
        tree = {"run_dir": str(tmp_path / "run"), "data": {"prompts": [path]}, "judge": {**SMALL}}
        tree |= {"compare": {"rewards": ["longreward", "length"], "seeds": [0, 1]}}
        config = Config.model_validate(tree | {"evaluation": {"prompts": [path], "n": 3, **evaluation}})
        return plan.make(config, compared.runs(config)).evaluation.calls

    # Four trainings, four prompts, three answers, both orders.
    assert calls(win_rate="question") - calls() == pytest.approx(4 * 4 * 3 * 2)


def test_benchmarks_of_several_trainings(tmp_path: Path) -> None:
    path = str(benchmark_files.alpaca(tmp_path / "alpaca.json"))
    benchmarks = [{"kind": "alpaca_eval", "path": path, "win_rate": "question"}, {"kind": "ruler"}]
    config = Config.model_validate({"run_dir": "x", "evaluation": {"benchmarks": benchmarks}})
    # Two cases: each model against the file's answers, each training against the model before, both orders.
    assert benchmarked.calls(config, 100)["direct"].calls == 2 * 2 * 2 + 2 * 2
    assert benchmarked.calls(config, 100, 3)["direct"].calls == 2 * 4 * 2 + 2 * 3 * 2
