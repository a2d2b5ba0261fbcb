"""What the manifests' pods may do, who may reach them, and the judge that they serve."""

import json
import re
from pathlib import Path

import pytest
import yaml

from lr_ray import serving
from tests import manifests, tiny_model
from tests.manifests import (
    BUILDS,
    CLUSTER,
    RAY_BUILDS,
    Builds,
    every_pod,
    mounted,
    of,
    pods,
    quantity,
    ray_pods,
    ray_spec,
    run_config,
)

DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
LEFT_FOR_OTHERS = 2**30  # bytes of /dev/shm beside the object store; a GPU's workers need as much each
NAMED_SECRET = re.compile("key|token|secret|password", re.IGNORECASE)


@pytest.fixture(scope="module", name="built")
def _built() -> Builds:
    return manifests.built()


def test_serve_finds_our_builder_and_its_config(built: Builds, tmp_path: Path) -> None:
    from ray._common.utils import import_attr
    from ray.serve.schema import ServeDeploySchema

    (service,) = of(built["judge"], "RayService")
    deployed = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = deployed.applications
    assert import_attr(application.import_path) is serving.build
    (made,) = of(built["judge"], "ConfigMap")
    assert application.args == {"config": f"/config/{next(iter(made['data']))}"}
    worker = list(ray_pods(built["judge"]))[-1].spec["containers"][0]
    assert {"name": "serve", "containerPort": deployed.http_options.port} in worker["ports"]
    judge = run_config(built["judge"], tmp_path)
    asked = run_config(built["overlays/many"], tmp_path).judge
    assert asked.base_url == f"http://{service['metadata']['name']}-serve-svc:{deployed.http_options.port}/v1"
    assert asked.model == serving.name(judge)
    gpus = judge.serving.replicas * judge.serving.num_gpus * judge.serving.engine["tensor_parallel_size"]
    assert quantity(worker["resources"]["limits"]["nvidia.com/gpu"]) == gpus


def test_the_builder_refuses_what_it_must_not_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text("run_dir: x\nserving: {model: some/model}\n")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY: a judge that other pods reach needs a key"):
        serving.build({"config": str(path)})
    for args in ({}, {"config": str(path), "model": "x"}):
        with pytest.raises(ValueError, match="expected config alone"):
            serving.build(args)
    path.write_text("run_dir: x\n")
    with pytest.raises(ValueError, match=r"serving.model is not set"):
        serving.build({"config": str(path)})


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_serve_builds_the_application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

    model = tiny_model.save(tmp_path / "model")
    path = tmp_path / "judge.yaml"
    path.write_text(json.dumps({"run_dir": "x", "serving": {"model": model}}))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-cluster-test")
    application = call_user_app_builder_with_args_if_necessary(serving.build, {"config": str(path)})
    assert type(application).__name__ == "Application"


