"""The Kubernetes manifests, by what schemas are to be had.

Core kinds are checked against the Kubernetes project's schemas, the Prometheus operator's against its models. KubeRay's
schema is in no package, so a RayJob's pods are checked as the Pods that they become, and its own fields by name here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.config_loading import load_config
from deploy.monitoring.prometheus_config import RULES
from deploy.monitoring.prometheus_rules import manifest
from tests import compose

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
KUBERNETES = "1.31"
# Objects of the Prometheus operator, each with the version of its API.
OPERATORS = [
    ("ScrapeConfig", "amortis", "v1alpha1"),
    ("PodMonitor", "amortis-ray", "v1"),
    ("PrometheusRule", "amortis-alerts", "v1"),
    ("PrometheusRule", "amortis-recording", "v1"),
]
# Fields of KubeRay's v1 API that the manifest uses, with their types.
RAY_JOB = {
    "entrypoint": str,
    "submissionMode": str,
    "backoffLimit": int,
    "shutdownAfterJobFinishes": bool,
    "ttlSecondsAfterFinished": int,
    "rayClusterSpec": dict,
}
RAY_CLUSTER = {
    "rayVersion": str,
    "authOptions": dict,
    "enableInTreeAutoscaling": bool,
    "autoscalerOptions": dict,
    "headGroupSpec": dict,
    "workerGroupSpecs": list,
}
WORKER_GROUP = {
    "groupName": str,
    "replicas": int,
    "minReplicas": int,
    "maxReplicas": int,
    "rayStartParams": dict,
    "template": dict,
}


def documents() -> list[tuple[str, dict[str, Any]]]:
    """(file and name, object) of every object in the folder."""
    found = [(path, item) for path in sorted(FOLDER.glob("*.yaml")) for item in yaml.safe_load_all(path.read_text())]
    return [(f"{path.name}:{item['kind']}", item) for path, item in found if item["kind"] != "Kustomization"]


def one(kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [item for _, item in documents() if item["kind"] == kind and name in (None, item["metadata"]["name"])]
    return found


def groups() -> list[dict[str, Any]]:
    """Head and workers of the job's cluster."""
    cluster = one("RayJob")["spec"]["rayClusterSpec"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod that the manifests lead to."""
    for group in groups():
        yield group.get("groupName", "head"), {"apiVersion": "v1", "kind": "Pod", **group["template"]}
    yield "redis", {"apiVersion": "v1", "kind": "Pod", **one("StatefulSet")["spec"]["template"]}


CORE = [
    item for item in documents() if "." not in item[1]["apiVersion"].split("/")[0] or "k8s.io" in item[1]["apiVersion"]
]


@pytest.mark.parametrize(("label", "item"), CORE, ids=[label for label, _ in CORE])
def test_kubernetes_own_schema_accepts_the_object(label: str, item: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validator.validate(item, KUBERNETES, strict=True)


@pytest.mark.parametrize(("label", "pod"), [*pods()], ids=[label for label, _ in pods()])
def test_kubernetes_own_schema_accepts_every_pod(label: str, pod: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    validator.validate(pod, KUBERNETES, strict=True)
    pod["spec"]["containers"][0]["immage"] = "x"
    with pytest.raises(validator.ValidationError, match="immage"):
        validator.validate(pod, KUBERNETES, strict=True)
    del pod["spec"]["containers"][0]["immage"]


@pytest.mark.parametrize(("kind", "name", "module"), OPERATORS)
def test_the_prometheus_operators_models_accept_the_object(kind: str, name: str, module: str) -> None:
    models = pytest.importorskip(
        f"cloudcoil.models.prometheus_operator.{module}", reason="cloudcoil-models-prometheus-operator is not installed"
    )
    item = one(kind, name)
    parsed = getattr(models, kind).model_validate(item)
    # A field that the model doesn't know would be left out.
    assert parsed.model_dump(by_alias=True, exclude_unset=True, mode="json") == item


def test_the_operator_is_given_the_rules_that_prometheus_has() -> None:
    text = (FOLDER / "rules.yaml").read_text(encoding="utf-8")
    assert text == manifest(), "run `make docs`"
    given = [group for item in yaml.safe_load_all(text) for group in item["spec"]["groups"]]
    kept = [
        group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text("utf-8"))["groups"]
    ]
    assert given == kept and len(kept) > 2


def test_the_job_has_the_fields_that_kuberay_knows() -> None:
    job = one("RayJob")
    assert job["apiVersion"] == "ray.io/v1"
    cluster = job["spec"]["rayClusterSpec"]
    for found, known in (
        (job["spec"], RAY_JOB),
        (cluster, RAY_CLUSTER),
        *((one, WORKER_GROUP) for one in groups()[1:]),
    ):
        assert {name: type(value) for name, value in found.items()} == known
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    assert job["spec"]["submissionMode"] == "K8sJobMode" and cluster["authOptions"] == {"mode": "token"}
    assert set(cluster["autoscalerOptions"]) == {"version", "idleTimeoutSeconds"}
    for group in groups():
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_actors_have_a_range_of_pods_and_the_head_no_place_for_them() -> None:
    head, workers = groups()
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    assert workers["minReplicas"] <= workers["replicas"] < workers["maxReplicas"]
    gpus = [
        pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for _, pod in pods() if "redis" not in _
    ]
    assert gpus == ["1", "1"]


def test_rays_version_is_the_installed_one() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned and one("RayJob")["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


def test_the_runs_configuration_loads(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(one("ConfigMap")["data"]["run.yaml"])
    config = load_config(path)
    example = load_config(ROOT / "deploy" / "configs" / "cluster.yaml")
    assert (config.task, config.actor, config.ray, config.metrics) == (
        example.task,
        example.actor,
        example.ray,
        example.metrics,
    )
    mounts = groups()[0]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert str(config.run.folder) in [mount["mountPath"] for mount in mounts]
    assert one("RayJob")["spec"]["entrypoint"].endswith(" /config/run.yaml")


@pytest.mark.parametrize(("label", "pod"), [*pods()], ids=[label for label, _ in pods()])
def test_pods_are_not_root_and_mount_what_they_declare(label: str, pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] and pod["spec"]["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert re.fullmatch(r"[\w.-]+:\d+\.\d+\.\d+-\w+", container["image"])
    claims = one("StatefulSet")["spec"]["volumeClaimTemplates"] if label == "redis" else []
    declared = [volume["name"] for volume in pod["spec"].get("volumes", [])] + [
        claim["metadata"]["name"] for claim in claims
    ]
    assert sorted(declared) == sorted(mount["name"] for mount in container["volumeMounts"])


def test_no_password_is_in_a_manifest_but_the_name_of_its_secret() -> None:
    assert not [label for label, item in documents() if item["kind"] == "Secret"]
    references = [
        entry["valueFrom"]["secretKeyRef"]
        for _, pod in pods()
        for entry in pod["spec"]["containers"][0]["env"]
        if "valueFrom" in entry
    ]
    assert references == [{"name": "amortis-redis", "key": "password"}] * 3


def test_head_and_workers_have_the_environment_of_a_secret_that_need_not_exist() -> None:
    found = [group["template"]["spec"]["containers"][0]["envFrom"] for group in groups()]
    assert found == [[{"secretRef": {"name": "amortis-env", "optional": True}}]] * 2


def test_names_in_urls_are_services_that_select_a_pod_with_that_port() -> None:
    urls = re.findall(r"(?:http://|@)([a-z-]+)(?:\.amortis\.svc)?:(\d+)", "".join(map(str, documents())))
    assert set(urls) == {("learner", "9400"), ("redis", "6379")}
    by_labels = [(pod["metadata"]["labels"], pod["spec"]["containers"][0]["ports"]) for _, pod in pods()]
    for name, port in [*set(urls), ("ray-head", "8265")]:
        service = one("Service", name)["spec"]
        (entry,) = service["ports"]
        (ports,) = [ports for labels, ports in by_labels if service["selector"].items() <= labels.items()]
        assert {"name": entry["targetPort"], "containerPort": entry["port"]} in ports and str(entry["port"]) == port


def test_redis_is_that_of_the_compose_file() -> None:
    there = compose.raw()["services"]["redis"]
    (container,) = one("StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == there["image"]
    plain = there["command"][2].replace("$$", "$").replace('"$REDIS_MAXMEMORY"', "6gb")
    assert container["command"] == ["sh", "-c", plain]


def test_what_is_applied_together_exists() -> None:
    listed = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
    there = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml", "monitoring.yaml", "rules.yaml"}
    assert set(listed) == there
    assert {item["metadata"].get("namespace", "amortis") for _, item in documents()} == {"amortis"}
