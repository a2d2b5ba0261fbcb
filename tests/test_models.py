"""Models by URL: copied once a machine, whole or not at all."""

import shutil
import threading
from pathlib import Path

import pytest

from jobs.demo.run import HERE
from lr_ray import evaluation, models
from lr_ray.config import Config
from lr_ray.sampling import check_model
from lr_ray.store import Store
from lr_ray.training import folder, launch
from tests.test_llm_ledger_lookup import bucket, s3  # noqa: F401 - fixtures

POLICY = HERE / "policy"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hub"))
    return tmp_path / "hub" / "lr-ray"


@pytest.fixture
def there(s3: Store) -> Store:  # noqa: F811
    """The demo's policy in a bucket."""
    for file in POLICY.iterdir():
        s3.write(file.read_bytes(), "model", file.name)
    s3.write(b"of no use here", "model", "original", "notes.txt")
    return s3.sub("model")


def test_a_folder_and_a_name_on_the_hub_stay_what_they_are(cache: Path) -> None:
    assert models.local(str(POLICY)) == str(POLICY)
    assert models.local(f"file://{POLICY}") == str(POLICY)
    assert models.local("owner/name") == "owner/name"
    assert not cache.exists()


def test_a_copy_is_the_folder_and_made_once(
    cache: Path, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[str] = []
    copy = models._copy
    monkeypatch.setattr(models, "_copy", lambda *args: (copies.append(args[1]), copy(*args)))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(models.local(there.url))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(copies) == 1
    assert len(set(found)) == 1
    ours = {file.name: file.read_bytes() for file in Path(found[0]).iterdir()}
    assert ours == {file.name: file.read_bytes() for file in POLICY.iterdir()}
    # Another model at the same place is another folder.
    there.write(b"{}", "generation_config.json")
    assert models.local(there.url) != found[0]
    assert len(copies) == 2


def test_half_a_copy_is_never_taken_for_a_model(
    cache: Path, there: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(source: str, *_: object, **__: object) -> None:
        raise OSError(f"connection lost at {source}")

    with monkeypatch.context() as patch:
        patch.setattr("pyarrow.fs.copy_files", cut)
        with pytest.raises(OSError, match="connection lost"):
            models.local(there.url)
    whole = models.local(there.url)
    assert {file.name for file in Path(whole).iterdir()} == {file.name for file in POLICY.iterdir()}


def test_checks_take_no_weights(cache: Path, there: Store) -> None:
    check_model(there.url, "sampling.model")
    launch.check(Config.model_validate({"run_dir": "r", "sampling": {"model": there.url}}))
    (only,) = [one for one in cache.iterdir() if one.is_dir()]
    assert not list(only.glob("*.safetensors"))
    assert (only / "tokenizer.json").exists()
    assert Path(folder.local(there.url), "model.safetensors").exists()


def test_what_is_no_model_is_said_in_one_sentence(cache: Path, s3: Store) -> None:  # noqa: F811
    with pytest.raises(ValueError, match=r"s3://bucket/.+: no config.json there, so not a model folder"):
        check_model(s3.sub("nothing").url, "sampling.model")
    shutil.rmtree(cache, ignore_errors=True)


def test_the_model_after_is_found_in_a_bucket(s3: Store) -> None:  # noqa: F811
    config = Config.model_validate({"run_dir": "r", "sampling": {"model": "m"}})
    assert evaluation._models(config, s3) == ("m", s3.sub("model").url)
    assert evaluation._models(config, Store("/runs/one")) == ("m", "/runs/one/model")
