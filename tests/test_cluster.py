"""The manifests agree with the project and with KubeRay's schemas, and hold what their configs ask for.

Overlays are built as users build them, by `kubectl kustomize`; KubeRay's schemas are looked for beside the
repository. Where either is missing, that is said. No Kubernetes is started.
"""

import json
import re
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import pipeline
from lr_ray import __version__, cli, placement, sampling, simulated
from lr_ray import config as configs
from lr_ray.config import Config
from tests import manifests
from tests.manifests import (
    BUILDS,
    CLUSTER,
    PIPELINES,
    RAY_BUILDS,
    ROOT,
    Builds,
    mounted,
    of,
    pods,
    quantity,
    ray_pods,
    ray_spec,
    run_config,
    unavailable,
)

FILES = sorted(p for p in CLUSTER.rglob("*.y*ml") if "dashboards" not in p.parts)
CHECKER = ROOT.parent / "shared" / "check_manifests.py"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
LOOKS_SECRET = re.compile(r"\b(sk-[\w-]{12,}|hf_\w{12,}|AKIA\w{12,}|gh[pousr]_\w{12,}|[0-9a-f]{64})\b")


@pytest.fixture(scope="module", name="built")
def _built() -> Builds:
    return manifests.built()


def test_every_file_is_yaml_and_every_secret_is_only_named() -> None:
    assert len(FILES) > 20
    for path in FILES:
        text = path.read_text()
        assert list(yaml.safe_load_all(text)), path
        assert not LOOKS_SECRET.search(text), path
        assert "kind: Secret" not in text, path


def test_the_registry_stands_in_one_place() -> None:
    (image,) = yaml.safe_load((CLUSTER / "image" / "kustomization.yaml").read_text())["images"]
    assert image["name"] == "lr-ray"
    holding = [p for p in FILES if image["newName"] in p.read_text()]
    assert holding == [CLUSTER / "image" / "kustomization.yaml"]


def test_kuberays_schemas_hold_for_the_files_and_for_what_is_built(tmp_path: Path) -> None:
    if not CHECKER.exists():
        unavailable("../shared/check_manifests.py, with KubeRay's schemas, is not there")
    for folder, text in manifests.texts().items():
        (tmp_path / f"{folder.replace('/', '-')}.yaml").write_text(text)
    for where, least in ((CLUSTER, 3), (tmp_path, len(RAY_BUILDS))):
        command = [sys.executable, str(CHECKER), str(where)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert int(ended.stdout.split()[-4]) >= least


def test_ray_and_image_are_the_projects_own_versions(built: Builds) -> None:
    import ray

    for name in ("cpu", "gpu"):
        assert f"\nray=={ray.__version__} " in (ROOT / "requirements" / f"{name}.txt").read_text()
    for folder in RAY_BUILDS:
        assert ray_spec(built[folder])["rayVersion"] == ray.__version__, folder
        kind = "cpu" if folder.endswith("cpu") else "gpu"
        images = {c["image"] for pod in pods(built[folder]) for c in pod.containers}
        assert len(images) == 1, (folder, images)
        assert re.fullmatch(rf"[\w.-]+/lr-ray:{re.escape(__version__)}-{kind}", images.pop()), folder
        assert f"-t registry.example.com/lr-ray:{__version__}-{kind}" in DOCKERFILE


def test_the_job_runs_a_script_that_is_there_on_a_config_that_loads(built: Builds, tmp_path: Path) -> None:
    for folder in PIPELINES:
        (job,) = of(built[folder], "RayJob")
        # KubeRay puts it into a shell script of the submitter, where an operator would be that script's own.
        assert shlex.join(shlex.split(job["spec"]["entrypoint"])) == job["spec"]["entrypoint"]
        python, script, path, *_ = shlex.split(job["spec"]["entrypoint"])
        assert python == "python"
        assert (ROOT / script).is_file()
        (made,) = of(built[folder], "ConfigMap")
        assert list(made["data"]) == [Path(path).name]
        for pod in ray_pods(built[folder]):
            container = pod.spec["containers"][0]
            volume = mounted(pod, container, str(Path(path).parent))
            assert volume["configMap"]["name"] == made["metadata"]["name"], pod.name
            assert container["workingDir"] in DOCKERFILE.split("WORKDIR ")[-1].split("\n")[0]
        loaded = run_config(built[folder], tmp_path)
        assert loaded.run_dir.startswith("/data/")
        assert all(p.startswith("/data/") for p in [*loaded.data.prompts, *loaded.evaluation.prompts])


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 0), (2, 2), (3, 3)])
def test_rows_that_failed_for_good_are_no_reason_for_another_try(
    code: int, ends: int, built: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **_: Any) -> int:
        asked.append(command)
        return code

    monkeypatch.setattr(cli.cli, "main", run)
    for folder in PIPELINES:
        (job,) = of(built[folder], "RayJob")
        _, script, *arguments = shlex.split(job["spec"]["entrypoint"])
        assert script == "jobs/pipeline.py"
        assert pipeline.main(arguments) == ends
    assert pipeline.main(["c.yaml", "--verb", "judge", "judge.actors=2"]) == code
    assert asked == [*[["run", "/config/run.yaml"]] * len(PIPELINES), ["judge", "c.yaml", "judge.actors=2"]]


