"""Secrets in the free parts of a config are in no run directory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml

from lr_ray import config, redact

FREE = {
    "max_num_tokens": 5,
    "stop_token_ids": [7],
    "num_key_value_heads": 8,
    "trainable_token_indices": [3],
    "TOKENIZERS_PARALLELISM": "false",
    "key_of": None,
}


def free(section: type[config.Section], prefix: str = "") -> Iterator[str]:
    """Every key of a config under which anything may stand."""
    for name, field in section.model_fields.items():
        inner = [one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type)]
        for one in inner:
            if issubclass(one, config.Section):
                yield from free(one, f"{prefix}{name}.")
        if "dict[str, typing.Any]" in str(field.annotation) or field.annotation == dict[str, str]:
            yield prefix + name


def test_no_secret_under_a_name_that_says_so_is_dumped(tmp_path: Path) -> None:
    keys = sorted(free(config.Config))
    assert {"sampling.env", "serving.env", "judge.parameters", "sampling.engine", "training.deepspeed"} <= {
        *keys
    }
    secrets: Any = {"API_KEY": "s3cret", "hf-token": "s3cret", "dbPassword": "s3cret"}
    nested = {
        "extra_body": {"sources": [{"apiKey": "s3cret"}], "credentials": {"user": "s3cret", "pin": 98765}}
    }
    path = tmp_path / "c.yaml"
    path.write_text("run_dir: r")
    for key in keys:
        of_text = key.endswith("env")
        given: Any = {**secrets, "LEVEL": "5"} if of_text else {**secrets, **nested, **FREE}
        given = {"one": given} if key == "compare.runs" else given
        loaded = config.load(str(path), [f"{key}={json.dumps(given)}"])
        dumped = config.dump(loaded)
        assert "s3cret" not in dumped, key
        assert "98765" not in dumped, key
        node: Any = yaml.safe_load(dumped)
        for part in [*key.split("."), *(["one"] if key == "compare.runs" else [])]:
            node = node[part]
        kept = {"LEVEL": "5"} if of_text else FREE
        assert {name: node[name] for name in kept} == kept, key


def test_names_that_only_sound_like_secrets() -> None:
    plain = {"prompt_cache_key": "a", "eos_token": "</s>", "RAY_AUTH_MODE": "token"}
    assert redact.shown(plain) == plain


def test_what_has_a_key_of_ours_is_no_secret() -> None:
    tree = config.Config(run_dir="r").model_dump(mode="json")
    filled = {name: _filled(value) for name, value in tree.items()}
    assert redact.config(filled) == filled


def _filled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _filled(one) for name, one in value.items()}
    return "some text" if value is None else value


def test_the_names_of_secrets() -> None:
    secrets = (
        "HF_TOKEN AWS_SECRET_ACCESS_KEY apiKey x-api-key key DB_PASSWORD GOOGLE_CREDENTIALS Authorization"
    )
    others = "max_tokens stop_token_ids eos_token_id tokenizer api_key_env keep authors KEYBOARD api-version"
    assert [name for name in secrets.split() if not redact.secret(name)] == []
    assert [name for name in others.split() if redact.secret(name)] == []
