"""Every manifest against its published schema, strictly; and that the check notices what is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from tests.k8s_manifests import BUILDS, INGEST, SERVICE, applied, build, changed, find, identity
from tests.k8s_schemas import CUSTOM_GROUPS, core_faults, custom_faults, faults, is_custom


@pytest.mark.parametrize("name", BUILDS)
def test_custom_resources_are_as_their_definitions_say(name: str) -> None:
    manifests = [one for one in build(name) if is_custom(one)]
    assert manifests
    assert [(identity(one), found) for one in manifests if (found := custom_faults(one))] == []


@pytest.mark.parametrize("name", BUILDS)
def test_core_kinds_are_as_kubernetes_says(name: str) -> None:
    manifests = [one for one in build(name) if not is_custom(one)]
    assert manifests
    assert [(one["kind"], one["metadata"]["name"], found) for one in manifests if (found := core_faults(one))] == []


def test_every_kind_that_is_meant_is_there() -> None:
    manifests = applied(INGEST)
    assert {one["apiVersion"].partition("/")[0] for one in manifests if is_custom(one)} == set(CUSTOM_GROUPS)
    assert {one["kind"] for one in manifests} == {
        *("RayService", "RayJob", "Milvus", "NodePool", "EC2NodeClass", "PodMonitor", "PrometheusRule"),
        *("Namespace", "NetworkPolicy", "PodDisruptionBudget", "Ingress", "PersistentVolumeClaim", "PriorityClass"),
        *("StatefulSet", "Service", "ConfigMap"),
    }


def test_milvus_volumes_are_volumes_of_pods() -> None:
    # The operator's definition keeps them without looking.
    parts = find(build(SERVICE), "Milvus")["spec"]["components"].values()
    volumes = [one["volumes"] for one in parts if isinstance(one, dict) and "volumes" in one]
    assert len(volumes) == 5
    for one in volumes:
        spec = {"containers": [{"name": "milvus", "image": "milvus"}], "volumes": one}
        assert core_faults({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "milvus"}, "spec": spec}) == []


HEAD = "spec.rayClusterConfig.headGroupSpec"
GPU = "spec.rayClusterConfig.workerGroupSpecs.1"


@pytest.mark.parametrize(
    ("kind", "path", "value", "said"),
    [
        # A field that there is not.
        ("RayService", "spec.rayClusterConfig.enableAutoscaling", True, "enableAutoscaling"),
        ("RayService", "spec.serveConfig", "applications: []", "serveConfig"),
        ("RayService", f"{HEAD}.rayStartParameters", {}, "rayStartParameters"),
        ("RayService", f"{HEAD}.template.metadata.label", {}, "label"),
        ("RayService", f"{GPU}.template.spec.containers.0.limits", {}, "limits"),
        ("RayService", f"{GPU}.template.spec.gracePeriodSeconds", 60, "gracePeriodSeconds"),
        ("RayService", "metadata.label", {}, "label"),
        ("RayJob", "spec.rayClusterConfig", {}, "rayClusterConfig"),
        ("Milvus", "spec.dependencies.etcd.endpoint", "etcd:2379", "endpoint"),
        ("Milvus", "spec.components.queryNodes", {}, "queryNodes"),
        ("NodePool", "spec.template.spec.kubelet", {}, "kubelet"),
        ("EC2NodeClass", "spec.blockDevices", [], "blockDevices"),
        ("PodMonitor", "spec.endpoints", [], "endpoints"),
        ("PrometheusRule", "spec.groups.1.rules.0.severity", "critical", "severity"),
        ("StatefulSet", "spec.template.spec.containers.0.probe", {}, "probe"),
        ("Ingress", "spec.rules.0.hosts", [], "hosts"),
        ("RayService", "apiVersion", "ray.io/v2", "apiVersion"),
        ("RayService", "kind", "RayServe", "apiVersion"),
        ("Ingress", "apiVersion", "networking.k8s.io/v1beta1", "apiVersion"),
        # A value of another kind, or none of those that there are.
        ("RayService", f"{HEAD}.rayStartParams.num-cpus", 0, "0 is not of type 'string'"),
        ("RayService", f"{GPU}.minReplicas", "1", "'1' is not of type 'integer'"),
        ("RayService", "spec.rayClusterConfig.autoscalerOptions.version", "v3", "'v3'"),
        ("RayService", f"{GPU}.template.spec.containers.0.resources.limits.memory", "32 GiB", "32 GiB"),
        ("RayJob", "spec.backoffLimit", "1", "'1' is not of type 'integer'"),
        ("Milvus", "spec.mode", "distributed", "'distributed'"),
        ("Milvus", "spec.components.queryNode.replicas", "3", "'3' is not of type 'integer'"),
        ("NodePool", "spec.disruption.consolidationPolicy", "WhenUnderutilized", "'WhenUnderutilized'"),
        ("NodePool", "spec.disruption.consolidateAfter", 600, "600"),
        ("EC2NodeClass", "spec.metadataOptions.httpTokens", "yes", "'yes'"),
        ("PodMonitor", "spec.podMetricsEndpoints.0.interval", "15 seconds", "15 seconds"),
        ("PrometheusRule", "spec.groups.1.rules.0.for", "2 minutes", "2 minutes"),
        ("StatefulSet", "spec.replicas", "1", "'1' is not of type"),
        ("Ingress", "spec.rules.0.http.paths.0.backend.service.port.number", "8000", "'8000' is not of type"),
        # One that has to be there.
        ("RayService", f"{HEAD}.template", None, "'template' is a required property"),
        ("NodePool", "spec.template.spec.nodeClassRef.group", None, "'group' is a required property"),
        ("PodMonitor", "spec.selector", None, "'selector' is a required property"),
        ("StatefulSet", "spec.template", None, "'template' is a required property"),
        ("RayJob", "spec", None, "'spec' is a required property"),
    ],
)
def test_what_is_wrong_is_noticed(kind: str, path: str, value: Any, said: str) -> None:
    names = {"Ingress": "rag-api"}
    manifest = find(applied(INGEST), kind, names.get(kind, ""))
    assert faults(manifest) == []
    found = faults(changed(manifest, path, value))
    assert len(found) == 1
    assert said in found[0]
