"""Every knob documented, unknown keys refused, every shipped config loads."""

import os
from pathlib import Path

import pytest
import yaml

from lr_ray import config, redact

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
        ("run_dir: r", ["sampling.n=many"], "sampling.n: .*integer"),
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
