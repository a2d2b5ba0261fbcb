"""Every knob documented, unknown keys refused, every shipped config loads."""

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from lr_ray import config, redact
from lr_ray.config import reference

ROOT = Path(__file__).parents[1]


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_overrides_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "run_dir: r\nsampling: {n: 4}")
    loaded = config.load(path, ["sampling.n=6", "data.prompts=[a.jsonl]", "training.max_steps=null"])
    assert (loaded.sampling.n, loaded.data.prompts, loaded.training.max_steps) == (6, ["a.jsonl"], None)


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        ("run_dir: r\nsamplng: {}", [], "samplng: unknown key"),
        ("run_dir: r", ["judge.wieghts=1"], "judge.wieghts: unknown key"),
        ("run_dir: r", ["sampling.n=many"], "sampling.n: .*integer.*, not 'many'"),
        ("run_dir: r", ["judge.base_url=5"], "judge.base_url: Input should be a valid string, not 5"),
        ("run_dir: r", ["sampling.n=true"], "sampling.n: takes no true or false"),
        ("run_dir: r", ["compare.seeds=[0, true]"], "compare.seeds: takes no true or false"),
        ("run_dir: r", ["judge.resources={a: true}"], "judge.resources: takes no true or false"),
        ("run_dir: r", ["log.level=off"], "log.level: takes no true or false .*quote"),
        ("run_dir: r", ["training.deepspeed.zero_optimization=3"], "zero_optimization is 3, not a mapping"),
        ("judge: {model: a}\nrun_dir: r\njudge: {}", [], "line 3: the key judge is there twice"),
        ("run_dir: r\njudge:\n  model: a\n  model: b", [], "line 4: the key model is there twice"),
        ("run_dir: r", ["judge={model: a, model: b}"], "override .*: the key model is there twice"),
        ("sampling: {n: 4}", [], "run_dir: Field required"),
        ("run_dir: r", ["sampling.n"], "expected section.key=value"),
        ("run_dir: [", [], "not valid YAML"),
        ("- a", [], "a mapping of sections"),
        ("run_dir: r", ['data.prompt_template="{context}"'], r"\{question\} exactly once"),
        (
            "run_dir: r\njudge: {weights: {helpfulness: 0, logicality: 0, faithfulness: 0, completeness: 0}}",
            [],
            "at least one dimension",
        ),
    ],
)
def test_bad_configs_in_one_sentence(tmp_path: Path, text: str, overrides: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        config.load(write(tmp_path / "c.yaml", text), overrides)
    assert "\n" not in str(caught.value)


def test_a_config_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes("run_dir: Läufe".encode("latin-1"))
    with pytest.raises(ValueError, match=r"c\.yaml: a config is UTF-8 text"):
        config.load(str(tmp_path / "c.yaml"))


def test_flags_and_free_options_take_true(tmp_path: Path) -> None:
    text = (
        "run_dir: r\nagreement: {attacks: yes}\nevaluation: {benchmarks: [{kind: ruler, facts: on}]}\n"
        "sampling: {engine: {enforce_eager: true}}\ntraining: {lora: {use_dora: true}}\n"
        "suppose: {model: {a: true}}"
    )
    loaded = config.load(write(tmp_path / "c.yaml", text))
    assert loaded.agreement.attacks
    assert loaded.evaluation.benchmarks[0].facts
    assert loaded.sampling.engine == {"enforce_eager": True}
    assert loaded.training.lora == {"use_dora": True}


def test_a_mapping_may_be_merged_into_another_and_changed(tmp_path: Path) -> None:
    text = (
        "run_dir: r\nserving: {env: &one {A: '1', B: '2'}}\n"
        "sampling: {env: &two {<<: *one, B: '3'}}\ntraining: {lora: {<<: *two, C: '4'}}"
    )
    loaded = config.load(write(tmp_path / "c.yaml", text))
    assert loaded.sampling.env == {"A": "1", "B": "3"}
    assert loaded.training.lora == {"A": "1", "B": "3", "C": "4"}


def test_one_path_may_stand_without_brackets(tmp_path: Path) -> None:
    keys = [
        *("data.prompts", "data.candidates", "training.data", "training.mix.data", "evaluation.prompts"),
        *("agreement.pairs", "synthesis.documents", "rewards.contrast.candidates"),
    ]
    path = write(tmp_path / "c.yaml", "run_dir: r")
    tree = config.load(path, [f"{key}=/a/{key}.jsonl" for key in keys]).model_dump()
    for key in keys:
        node: Any = tree
        for part in key.split("."):
            node = node[part]
        assert node == [f"/a/{key}.jsonl"]


@pytest.mark.parametrize(
    "override",
    ["sampling.env.HF_TOKEN=12345", "sampling.n=https://me:12345@a.example", "judge.api_key=12345"],
)
def test_no_message_shows_a_secret(tmp_path: Path, override: str) -> None:
    with pytest.raises(ValueError, match=override.partition("=")[0]) as caught:
        config.load(write(tmp_path / "c.yaml", "run_dir: r"), [override])
    assert "12345" not in str(caught.value)


def test_a_file_is_laid_over_its_bases(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared" / "a.yaml", "sampling: {n: 4, top_p: 0.5}\ndata: {prompts: [a.jsonl, b.jsonl]}")
    write(tmp_path / "shared" / "b.yaml", "base: a.yaml\nsampling: {n: 6}\ntraining: {lora: {r: 8}}")
    write(tmp_path / "c.yaml", "judge: {model: m}\nsampling: {max_tokens: 7}")
    path = write(
        tmp_path / "run.yaml",
        "base: [shared/b.yaml, c.yaml]\nrun_dir: r\n"
        "data: {prompts: [c.jsonl]}\ntraining: {lora: {lora_alpha: 3}}",
    )
    loaded = config.load(path, ["sampling.n=9"])
    sampling = loaded.sampling
    assert (sampling.n, sampling.top_p, sampling.max_tokens) == (9, 0.5, 7)
    assert loaded.data.prompts == ["c.jsonl"]
    assert loaded.training.lora == {"r": 8, "lora_alpha": 3}
    assert config.load(path).sampling.n == 6
    assert config.load(write(tmp_path / "again.yaml", config.dump(loaded))) == loaded


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("[none.yaml]", r"none\.yaml: cannot read"),
        ("c.yaml", r"base: c\.yaml is laid over this file itself"),
        ("b.yaml", r"base: c\.yaml is laid over this file itself"),
        ("{a: b}", "base: expected the name of a config file"),
        ("[1]", "base: expected the name of a config file"),
    ],
)
def test_bases_that_cannot_be_are_refused(tmp_path: Path, base: str, says: str) -> None:
    write(tmp_path / "b.yaml", "base: c.yaml")
    with pytest.raises(ValueError, match=says):
        config.load(write(tmp_path / "c.yaml", f"base: {base}\nrun_dir: r"))


