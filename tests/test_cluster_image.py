"""What the Dockerfile builds from. No image is built."""

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.manifests import CLUSTER, ROOT, unavailable

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
UNREACHABLE = re.compile("failed to fetch|error sending request|dns error|connection refused", re.IGNORECASE)


def copied(stage: str) -> tuple[str, list[str]]:
    """The commands of a stage, and what it and the stages that it is built on copy from the repository."""
    base, commands = re.findall(rf"^FROM (\S+) AS {stage}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)[0]
    found = [one for line in re.findall(r"^COPY (?!--from)(.+) \S+$", commands, re.M) for one in line.split()]
    below = copied(base)[1] if f" AS {base}\n" in DOCKERFILE else []
    return commands, [*below, *found]


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_the_pinned_packages_install_from_what_is_copied_before(kind: str, tmp_path: Path) -> None:
    commands, sources = copied(f"venv-{kind}")
    (line,) = re.findall(r"^RUN (uv pip install .+)$", commands, re.M)
    assert sources == ["requirements/"]
    for source in sources:
        shutil.copytree(ROOT / source, tmp_path / source)
    uv = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if uv is None:
        unavailable("uv is not there to resolve the image's packages with")
    venv.create(tmp_path / "venv", symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    command = [python if word == "/opt/venv/bin/python" else word for word in line.split()[1:]]
    assert python in command
    ended = subprocess.run(
        [str(uv), *command, "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    if ended.returncode and UNREACHABLE.search(ended.stderr):
        unavailable(f"the package index does not answer, so {kind}.txt was not resolved as the image does")
    assert ended.returncode == 0, ended.stderr
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "requirements" / f"{kind}.txt").read_text(), re.M)
    assert len(pinned) > 100
    assert {f"+ {name}" for name in pinned} <= set(re.findall(r"\+ [\w.-]+", ended.stderr))


def test_the_image_is_pinned_and_not_root() -> None:
    python = re.search(r"ARG PYTHON=(\S+)", DOCKERFILE)
    assert python is not None
    assert re.fullmatch(r"3\.11\.\d+-slim-bookworm", python[1])
    assert "--python-version 3.11" in (ROOT / "Makefile").read_text()
    stages_there = set(re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) - stages_there
    assert bases == {"python:${PYTHON}"}
    for target in ("cpu", "gpu"):
        assert f"--target {target} " in DOCKERFILE
        final = DOCKERFILE.split(f" AS {target}\n")[1].split("\nFROM")[0]
        assert "\nUSER 1000:1000\n" in final
        assert f"--require-hashes -r requirements/{target}.txt" in DOCKERFILE
    assert "UV_COMPILE_BYTECODE=1" in DOCKERFILE
    assert not re.search(r"index|pypi|https?:|latest|--trusted", DOCKERFILE)
    # Which GPUs a pod sees says the device plugin; as the image's own words they would be all of the node's.
    assert "NVIDIA_VISIBLE_DEVICES" not in DOCKERFILE
    assert "nvidia-cuda-nvcc==" in (ROOT / "requirements/gpu.txt").read_text()  # CUDA_HOME's


def test_what_the_image_copies_is_there_and_not_ignored() -> None:
    let = {
        line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source.rstrip("/") in let, source