def test_a_changed_config_is_another_config_map(built: Builds) -> None:
    names = {of(built[folder], "ConfigMap")[0]["metadata"]["name"] for folder in RAY_BUILDS}
    assert len(names) == len(RAY_BUILDS) - 1  # interactive is the gpu overlay's


def test_all_state_of_a_run_outlives_its_cluster(built: Builds) -> None:
    for folder in RAY_BUILDS:
        for pod in ray_pods(built[folder]):
            claim = mounted(pod, pod.spec["containers"][0], "/data")["persistentVolumeClaim"]["claimName"]
            where = folder if folder.endswith("cpu") else "setup"
            assert [c["metadata"]["name"] for c in of(built[where], "PersistentVolumeClaim")] == [claim]
    # Deleting a real run leaves the volume.
    for folder in set(RAY_BUILDS) - {"overlays/cpu"}:
        assert {d["kind"] for d in built[folder]} <= {"ConfigMap", "RayCluster", "RayJob", "RayService"}
    for folder in PIPELINES:
        spec = of(built[folder], "RayJob")[0]["spec"]
        assert spec["backoffLimit"] >= 1
        assert spec["activeDeadlineSeconds"] > 0
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["ttlSecondsAfterFinished"] > 0


def test_the_try_out_is_the_demo(built: Builds, tmp_path: Path) -> None:
    ours = run_config(built["overlays/cpu"], tmp_path).model_dump()
    demo = configs.load(str(ROOT / "jobs/demo/demo.yaml")).model_dump()
    assert ours["sampling"].pop("model") == f"/opt/lr-ray/{demo['sampling'].pop('model')}"
    ours["judge"].pop("base_url"), demo["judge"].pop("base_url")
    ours["evaluation"].pop("prompts"), demo["evaluation"].pop("prompts")
    for section in ("sampling", "judge", "pairs", "training", "evaluation"):
        assert ours[section] == demo[section]


def test_the_try_outs_prompts_are_made_where_its_config_looks(built: Builds, tmp_path: Path) -> None:
    loaded = run_config(built["overlays/cpu"], tmp_path)
    head = next(ray_pods(built["overlays/cpu"]))
    (made,) = head.spec["initContainers"]
    python, flag, code = made["command"]
    assert (python, flag) == ("python", "-c")
    command = [sys.executable, "-c", code.replace("/data/", f"{tmp_path}/")]
    subprocess.run(command, check=True, cwd=ROOT)
    for path in [*loaded.data.prompts, *loaded.evaluation.prompts]:
        lines = (tmp_path / path.removeprefix("/data/")).read_text().splitlines()
        assert len(lines) >= 80
        assert {"prompt_id", "context", "question"} <= json.loads(lines[0]).keys()


