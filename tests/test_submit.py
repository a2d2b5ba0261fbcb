"""What is refused before anything is sent to a cluster, and what is sent. On a real cluster: test_hosts."""

import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lr_ray import submit as submission
from lr_ray.config import Benchmark, Config, Mix, Section
from lr_ray.portable import MODELS, PATHS, check
from lr_ray.store import Store
from lr_ray.submit import submit

ROOT = Path(__file__).parents[1]
NO_PATHS = {
    *("synthesis.model", "judge.model", "judge.retrieval.embedding_model", "rewards.direct.model"),
    *(
        "judge.base_url",
        "judge.retrieval.embedding_base_url",
        "synthesis.base_url",
        "rewards.direct.base_url",
    ),
    *("judge.api_key_env", "data.prompt_template", "serving.host", "compare.against"),
    *("evaluation.benchmarks.name", "evaluation.benchmarks.tasks"),
}
"""Texts that mean the same everywhere."""


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run_dir": "runs/a"}, "run_dir: runs/a is relative"),
        ({"data": {"prompts": ["/d/a.jsonl", "b.jsonl"]}}, "data.prompts: b.jsonl is relative"),
        ({"data": {"candidates": ["~/c.jsonl"]}}, "data.candidates: ~/c.jsonl is relative"),
        ({"synthesis": {"documents": ["books"]}}, "synthesis.documents: books is relative"),
        ({"sampling": {"model": "lr_ray"}}, "sampling.model: lr_ray is relative"),
        ({"sampling": {"model": "./none"}}, "sampling.model: ./none is relative"),
        ({"training": {"model": "~/none"}}, "training.model: ~/none is relative"),
        ({"evaluation": {"baseline": "../none"}}, "evaluation.baseline: ../none is relative"),
        ({"evaluation": {"model": "runs/a/model"}}, "evaluation.model: runs/a/model is relative"),
        ({"rewards": {"srm": {"model": "./srm"}}}, "rewards.srm.model: ./srm is relative"),
        ({"serving": {"model": "lr_ray"}}, "serving.model: lr_ray is relative"),
        ({"judge": {"tokenizer": "./t"}}, "judge.tokenizer: ./t is relative"),
        ({"training": {"mix": {"data": ["m.jsonl"]}}}, "training.mix.data: m.jsonl is relative"),
        ({"judge": {"reuse": ["runs/b"]}}, "judge.reuse: runs/b is relative"),
        ({"rewards": {"contrast": {"candidates": ["c"]}}}, "rewards.contrast.candidates: c is relative"),
        (
            {"evaluation": {"benchmarks": [{"kind": "ifeval", "path": "i.jsonl"}]}},
            "evaluation.benchmarks.path: i.jsonl is relative",
        ),
        (
            {"compare": {"runs": {"v0.1": {"training.mix": {"data": ["/a", "b"]}}}}},
            "compare.runs.v0.1: training.mix.data: b is relative",
        ),
        (
            {"compare": {"runs": {"x": {"training.model": "./m"}}}},
            "compare.runs.x: training.model: ./m is relative",
        ),
    ],
)
def test_paths_of_this_machine_are_refused(
    sections: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = Config.model_validate({"run_dir": "/shared/a", **sections})
    with pytest.raises(ValueError, match=f"^{re.escape(message)} to a folder of this machine; "):
        check(config)


def test_places_that_a_cluster_sees_are_taken() -> None:
    check(
        Config.model_validate(
            {
                "run_dir": "s3://bucket/runs/a",
                "data": {"prompts": ["/shared/*.jsonl", "hf://datasets/a/b/c.jsonl", "gs://anonymous@b/c"]},
                "sampling": {"model": "organisation/name", "env": {"TOKENIZERS_PARALLELISM": "false"}},
                "judge": {"tokenizer": "name", "parameters": {"extra_headers": {"X-Team": "a"}}},
                "training": {"model": "/models/a"},
                "evaluation": {"baseline": "organisation/base-1.5B", "benchmarks": [{"kind": "ruler"}]},
                "compare": {"runs": {"token": {"training.data": ["/shared/b.jsonl"]}}},
            }
        )
    )


def texts(section: type[Section], prefix: str = "") -> set[str]:
    """Keys of a config whose values are texts."""
    found = set()
    for name, field in section.model_fields.items():
        key, kind = f"{prefix}{name}", field.annotation
        inner = {"evaluation.benchmarks": Benchmark, "training.mix": Mix}.get(key, kind)
        if isinstance(inner, type) and issubclass(inner, Section):
            found |= texts(inner, f"{key}.")
        elif kind is str or re.match(r"(?!.*(Literal|dict)).*\bstr\b", str(kind)):
            found.add(key)
    return found


def test_every_text_of_a_config_is_a_path_a_model_or_neither() -> None:
    assert texts(Config) == {*PATHS, *MODELS, *NO_PATHS}


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"run_dir": "s3://AKIA:word@bucket/a"}, "run_dir: s3://bucket/a"),
        ({"judge": {"base_url": ["http://a", "https://me:word@b/v1"]}}, "judge.base_url: https://b/v1"),
        ({"judge": {"parameters": {"extra_headers": {"Authorization": "Bearer word"}}}}, "judge.parameters."),
        ({"judge": {"parameters": {"extra_headers": {"x-api-key": "word"}}}}, "judge.parameters."),
        ({"judge": {"parameters": {"extra_headers": {"Ocp-Apim-Subscription-Key": "word"}}}}, "judge."),
        ({"judge": {"parameters": {"extra_query": {"apikey": "word"}}}}, "judge.parameters.extra_query."),
        ({"judge": {"base_url": "https://word@b/v1"}}, "judge.base_url: https://b/v1"),
        ({"sampling": {"env": {"HF_TOKEN": "word"}}}, "sampling.env.HF_TOKEN"),
        ({"sampling": {"engine": {"hf_token": "word"}}}, "sampling.engine.hf_token"),
        ({"serving": {"env": {"AWS_SECRET_ACCESS_KEY": "word"}}}, "serving.env.AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_keys_are_not_sent(sections: dict[str, Any], key: str) -> None:
    config = Config.model_validate({"run_dir": "/shared/a", **sections})
    with pytest.raises(ValueError, match=f"^{re.escape(key)}.*keys belong in the environment") as caught:
        check(config)
    assert "word" not in str(caught.value)


def test_a_run_directory_is_refused_as_the_store_refuses_it() -> None:
    for look in (Store, lambda run_dir: check(Config(run_dir=run_dir))):
        look("gs://anonymous@bucket/a")  # as Google's public buckets are read
        with pytest.raises(ValueError, match="keys belong in the environment") as caught:
            look("s3://KEY:SECRET@bucket/a")
        assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("address", [None, "auto", "10.0.0.1:6379"])
def test_an_address_is_a_dashboard(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=r"^no cluster to submit to: give --address "):
        submit(Config(run_dir="/shared/a"), "run", address, ask=lambda _: False)


def test_nothing_answers_there() -> None:
    with pytest.raises(ValueError, match=r"^http://127.0.0.1:9: no Ray dashboard answers there$"):
        submit(Config(run_dir="/shared/a"), "run", "http://127.0.0.1:9", ask=lambda _: False)


class Receiver:
    """A cluster that keeps what it is sent."""

    def submit_job(self, **sent: Any) -> str:
        self.sent = sent
        self.config = Path(sent["runtime_env"]["working_dir"], submission.CONFIG).read_text()
        return "job-1"


def test_the_whole_package_is_sent_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray._private.runtime_env.packaging import create_package

    there = Receiver()
    monkeypatch.setattr(submission, "_client", lambda _: there)
    config = Config(run_dir="s3://someone@bucket/a")
    assert submit(config, "judge", "http://h:8265", follow=False, ask=lambda _: False) == 0
    assert there.sent["metadata"] == {"lr_ray_run_dir": "s3://bucket/a", "lr_ray_verb": "judge"}
    assert "run_dir: s3://someone@bucket/a" in there.config
    assert "on s3://bucket/a" in capsys.readouterr().err
    (package,), excludes = (there.sent["runtime_env"][name] for name in ("py_modules", "excludes"))
    # As Ray's client packs it.
    made_at = tmp_path / "sent.zip"
    create_package(package, made_at, include_gitignore=True, include_parent_dir=True, excludes=excludes)
    with zipfile.ZipFile(made_at) as made:
        names = {name for name in made.namelist() if not name.endswith("/")}
        size = sum(one.file_size for one in made.infolist())
    assert {"lr_ray/cli.py", "lr_ray/config/judge.py", "lr_ray/judge/core.py"} <= names
    data = [path for kind in ("md", "jinja", "css") for path in (ROOT / "lr_ray").rglob(f"*.{kind}")]
    assert len(data) > 5
    assert {str(path.relative_to(ROOT)) for path in data} <= names
    assert all(name.startswith("lr_ray/") and "__pycache__" not in name for name in names)
    assert size < 4 * 2**20