def test_missing_config_is_named() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml: cannot read"):
        config.load("nowhere.yaml")


def test_every_field_is_documented() -> None:
    def walk(section: type[config.Section]) -> None:
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name}"
            if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
                walk(field.annotation)

    sections = [s for s in vars(config).values() if isinstance(s, type) and issubclass(s, config.Section)]
    for section in sections:
        if section not in (config.Section, config.Config):
            walk(section)


def test_no_secret_is_dumped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    loaded = config.load(write(tmp_path / "c.yaml", "run_dir: r"))
    assert config.api_key(loaded) == os.environ["OPENAI_API_KEY"]
    assert "sk-very-secret" not in config.dump(loaded)
    assert config.load(write(tmp_path / "again.yaml", config.dump(loaded))) == loaded


def test_no_password_or_header_is_dumped(tmp_path: Path) -> None:
    urls = "[https://me:word@one.example/v1, http://two.example:8000/v1@x]"
    headers = "{extra_headers: {Authorization: Bearer word}, top_p: 0.5}"
    judge = f"judge: {{base_url: {urls}, parameters: {headers}, retrieval: {{embedding_base_url: 'http://a:word@b'}}}}"
    loaded = config.load(write(tmp_path / "c.yaml", f"run_dir: r\n{judge}"))
    dumped = yaml.safe_load(config.dump(loaded))["judge"]
    assert "word" not in config.dump(loaded)
    assert dumped["base_url"] == ["https://one.example/v1", "http://two.example:8000/v1@x"]
    assert dumped["parameters"] == {"extra_headers": {"Authorization": redact.HIDDEN}, "top_p": 0.5}
    assert "word" in str(loaded.judge.base_url)


def shipped() -> list[Path]:
    return [
        p for p in sorted(ROOT.glob("jobs/**/*.yaml")) if "run_dir" in (yaml.safe_load(p.read_text()) or {})
    ]


