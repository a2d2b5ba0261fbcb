"""The manifests as users apply them, built by `kubectl kustomize`, and where to look in them."""

import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from lr_ray import config as configs
from lr_ray.config import Config

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
BUILDS = ("setup", "overlays/cpu", "overlays/gpu", "overlays/many", "interactive", "judge")
PIPELINES = BUILDS[1:4]
RAY_BUILDS = BUILDS[1:]
RAY_SPECS = {"RayCluster": [], "RayJob": ["rayClusterSpec"], "RayService": ["rayClusterConfig"]}
Builds = dict[str, list[Any]]  # a folder of cluster/ → the documents that it builds
UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "m": 1e-3, "": 1}


class Pod(NamedTuple):
    """A pod template: whose, its labels, its spec, and for Ray's what `ray start` is told."""

    name: str
    labels: dict[str, str]
    spec: Any
    start: dict[str, str] | None = None

    @property
    def containers(self) -> list[Any]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def unavailable(what: str) -> None:
    """Skip, and have pytest's summary say so even where it does not list skips."""
    warnings.warn(f"not checked: {what}", stacklevel=2)
    pytest.skip(what)


def kustomized(folder: str) -> str:
    """What `kubectl apply -k` would send."""
    tool = next(
        ([t, *verb] for t, verb in (("kubectl", ["kustomize"]), ("kustomize", ["build"])) if shutil.which(t)),
        None,
    )
    if tool is None:
        unavailable("neither kubectl nor kustomize is there to build overlays with")
    assert tool is not None
    ended = subprocess.run([*tool, str(CLUSTER / folder)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@cache
def texts() -> dict[str, str]:
    """Every build as text, by its folder."""
    return {folder: kustomized(folder) for folder in BUILDS}


@cache
def built() -> Builds:
    """Every build's documents, by its folder. They are read, never changed."""
    return {folder: list(yaml.safe_load_all(text)) for folder, text in texts().items()}


def of(documents: list[Any], kind: str) -> list[Any]:
    return [document for document in documents if document["kind"] == kind]


def ray_spec(documents: list[Any]) -> Any:
    """The one Ray cluster of a build."""
    found = [d for d in documents if d["kind"] in RAY_SPECS]
    assert len(found) == 1
    spec = found[0]["spec"]
    for key in RAY_SPECS[found[0]["kind"]]:
        spec = spec[key]
    return spec


def groups(documents: list[Any]) -> list[Any]:
    spec = ray_spec(documents)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def ray_pods(documents: list[Any]) -> Iterator[Pod]:
    for group in groups(documents):
        template = group["template"]
        name = group.get("groupName", "head")
        yield Pod(name, template["metadata"]["labels"], template["spec"], group["rayStartParams"])


def pods(documents: list[Any]) -> Iterator[Pod]:
    yield from ray_pods(documents)
    templates = [("submitter", d["spec"]["submitterPodTemplate"]) for d in of(documents, "RayJob")]
    templates += [(d["metadata"]["name"], d["spec"]["template"]) for d in of(documents, "Deployment")]
    for name, template in templates:
        yield Pod(name, template["metadata"]["labels"], template["spec"])


def every_pod(built: Builds) -> list[tuple[str, Pod]]:
    return [(f"{folder}: {pod.name}", pod) for folder in RAY_BUILDS for pod in pods(built[folder])]


def quantity(text: str | int) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(text)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


def mounted(pod: Pod, container: Any, path: str) -> Any:
    """The volume that `container` has at `path`."""
    name = next(mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == path)
    return next(volume for volume in pod.spec["volumes"] if volume["name"] == name)


def run_config(documents: list[Any], folder: Path) -> Config:
    """The config in a build's ConfigMap, read as a run reads it."""
    (made,) = of(documents, "ConfigMap")
    ((name, text),) = made["data"].items()
    (folder / name).write_text(text)
    return configs.load(str(folder / name))
