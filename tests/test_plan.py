"""The forecast, held against what the same run then uses on the demo's data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.demo import task
from lr_ray import config, dry_run, plan, rows, schemas, simulated
from lr_ray.judge import forecast, requests
from lr_ray.llm import usage
from lr_ray.llm.records import FOLDER, SUFFIX, lines
from lr_ray.llm.usage import Used
from lr_ray.store import Store
from tests.test_rollout import inputs, judge_here

DEMO = Path(__file__).parents[1] / "jobs" / "demo"
PRICES = {"prompt": 0.5, "completion": 1.5}


def demo(tmp_path: Path, url: str, given: dict[str, list[str]], **judge: Any) -> config.Config:
    """The demo's judge settings over other inputs."""
    tree = yaml.safe_load((DEMO / "demo.yaml").read_text())
    section = tree["judge"] | {"base_url": url, "prices": PRICES} | judge
    return config.Config.model_validate({"run_dir": str(tmp_path / "run"), "data": given, "judge": section})


def off(forecast: plan.Forecast, used: dict[str, Used], prices: config.Prices) -> dict[str, float]:
    """Relative errors of a forecast over all kinds of calls, and of its money."""
    total = Used()
    for one in used.values():
        total.add(one)
    money = sum(plan.cost(vars(one), prices) or 0.0 for one in used.values())
    errors = {name: value / getattr(total, name) - 1 for name, value in vars(forecast.all).items() if value}
    assert forecast.money is not None
    return errors | {"money": forecast.money / money - 1}


def with_calls_of(store: Store, asked: config.Config, folder: Path, count: int) -> config.Config:
    """A run directory that holds the first `count` answers and no judged row, as after an early Ctrl-C."""
    (name,) = store.files(FOLDER, SUFFIX)
    kept = [line for line, _ in zip(lines(store, name), range(count), strict=False)]
    (folder / FOLDER).mkdir(parents=True)
    (folder / FOLDER / name).write_bytes(b"\n".join(kept) + b"\n")
    return asked.model_copy(update={"run_dir": str(folder)})


def assert_between_ends(forecast: plan.Forecast, used: dict[str, Used], prices: config.Prices) -> None:
    assert forecast.ends is not None
    low, high, spent = *forecast.ends, plan.bounds.total(used)
    for name in ("calls", "prompt_tokens", "completion_tokens"):
        assert getattr(low, name) <= getattr(spent, name) <= getattr(high, name), name
        assert getattr(low, name) <= getattr(forecast.all, name) <= getattr(high, name), name
    least, money, most = (plan.cost(vars(one), prices) or 0.0 for one in (low, spent, high))
    assert least <= money <= most
    assert least <= (forecast.money or 0.0) <= most


def width(forecast: plan.Forecast) -> float:
    """How far apart the ends are, in completion tokens."""
    assert forecast.ends is not None
    return forecast.ends[1].completion_tokens - forecast.ends[0].completion_tokens