@pytest.mark.parametrize("path", shipped(), ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_configs_load(path: Path) -> None:
    config.load(str(path))


def test_there_are_shipped_configs() -> None:
    assert shipped()


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ("{stream: true}", "stream cannot be a parameter: replies are read whole"),
        ("{extra_body: {stream: true}}", "stream cannot"),
        ("{stream_options: {include_usage: true}}", "stream_options cannot"),
        ("{n: 3}", r"n cannot be a parameter: .* judge\.repeats"),
        ("{max_tokens: 100}", r"max_tokens cannot be a parameter: set judge\.max_tokens"),
        ("{extra_body: {max_tokens: 100}}", "max_tokens cannot"),
        ("{extra_body: {max_completion_tokens: 100}}", "belongs beside extra_body"),
        ("{max_completion_tokens: many}", "whole number"),
        ("{max_completion_tokens: 0}", "whole number"),
        ("{max_completion_tokens: true}", "whole number"),
        ("{messages: []}", "messages cannot"),
        ("{extra_body: {messages: []}}", "messages cannot"),
        ("{response_format: {type: text}}", r"response_format cannot be .* judge\.structured_output"),
        ("{model: other}", r"model cannot be a parameter: set judge\.model"),
        ("{extra_body: [1]}", "extra_body must be a mapping"),
        ("{extra_headers: text}", "extra_headers must be a mapping"),
        ('{extra_headers: {X-A: "s3cret\\nX-B: b"}}', "X-A must be one line of ASCII text"),
        ("{extra_headers: {X-A: s3crét}}", "X-A must be one line of ASCII text"),
        ("{extra_headers: {X-A: 5}}", "X-A must be .* a number needs quotes"),
        ('{extra_headers: {"X A": s3cret}}', "'X A' is no name of a header"),
        ("{extra_headers: {5: s3cret}}", "5 is no name of a header"),
    ],
)
def test_parameters_that_would_break_judging_are_refused(tmp_path: Path, parameters: str, says: str) -> None:
    text = f"run_dir: r\njudge: {{parameters: {parameters}}}"
    with pytest.raises(ValueError, match=rf"judge\.parameters: .*{says}") as caught:
        config.load(write(tmp_path / "c.yaml", text))
    assert "s3cr" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_parameters_are_taken(tmp_path: Path) -> None:
    text = (
        "{temperature: null, max_completion_tokens: 50, extra_headers: {X-A: b c}, extra_query: {v: 2}, "
        "extra_body: {top_k: 3, chat_template_kwargs: {enable_thinking: false}}}"
    )
    path = write(tmp_path / "c.yaml", f"run_dir: r\njudge: {{parameters: {text}}}")
    assert config.load(path).judge.parameters == yaml.safe_load(text)
    path = write(
        tmp_path / "d.yaml", "run_dir: r\njudge: {parameters: {extra_headers: null, extra_body: null}}"
    )
    assert config.load(path).judge.parameters == {"extra_headers": None, "extra_body": None}
    as_it_is = "{n: 1, stream: false, max_tokens: null}"
    path = write(tmp_path / "e.yaml", f"run_dir: r\njudge: {{parameters: {as_it_is}}}")
    assert config.load(path).judge.parameters == yaml.safe_load(as_it_is)


def test_no_password_in_any_url_is_dumped() -> None:
    runs = {"other": {"rewards.direct": {"base_url": ["http://me:s3cret@one.example/v1"]}}}
    loaded = config.Config.model_validate(
        {
            "run_dir": "r",
            "synthesis": {
                "base_url": ["https://me:s3cret@two.example/v1"],
                "documents": ["s3://key:s3cret@bucket/docs?region=x"],
            },
            "evaluation": {"benchmarks": [{"kind": "ifeval", "path": "s3://key:s3cret@bucket/i.jsonl"}]},
            "compare": {"runs": runs},
        }
    )
    dumped = config.dump(loaded)
    assert "s3cret" not in dumped
    for url in ("http://one.example/v1", "https://two.example/v1", "s3://bucket/docs?region=x"):
        assert url in dumped
    # What is dumped is a copy.
    assert loaded.compare.runs == runs


def test_the_page_of_all_keys_is_that_of_the_code() -> None:
    page = (ROOT / "lr_ray" / "config" / "README.md").read_text()
    assert page == reference.page(), "make format writes it"
    assert "| `evaluation.benchmarks[].kind` | required |" in page
    assert "| `judge.repeats.margin` | `0.5` |" in page
