"""Comparisons: which trainings there are, what the table says of them; one whole, on the real stack."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from jobs.demo import compare as demo
from lr_ray import compare, rewards
from lr_ray import config as configs
from lr_ray.compare import table
from lr_ray.compare.entries import against, entries
from lr_ray.config import Config
from lr_ray.schemas import FAILED, JUDGED, SAMPLED
from lr_ray.store import Store
from tests.sampled_row import sampled_row
from tests.test_pipeline import judged

POLICY = str(Path(__file__).parents[1] / "jobs" / "demo" / "policy")


def settings(tmp_path: Path, **sections: Any) -> Config:
    return Config.model_validate({"run_dir": str(tmp_path / "run"), **sections})


def compared(tmp_path: Path, **given: Any) -> Config:
    return settings(tmp_path, compare=given)


def held_out(tmp_path: Path, *ids: str) -> str:
    """A file of held-out prompts."""
    tmp_path.mkdir(parents=True, exist_ok=True)
    rows = ({"prompt_id": one, "context": f"C {one}.", "question": "Q?"} for one in ids)
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "held_out.jsonl")


def test_every_run_is_trained_with_every_seed(tmp_path: Path) -> None:
    runs = {"short": {"training.data": ["s.jsonl"]}, "mixed": {"training.mix": {"data": ["s.jsonl"]}}}
    config = compared(tmp_path, rewards=["longreward", "length"], runs=runs, seeds=[3, 5])
    made = entries(config)
    assert [one.folder for one in made] == [
        f"{name}-seed{seed}" for seed in (3, 5) for name in ("longreward", "length", "short", "mixed")
    ]
    assert [one.config.training.seed for one in made] == [3] * 4 + [5] * 4
    by_name = {one.name: one.config for one in made}
    assert by_name["longreward"].pairs == config.pairs
    assert by_name["length"].pairs.reward == "length"
    assert by_name["short"].training.data == ["s.jsonl"]
    mix = by_name["mixed"].training.mix
    assert mix
    assert mix.ratio == 0.2
    assert {one.config.run_dir for one in made} == {config.run_dir}
    assert against(config) == "longreward"
    assert against(compared(tmp_path, rewards=["longreward", "length"], against="length")) == "length"


def test_no_password_of_an_endpoint_is_dumped(tmp_path: Path) -> None:
    runs = {
        "other": {"pairs.reward": "direct", "rewards.direct.base_url": ["http://me:s3cret@one.example/v1"]}
    }
    direct = {"base_url": "http://me:s3cret@two.example/v1"}
    dumped = configs.dump(settings(tmp_path, compare={"runs": runs}, rewards={"direct": direct}))
    assert "s3cret" not in dumped
    assert "http://one.example/v1" in dumped
    assert "http://two.example/v1" in dumped


def test_the_shipped_comparison_has_the_papers_rows() -> None:
    config = configs.load(str(Path(POLICY).parents[1] / "compare.yaml"))
    made = entries(config)
    assert len(made) == 12 * 3
    by_name = {one.name: one.config.training for one in made}
    assert by_name["short_only"].data
    assert not by_name["longreward"].data
    assert by_name["longreward"].mix is None
    assert by_name["long_and_short"].mix


def test_a_run_changes_nested_settings(tmp_path: Path) -> None:
    srm = {"pairs.reward": "srm", "rewards.srm.model": "m", "training.deepspeed.zero_optimization.stage": 3}
    (made,) = entries(compared(tmp_path, runs={"srm": srm}))
    assert made.config.rewards.srm.model == "m"
    assert made.config.training.deepspeed == {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "name nothing to compare"),
        ({"runs": {"../up": {}}}, "'../up' cannot name a folder"),
        ({"rewards": ["length"], "runs": {"length": {}}}, "length is in compare.rewards too"),
        ({"rewards": ["length", "length"]}, "compare.rewards names length twice"),
        ({"rewards": ["length"], "against": "random"}, "no run is called 'random'"),
        ({"rewards": ["length"], "seeds": []}, "at least one seed"),
        ({"rewards": ["length"], "seeds": [1, 1]}, "none twice"),
        ({"runs": {"a": {"sampling.n": 4}}}, "compare.runs.a: sampling.n cannot differ"),
        ({"runs": {"a": {"training.seed": 4}}}, "training.seed cannot differ"),
        ({"runs": {"a": {"training": {}}}}, "training cannot differ"),
        ({"runs": {"a": {"training.bata": 4}}}, "compare.runs.a: training.bata: unknown key"),
        ({"runs": {"a": {"training.beta": -1}}}, "compare.runs.a: training.beta: Input should be"),
        ({"runs": {"a": {"training.beta.x": 1}}}, "training.beta.x: beta is not a section"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    config = compared(tmp_path, **given)
    with pytest.raises(ValueError, match=says.replace(".", r"\.").replace("(", r"\(")):
        (entries(config), against(config))


def test_held_out_prompts_are_needed_and_every_run_is_checked_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"evaluation\.prompts is not set"):
        compare.checked(compared(tmp_path, rewards=["length"]))
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"prompt_id": "a", "context": "C.", "question": "Q?"}) + "\n")
    sections: dict[str, Any] = {
        "data": {"prompts": [str(prompts)]},
        "evaluation": {"prompts": [str(prompts)]},
        "sampling": {"model": POLICY},
        "judge": {"model": "m", "base_url": "http://127.0.0.1:9/v1"},
    }
    with pytest.raises(ValueError, match=r"rewards\.srm\.model is not set"):
        compare.checked(settings(tmp_path, **sections, compare={"rewards": ["length", "srm"]}))
    none = {"short": {"training.data": [str(tmp_path / "none.jsonl")]}}
    with pytest.raises(ValueError, match=r"none\.jsonl: no such file"):
        compare.checked(settings(tmp_path, **sections, compare={"rewards": ["length"], "runs": none}))


def test_the_table_is_paired_by_prompt() -> None:
    before = {"m": {"a": 1.0, "b": 2.0, "c": 3.0}}
    runs = {
        "first": [{"m": {"a": 2.0, "b": 3.0, "c": 4.0}}],
        "second": [{"m": {"a": 4.0, "b": 5.0}}, {"m": {"a": 6.0, "b": 5.0}}],
        "none": [{"m": {}}],
    }
    first, second, none = table.table(before, runs, "first")
    assert (first["mean"], first["before"]["difference"], first["against"]) == (3.0, 1.0, None)
    assert (first["before"]["low"], first["before"]["high"]) == (1.0, 1.0)
    # Means over seeds are a 5, b 5: 5 in all; over a and b the model before has 1.5.
    assert (second["mean"], second["before"]["difference"]) == (5.0, 3.5)
    assert (second["before"]["low"], second["before"]["high"]) == (3.0, 4.0)
    # The first run has the first seed alone: 2.5 against 4.5.
    assert second["against"]["difference"] == 2.0
    assert second["against"]["prompts"] == 2
    assert second["seeds"] == [3.0, 4.0]
    assert none["mean"] is None
    assert none["before"]["difference"] is None
    assert none["seeds"] == [None]


def test_two_runs_are_compared_on_the_seeds_that_both_have_of_a_prompt() -> None:
    """The second seed is worse in both; a was scored with it in the other run alone, b in the first alone."""
    first = [{"a": 5.0, "b": 5.0, "c": 5.0}, {"b": 1.0, "c": 1.0}]
    other = [{"a": 6.0, "b": 6.0, "c": 6.0}, {"a": 2.0, "c": 2.0}]
    runs = {"first": [{"m": seed} for seed in first], "other": [{"m": seed} for seed in other]}
    row = table.table({"m": {"a": 5.0, "b": 5.0, "c": 5.0}}, runs, "first")[1]
    assert (row["against"]["difference"], row["against"]["prompts"]) == (1.0, 3)
    assert (row["against"]["low"], row["against"]["high"]) == (1.0, 1.0)


def test_the_interval_covers_what_is_true() -> None:
    """About 95 of 100 comparisons of two runs that differ by 0.3 have 0.3 in their interval."""
    covered = 0
    for trial in range(100):
        rng = random.Random(trial)
        old = {str(i): rng.gauss(5, 2) for i in range(60)}
        one = {key: value + rng.gauss(0.5, 1) for key, value in old.items()}
        other = {key: value + rng.gauss(0.8, 1) for key, value in old.items()}
        found = table.table({"m": old}, {"one": [{"m": one}], "other": [{"m": other}]}, "one")
        low, high = (found[1]["against"][edge] for edge in ("low", "high"))
        covered += low <= 0.3 <= high
    assert 88 <= covered <= 99


def test_markdown_keeps_names_in_their_cells() -> None:
    rows = table.table({"m | x": {"a": 1.0, "b": 1.0}}, {"r\n|": [{"m | x": {"a": 2.0, "b": 4.0}}]}, "r")
    text = table.markdown(rows, "SFT", "r")
    assert text.splitlines() == [
        "|  | run | mean | against SFT | against r | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
        "| m / x | r / | 3.00 | +2.00 (+1.00 … +3.00) | – | +2.00 |",
    ]


def answers(store: Store, side: str, values: dict[str, float], text: str) -> None:
    there = store.sub("evaluation", side)
    there.write_rows("judged", [judged(key, [value]) for key, value in values.items()], JUDGED)
    sampled = [{**sampled_row(key, "C.", "Q?", [text])} for key in values]
    there.write_rows("sampled", sampled, SAMPLED)


def test_what_is_written_comes_from_the_run_directories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(
        tmp_path,
        compare={"rewards": ["longreward", "length"]},
        evaluation={"prompts": [held_out(tmp_path, "a", "b")]},
    )
    base = Store(config.run_dir)
    # Of a prompt that the config does not name now, nothing counts.
    answers(base, "before", {"a": 4.0, "b": 6.0, "gone": 9.0}, "four")
    gone = {"a": 8.0, "b": 8.0, "gone": 1.0}
    answers(base.sub("compare", "longreward-seed0"), "after", gone, "eighteen")
    answers(base.sub("compare", "length-seed0"), "after", {"a": 5.0, "b": 5.0}, "x" * 40)
    audit = {"prompts": 9, "pairs": 7, "dropped": {"tie": 2}, "rules": {}}
    base.sub("compare", "length-seed0").write(json.dumps(audit).encode(), "pairs.json")
    base.sub("compare", "length-seed0").write(
        b'{"step": 3, "rows": 7, "rows_left_out": 0}\n', "metrics.jsonl"
    )
    result = compare.written(config, {"vowels": lambda _, text: float(sum(c in "aeiou" for c in text))})
    assert json.loads(base.read("compare.json") or b"") == result
    found = {(row["metric"], row["run"]): row for row in result["table"]}
    assert result["prompts"] == found[compare.LENGTH, "longreward"]["before"]["prompts"] == 2
    assert found["reward", "longreward"]["before"]["difference"] == 3.0
    assert found["reward", "length"]["against"]["difference"] == -3.0
    assert found[compare.LENGTH, "length"]["mean"] == 40.0
    assert found["vowels", "longreward"]["before"]["difference"] == 4.0 - 2.0
    assert result["before"]["reward"]["mean"] == 5.0
    length = result["runs"][1]["seeds"][0]
    assert (length["pairs"], length["rows"], length["steps"]) == (7, 7, 3)
    assert result["runs"][0]["seeds"][0]["pairs"] is None
    # Names of groups come from benchmarks' files.
    hostile = "mt_bench, [/b]\x1b[2J[red]: score"
    compare.show({**result, "table": [{**row, "metric": hostile} for row in result["table"][:2]]})
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[red]" in "".join(shown.split())


def test_the_proof_pools_the_prompts_of_all_seeds(tmp_path: Path) -> None:
    parts = []
    for seed, after in ((0, 6.0), (1, 7.0)):
        ids = [f"{seed}-{number}" for number in range(3)]
        config = settings(
            tmp_path / str(seed),
            compare={"rewards": ["longreward", "length"], "seeds": [seed]},
            evaluation={"prompts": [held_out(tmp_path / str(seed), *ids)]},
        )
        base = Store(config.run_dir)
        answers(base, "before", dict.fromkeys(ids, 5.0), "four")
        for entry in entries(config):
            value = after if entry.name == "length" else 5.0
            answers(entry.store(base), "after", dict.fromkeys(ids, value), "fives")
        parts.append((config, lambda _, text: float(len(text) == 5)))
    rows = demo.pooled(parts, "longreward")
    found = {(row["metric"], row["run"]): row for row in rows}
    of_length = found["reward", "length"]
    assert (of_length["mean"], of_length["count"], of_length["seeds"]) == (6.5, 6, [1.0, 2.0])
    assert of_length["against"]["difference"] == 1.5
    assert found[demo.TRUTH, "length"]["before"]["difference"] == 1.0
    text = demo.report(rows, [compare.written(config) for config, _ in parts], [1.0, 2.0])
    assert "| reward | longreward | 5.00 |" in text
    assert "CPU cores" in text


def test_a_run_that_was_trained_keeps_its_settings(tmp_path: Path) -> None:
    def claim(**training: Any) -> None:
        config = settings(tmp_path, compare={"rewards": ["length"]}, training=training)
        (entry,) = entries(config)
        compare._claim(entry, store)

    store = Store(str(tmp_path / "run")).sub("compare", "length-seed0")
    claim(beta=0.1)
    claim(beta=0.2)  # nothing is trained yet
    store.write(b"{}", "model", "config.json")
    claim(beta=0.2, num_workers=4, micro_batch_size=1)
    says = r"trained with training\.beta=0\.2; the config now says 0\.3: give the run another name"
    with pytest.raises(ValueError, match=says):
        claim(beta=0.3)


def test_the_references_scores_are_lent(tmp_path: Path) -> None:
    one, other = Store(str(tmp_path / "one")), Store(str(tmp_path / "other"))
    one.write(b"scores", "reference", "abc", "x.parquet")
    compare._lend([one, other], other)
    assert other.read("reference", "abc", "x.parquet") == b"scores"


def test_what_failed_in_a_run_is_known(tmp_path: Path) -> None:
    config = compared(tmp_path, rewards=["longreward", "direct"])
    base = Store(config.run_dir)
    assert compare.retry(config) == 0
    first, second = entries(config)
    failure = {"prompt_id": "a", "stage": "judge", "reason": "a bad day"}
    after = first.store(base).sub("evaluation", "after")
    after.write_rows("failed", [failure], FAILED)
    assert not compare._lost(first, base)  # it is not evaluated whole yet
    evaluated = config.model_copy(update={"sampling": config.sampling.model_copy(update={"model": "m"})})
    first.store(base).write(b"{}", "evaluation.json")
    assert compare._lost(entries(evaluated)[0], base)
    after.write_rows("judged", [judged("a", [5.0])], JUDGED)
    assert not compare._lost(entries(evaluated)[0], base)
    rewards.folder(second.config, base).write_rows("failed", [failure], FAILED)
    assert compare._lost(second, base)
    second.store(base).write(b"", "checkpoints", "some")
    assert not compare._lost(second, base)