def test_while_no_answer_is_there_a_forecast_has_ends_that_hold_what_is_used(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with simulated.running() as url:
        given = inputs(tmp_path, 24, 8)
        asked = demo(tmp_path, url, given)
        judge_here(asked)
        used = usage.by_kind(Store(asked.run_dir))
    prompts = write(tmp_path / "p.jsonl", *map(dict, task.make_prompts("rollout", 24)[0]))
    tree = asked.model_dump()
    tree |= {"run_dir": str(tmp_path / "unsampled"), "data": {"prompts": [prompts]}}
    tree["sampling"] |= {"n": 8, "max_tokens": 64}
    unsampled = config.Config.model_validate(tree)
    found = plan.make(unsampled)
    record_property("relative errors before sampling", off(found, used, asked.judge.prices))
    assert_between_ends(found, used, asked.judge.prices)
    text = plan.render(found, unsampled)
    assert "at least" in text
    assert "at most" in text


def test_cached_tokens_are_forecast_where_they_have_a_price(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    prices = {**PRICES, "cached_prompt": 0.1}
    with simulated.running(cache_block=512) as url:
        asked = demo(tmp_path, url, inputs(tmp_path, 24, 8), prices=prices)
        before = plan.make(asked)
        judge_here(asked)
        used = usage.by_kind(Store(asked.run_dir))
    errors = off(before, used, asked.judge.prices)
    record_property("relative errors with a price of cached tokens", errors)
    assert abs(errors["cached_tokens"]) < 0.1
    assert_between_ends(before, used, asked.judge.prices)
    free = demo(tmp_path, url, {"candidates": asked.data.candidates}, prices=PRICES)
    assert plan.make(free.model_copy(update={"run_dir": str(tmp_path / "none")})).all.cached_tokens == 0


def test_a_judge_is_supposed_to_write_as_much_as_its_examples() -> None:
    row: Any = {"prompt_id": "a", "context": "Mira bakes. " * 50, "question": "Q?", "reference_answer": None}
    row |= {"prompt": [], "candidates": [{"index": 0, "text": "Mira bakes.", "finish_reason": "stop"}]}
    row |= {"sampled_at": 0.0}
    used = forecast.of_row(row, config.Judge())
    system, _ = requests.template("logicality", "en")
    examples = [line for line in system.splitlines() if line.startswith('{"') and "…" not in line]
    assert len(examples) == 3
    assert used["logicality"].completion_tokens == pytest.approx(sum(map(len, examples)) / 3 / 4, abs=1)
    several = forecast.of_row(
        {**row, "candidates": [{**row["candidates"][0], "text": "Mira bakes. Toben sings. Sela knits."}]},
        config.Judge(statements_per_call=3),
    )
    assert several["support"].calls == 1
    assert 2 * 38 < several["support"].completion_tokens < 4 * 38


@pytest.mark.parametrize("statements_per_call", [1, 3])
def test_a_forecast_is_close_to_what_the_run_then_uses(
    tmp_path: Path, statements_per_call: int, record_property: Callable[[str, object], None]
) -> None:
    """Before the judge is heard calls and prompt tokens, and money between its ends; then money too."""
    with simulated.running() as url:
        asked = demo(tmp_path, url, inputs(tmp_path, 24, 8), statements_per_call=statements_per_call)
        before = plan.make(asked)
        judged = judge_here(asked)
        store = Store(asked.run_dir)
        used = usage.by_kind(store)
        heard = plan.make(with_calls_of(store, asked, tmp_path / "heard", 300))
        store.write_rows("judged", [rows.unpack(row) for row in judged[:4]], schemas.JUDGED)
        after = plan.make(asked)
    first, second = off(before, used, asked.judge.prices), off(heard, used, asked.judge.prices)
    record_property("relative errors after 300 answers, no prompt judged", second)
    assert abs(second["money"]) < 0.1, second
    assert abs(second["completion_tokens"]) < 0.15, second
    assert_between_ends(before, used, asked.judge.prices)
    assert_between_ends(heard, used, asked.judge.prices)
    assert width(heard) < 0.6 * width(before)
    assert after.ends is None
    first = off(before, used, asked.judge.prices)
    then = off(after, used, asked.judge.prices)
    record_property("relative errors before", first)
    record_property("relative errors after four judged prompts", then)
    assert abs(first["calls"]) < 0.1
    assert abs(first["prompt_tokens"]) < 0.1
    for kind in ("helpfulness", "logicality", "statements", "extract", "completeness"):
        assert before.kinds[kind].calls == pytest.approx(used[kind].calls)
    assert all(abs(error) < 0.1 for error in then.values()), then
    assert after.judged == 4
    assert before.done == 0
    assert after.done == 4
    assert after.spent == pytest.approx(usage.money(store, asked.judge.prices))
    text = plan.render(after, asked)
    assert "corrected by what 4 judged prompts used" in text
    assert "faithfulness support" in text


def test_another_runs_judge_is_learned_from(tmp_path: Path) -> None:
    with simulated.running() as url:
        first = demo(tmp_path, url, inputs(tmp_path, 8, 8))
        Store(first.run_dir).write_rows(
            "judged", [rows.unpack(row) for row in judge_here(first)], schemas.JUDGED
        )
    (tmp_path / "two").mkdir()
    second = demo(tmp_path / "two", "http://127.0.0.1:9", inputs(tmp_path / "two", 16, 8))
    assert plan.make(second).judged == 0
    borrowed = second.model_copy(update={"judge": second.judge.model_copy(update={"reuse": [first.run_dir]})})
    found = plan.make(borrowed)
    assert found.judged == 8
    assert found.money is not None
    assert found.money < 0.97 * (plan.make(second).money or 0.0)
    assert found.ends is None
    assert found.spent == 0


def write(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_calls_are_as_the_method_has_them(tmp_path: Path) -> None:
    # 32k tokens of four bytes: 8 chunks, so 8 + 10 * (4 + 10) = 148 calls (method's own count).
    context = "".join(f"{i:07} " for i in range(32_768 * 4 // 8))
    prompts = write(tmp_path / "p.jsonl", {"prompt_id": "a", "context": context, "question": "Q?"})
    asked = config.Config.model_validate({"run_dir": str(tmp_path), "data": {"prompts": [prompts]}})
    found = plan.make(asked)
    assert found.all.calls == pytest.approx(148, abs=1)
    assert found.kinds["support"].prompt_tokens / found.kinds["support"].calls > 5 * 100
    assert found.money is None
    assert "until some are sampled" in plan.render(found, asked)


def test_what_is_sampled_stands_for_what_is_not(tmp_path: Path) -> None:
    prompts, _ = task.make_prompts("plan", 6)
    answers = [{"index": i, "text": "Mira bakes. Toben sings.", "finish_reason": "stop"} for i in range(4)]
    path = write(tmp_path / "p.jsonl", *map(dict, prompts))
    held_out = write(
        tmp_path / "h.jsonl", *({**prompt, "prompt_id": f"h{i}"} for i, prompt in enumerate(prompts))
    )
    tree = {"data": {"prompts": [path]}, "sampling": {"n": 4}, "evaluation": {"prompts": [held_out], "n": 2}}
    asked = config.Config.model_validate({"run_dir": str(tmp_path), **tree})
    row: dict[str, Any] = {**prompts[0], "reference_answer": None, "prompt": [], "candidates": answers}
    row |= {"prompt_tokens": 1, "cached_tokens": 0, "truncated": False, "sampled_at": 0.0}
    Store(str(tmp_path)).write_rows("sampled", [row], schemas.SAMPLED)
    found = plan.make(asked)
    # The four answers are one, with two statements.
    assert found.kinds["support"].calls == 6 * 2
    assert found.kinds["helpfulness"].calls == 6
    # Of six prompts one chunk each, and of both models four calls an answer and two statements.
    assert found.evaluation.calls == 6 * (1 + 2 * (4 + 2))


def test_limits_that_are_known_make_the_hours(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *map(dict, task.make_prompts("plan", 4)[0]))

    def hours(**judge: float) -> tuple[float, plan.Forecast]:
        tree = {"run_dir": str(tmp_path), "data": {"prompts": [path]}, "judge": judge}
        found = plan.make(config.Config.model_validate(tree))
        return found.judge_hours, found

    free, found = hours()
    tokens = found.all.prompt_tokens + found.all.completion_tokens
    assert hours(requests_per_minute=10)[0] == pytest.approx(found.all.calls / 10 / 60)
    assert hours(tokens_per_minute=1000)[0] == pytest.approx(tokens / 1000 / 60)
    assert hours(requests_per_minute=1e9, tokens_per_minute=1e12)[0] == free


def test_a_budget_below_the_forecast_is_said(tmp_path: Path) -> None:
    prompts, _ = task.make_prompts("plan", 2)
    path = write(tmp_path / "p.jsonl", *map(dict, prompts))
    judge = {"prices": PRICES, "budget": 0.01}
    asked = config.Config.model_validate(
        {"run_dir": str(tmp_path), "data": {"prompts": [path]}, "judge": judge}
    )
    assert "the run would stop before its end" in plan.render(plan.make(asked), asked)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mira bakes. Toben sings! Mira bakes.", ["Mira bakes.", "Toben sings!"]),
        ("Shall I go on? Here they are:\n- copper 3.5 kg\n- salt", ["- copper 3.5 kg", "- salt"]),
        ("米拉保管铜器。你知道吗？", ["米拉保管铜器。"]),
        ("...", []),
        ("", []),
    ],
)
def test_sentences_that_may_be_statements(text: str, expected: list[str]) -> None:
    assert forecast.sentences(text) == expected


def test_parameters_are_read_from_headers() -> None:
    assert plan.training.count_parameters(str(DEMO / "policy")) == 445_312
    assert plan.training.count_parameters("no/such/folder") is None


def test_training_memory_says_what_holds_it(tmp_path: Path) -> None:
    """The shape of Llama-3.1-8B, with headers of safetensors files and no weights."""
    shape = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    shape |= {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    square = {f"model.layers.{n}.q_proj.weight": {"shape": [4096, 4096]} for n in range(478)}
    header = json.dumps({"__metadata__": {}, **square}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)

    def said(**training: Any) -> str:
        tree = {"run_dir": "x", "sampling": {"model": str(tmp_path), "max_tokens": 1024}}
        tree["training"] = {"use_gpu": True, "gradient_checkpointing": True, **training}
        return plan.training.forecast(config.Config.model_validate(tree), 100)[1]

    assert "131,072 tokens" in said()
    assert "no GPU holds it" not in said()
    assert "a GPU of 141 GB holds it" in said(lora={"r": 16})
    assert "no GPU holds it" in said(lora={"r": 16}, gradient_checkpointing=False)
    assert "no GPU holds it" in said(gradient_checkpointing=False)
    zero = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    assert "of its host" in said(num_workers=8, deepspeed=zero)
    several = said(num_workers=8, sequence_parallel_size=8, deepspeed=zero)
    assert "a GPU of 24 GB holds it" in several
    offloaded = said(lora={"r": 16}, offload_activations=True)
    assert "of its host" in offloaded
    assert "activations 0.0" not in offloaded  # a layer's insides are on the device while it runs backward


def test_training_steps_count_what_is_mixed_in() -> None:
    training = {"batch_size": 16, "mix": {"data": ["x.jsonl"], "ratio": 0.2}}
    tree = {"run_dir": "x", "sampling": {"model": "no/such"}, "training": training}
    said = plan.training.forecast(config.Config.model_validate(tree), 80)
    assert said[0] == "training: at most 100 pairs, 7 optimizer steps"


LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
LLAMA |= {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
PARAMETERS = 2 * 100 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64


def supposing(tmp_path: Path, **sections: Any) -> config.Config:
    tree = {"run_dir": str(tmp_path / "run"), "data": {"prompts": [str(tmp_path / "p.jsonl")]}, **sections}
    return config.Config.model_validate(tree)


def test_what_is_not_there_is_supposed_only_where_the_config_says_what(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"p\.jsonl: no such file"):
        plan.make(supposing(tmp_path))
    suppose = {"prompts": 50, "context_tokens": [1000, 9000], "held_out": 8}
    evaluation = {"prompts": ["none.jsonl"], "benchmarks": [{"kind": "ifeval", "path": "nowhere"}]}
    asked = supposing(tmp_path, suppose=suppose, evaluation=evaluation, sampling={"n": 2})
    found = plan.make(asked)
    assert (found.prompts, found.counted) == (50, 2)
    assert found.context_tokens == pytest.approx(5000, rel=0.01)
    assert found.kinds["extract"].calls == 25 * (1 + 3)
    assert found.kinds["helpfulness"].calls == 100
    assert found.evaluation.calls == pytest.approx(8 * (2 + 2 * (4 + 10)))
    text = plan.render(found, asked)
    assert "supposed: 50 prompts of 5,000 tokens on average, since data.prompts is not there" in text
    assert "supposed: 8 prompts of 5,000 tokens on average, since evaluation.prompts is not there" in text
    assert "not counted: benchmarks that are not there: ifeval" in text
    assert "a token for every four bytes" in text
    # What is there counts, and a mistake in it is one.
    write(tmp_path / "p.jsonl", *map(dict, task.make_prompts("plan", 3)[0]))
    found = plan.make(asked)
    assert found.prompts == 3
    assert not any("data.prompts" in note for note in found.notes)
    write(tmp_path / "p.jsonl", {"prompt_id": "a"})
    with pytest.raises(ValueError, match="line 1"):
        plan.make(asked)


def test_a_model_is_known_by_its_config_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    here = supposing(tmp_path, sampling={"model": str(tmp_path)}, suppose={"model": {"model_type": "glm"}})
    found = plan.training.model(here)
    assert not isinstance(found, str)
    assert sum(plan.training.math.prod(shape) for _, shape in found.tensors) == PARAMETERS
    said = plan.training.forecast(here, 10)
    assert "no safetensors beside it" in said[1]
    assert "at 512 tokens" in said[2]
    # In words where neither files nor the config know it.
    assert plan.training.model(supposing(tmp_path)) == "the model is no local folder with safetensors"
    (tmp_path / "config.json").write_text("{}")
    assert plan.training.model(here) == "the model's config has no model_type"
    supposed = supposing(tmp_path, sampling={"model": "some/name"}, suppose={"model": LLAMA})
    assert "since some/name is no local folder" in plan.training.forecast(supposed, 10)[1]


def test_fine_tuning_is_planned_without_prompts(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}] * 20
    data = [write(tmp_path / "sft.jsonl", *rows)]
    training = {"method": "sft", "data": data, "batch_size": 8}
    asked = config.Config.model_validate({"run_dir": "x", "training": training})
    assert dry_run.text(asked).startswith("training: 20 sequences, 3 optimizer steps")
    gone = asked.model_copy(update={"training": asked.training.model_copy(update={"data": ["gone.jsonl"]})})
    with pytest.raises(ValueError, match=r"gone\.jsonl: no such file"):
        dry_run.text(gone)
    supposed = gone.model_copy(update={"suppose": config.Suppose(examples=160)})
    assert dry_run.text(supposed).startswith(
        "training: 160 sequences, 20 optimizer steps\nsupposed: 160 rows"
    )
    with pytest.raises(ValueError, match=r"data\.prompts is not set"):
        dry_run.text(config.Config.model_validate({"run_dir": "x"}))