def test_no_pod_asks_for_more_than_the_restricted_standard_gives(built: Builds) -> None:
    (namespace,) = of(built["setup"], "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for where, pod in every_pod(built):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.spec.keys(), where
        assert pod.spec["securityContext"]["runAsNonRoot"] is True, where
        assert pod.spec["securityContext"]["runAsUser"] > 0, where
        assert pod.spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, where
        for volume in pod.spec.get("volumes", []):
            assert volume.keys() - {"name"} <= {"emptyDir", "configMap", "persistentVolumeClaim"}, where
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, where


def test_only_an_autoscaling_head_may_speak_to_kubernetes(built: Builds) -> None:
    speaking = [
        where for where, pod in every_pod(built) if pod.spec.get("automountServiceAccountToken", True)
    ]
    assert speaking == ["overlays/many: head"]


def test_keys_come_from_the_secret_alone(built: Builds) -> None:
    for where, pod in every_pod(built):
        for container in pod.containers:
            for variable in container.get("env", []):
                assert not (NAMED_SECRET.search(variable["name"]) and "value" in variable), where
    for folder in RAY_BUILDS:
        for pod in ray_pods(built[folder]):
            (source,) = pod.spec["containers"][0]["envFrom"]
            assert source["secretRef"]["name"] == "lr-ray-keys"
            # Without its key a real run must not start.
            assert source["secretRef"].get("optional", False) == folder.endswith("cpu")


def test_what_ray_writes_has_a_place(built: Builds) -> None:
    home = re.search(r"HOME=(\S+)", DOCKERFILE)
    assert home is not None
    for where, pod in every_pod(built):
        for container in pod.containers if pod.start is not None or pod.name == "submitter" else []:
            for path in ("/tmp", home[1]):  # noqa: S108
                assert "emptyDir" in mounted(pod, container, path), where


def test_shared_memory_holds_the_object_store_and_leaves_room(built: Builds) -> None:
    for folder in RAY_BUILDS:
        for pod in ray_pods(built[folder]):
            container = pod.spec["containers"][0]
            resources, assert_id = container["resources"], f"{folder}: {pod.name}"
            shared = mounted(pod, container, "/dev/shm")["emptyDir"]  # noqa: S108
            assert shared["medium"] == "Memory", assert_id
            assert pod.start is not None
            gpus = quantity(resources["limits"].get("nvidia.com/gpu", 0))
            room = quantity(shared["sizeLimit"]) - int(pod.start["object-store-memory"])
            assert room >= LEFT_FOR_OTHERS * max(gpus, 1), assert_id
            # It counts as the container's memory, which must be there and not only promised.
            assert quantity(shared["sizeLimit"]) <= quantity(resources["limits"]["memory"]) / 2, assert_id
            assert resources["requests"]["memory"] == resources["limits"]["memory"], assert_id


def test_nothing_is_open_to_the_outside(built: Builds) -> None:
    for folder in BUILDS:
        assert not of(built[folder], "Ingress")
        for service in of(built[folder], "Service"):
            assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    for folder in RAY_BUILDS:
        spec = ray_spec(built[folder])
        assert spec["authOptions"] == {"mode": "token"}, folder
        assert spec["headGroupSpec"]["serviceType"] == "ClusterIP", folder
        assert not {"enableIngress", "ingressOptions", "headService"} & spec["headGroupSpec"].keys(), folder
        for _, pod in ((folder, pod) for pod in pods(built[folder])):
            assert not any("hostPort" in port for c in pod.containers for port in c.get("ports", []))


def test_the_network_policy_holds_every_pod_and_names_who_comes_in(built: Builds) -> None:
    policy, autoscaler = of(built["setup"], "NetworkPolicy")
    ours = policy["spec"]["podSelector"]["matchLabels"]
    for where, pod in every_pod(built):
        assert ours.items() <= pod.labels.items(), where
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    everybody = [rule for rule in policy["spec"]["ingress"] if "ports" not in rule]
    assert everybody == [{"from": [{"podSelector": {"matchLabels": ours}}]}]
    for rule in policy["spec"]["ingress"]:
        for peer in rule["from"]:
            named = [s for s in peer.values() if s.get("matchLabels")]
            assert named, "a peer without a label is everybody"
            assert "ipBlock" not in peer
    out = [peer for p in (policy, autoscaler) for rule in p["spec"]["egress"] for peer in rule["to"]]
    wide = [peer["ipBlock"] for peer in out if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0"]
    assert len(wide) == 2
    assert all("169.254.0.0/16" in block["except"] for block in wide)  # the cloud's metadata service
    assert "monitoring" in str(policy["spec"]["ingress"][-1])
    assert policy["spec"]["ingress"][-1]["ports"] == [{"protocol": "TCP", "port": 8080}]


def test_everything_lands_in_one_namespace(built: Builds) -> None:
    for folder in BUILDS:
        for document in built[folder]:
            if document["kind"] != "Namespace":
                assert document["metadata"]["namespace"] == "lr-ray", folder