def test_the_try_outs_judge_answers_where_config_and_probes_ask(built: Builds, tmp_path: Path) -> None:
    documents = built["overlays/cpu"]
    (deployment,) = of(documents, "Deployment")
    (service,) = of(documents, "Service")
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (port,) = container["ports"]
    assert container["command"][:2] == ["lr-ray", "simulate-judge"]
    assert container["command"][-1] == str(port["containerPort"]) == str(service["spec"]["ports"][0]["port"])
    url = f"http://{service['metadata']['name']}:{port['containerPort']}/v1"
    assert run_config(documents, tmp_path).judge.base_url == url
    with simulated.running() as base:
        for probe in ("readinessProbe", "livenessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == port["name"]
            with urllib.request.urlopen(base.removesuffix("/v1") + asked["path"], timeout=10) as reply:  # noqa: S310
                assert reply.status == 200


def test_ray_pods_keep_the_probes_that_kuberay_makes(built: Builds) -> None:
    for folder in RAY_BUILDS:
        for pod in ray_pods(built[folder]):
            assert (
                not {"livenessProbe", "readinessProbe", "command", "args"} & pod.spec["containers"][0].keys()
            )


def nodes(documents: list[Any]) -> list[placement.Resources]:
    """The nodes of a cluster at its largest, as Ray's own autoscaler reads the manifest."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _get_custom_resources

    found = []
    for group in ray_spec(documents)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        own = _get_custom_resources({}, group["rayStartParams"], group["groupName"])
        node = {"CPU": quantity(limits["cpu"]), "GPU": quantity(limits.get("nvidia.com/gpu", 0)), **own}
        found += [node] * group["maxReplicas"]
    return found


def stages(loaded: Config) -> list[list[placement.Need]]:
    """What each part of the pipeline asks for, at once."""
    judge, training = loaded.judge, loaded.training
    worker = {"CPU": training.num_cpus, "GPU": float(training.use_gpu), **training.resources}
    judging = placement.Need("judge", judge.actors, {"CPU": judge.num_cpus, **judge.resources})
    return [
        [sampling.need(loaded.sampling), judging],
        [placement.Need("training", training.num_workers, worker)],
    ]


@pytest.mark.parametrize("folder", PIPELINES)
def test_the_largest_cluster_holds_all_that_its_config_asks_for(
    folder: str, built: Builds, tmp_path: Path
) -> None:
    for needs in stages(run_config(built[folder], tmp_path)):
        assert placement.fit(needs, nodes(built[folder])) == [need.count for need in needs]


def test_many_keeps_each_stage_to_its_group(built: Builds, tmp_path: Path) -> None:
    loaded = run_config(built["overlays/many"], tmp_path)
    spec = ray_spec(built["overlays/many"])
    by_name = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert by_name.keys() == {"sampling", "judge", "training"}
    for name, group in by_name.items():
        assert getattr(loaded, name).resources == {f"lr_{name}": 1}
        quoted = group["rayStartParams"]["resources"]
        # Both KubeRay, which trims quotes, and the shell, which `ray start` goes through, must read it.
        assert json.loads(quoted.strip("'\"` ")).keys() == {f"lr_{name}"}
        assert json.loads(shlex.split(f"--resources={quoted}")[0].partition("=")[2]).keys() == {f"lr_{name}"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert loaded.wait_for_nodes >= 600

    def spot(name: str) -> bool:
        return any("gpu" not in t["key"] for t in by_name[name]["template"]["spec"]["tolerations"])

    assert (spot("sampling"), spot("judge"), spot("training")) == (True, True, False)


def test_groups_are_as_large_as_they_may_be(built: Builds) -> None:
    for folder in RAY_BUILDS:
        grows = ray_spec(built[folder]).get("enableInTreeAutoscaling", False)
        for group in ray_spec(built[folder])["workerGroupSpecs"]:
            sizes = [group[key] for key in ("minReplicas", "replicas", "maxReplicas")]
            assert sizes == sorted(sizes)
            assert grows or sizes[0] == sizes[2], folder


def test_the_head_does_no_work(built: Builds) -> None:
    for folder in RAY_BUILDS:
        head = next(ray_pods(built[folder]))
        assert head.start is not None
        # Ray counts what its node has, where it is not told; and a node may have GPUs that are not the pod's.
        assert (head.start["num-cpus"], head.start["num-gpus"]) == ("0", "0")
        assert "nvidia.com/gpu" not in head.spec["containers"][0]["resources"]["limits"]
    judging = next(pod for pod in ray_pods(built["overlays/many"]) if pod.name == "judge")
    assert judging.start is not None
    assert judging.start["num-gpus"] == "0"


def test_the_readme_names_what_is_there() -> None:
    text = (CLUSTER / "README.md").read_text()
    folders = set(re.findall(r"-k (cluster/[\w/-]+)", text))
    assert {f"cluster/{folder}" for folder in BUILDS} <= folders
    assert all((ROOT / folder / "kustomization.yaml").is_file() for folder in folders)
    assert "--from-literal=OPENAI_API_KEY" in text
