"""What a manifest names is there; and that the check notices what is not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.k8s_manifests import BUILDS, INGEST, applied, changed, identity, listed_secrets
from tests.k8s_references import dangling, secrets_used


@pytest.mark.parametrize("name", BUILDS)
def test_every_name_leads_somewhere(name: str) -> None:
    assert dangling(applied(name), listed_secrets()) == []


def test_the_listed_secrets_are_those_that_are_used() -> None:
    assert {name for name, _ in secrets_used(applied(INGEST))} == set(listed_secrets())


RAY = ("RayService", "rag")
GPU = "spec.rayClusterConfig.workerGroupSpecs.1"


@pytest.mark.parametrize(
    ("which", "path", "value", "said"),
    [
        (RAY, f"{GPU}.template.spec.containers.0.env.0.valueFrom.secretKeyRef.name", "milvus", "secret milvus token"),
        (RAY, f"{GPU}.template.spec.containers.0.env.0.valueFrom.secretKeyRef.key", "key", "secret rag-milvus key"),
        (RAY, "spec.rayClusterConfig.authOptions.secretName", "ray-token", "secret ray-token"),
        (RAY, f"{GPU}.template.spec.volumes.0.persistentVolumeClaim.claimName", "data", "PersistentVolumeClaim data"),
        (RAY, f"{GPU}.template.spec.containers.0.volumeMounts.0.name", "date", "volume date"),
        (RAY, f"{GPU}.template.spec.containers.0.readinessProbe.httpGet.port", "http", "port http of ray-worker"),
        (RAY, f"{GPU}.template.spec.priorityClassName", "serving", "PriorityClass serving"),
        (RAY, f"{GPU}.template.spec.serviceAccountName", "worker", "ServiceAccount worker"),
        (RAY, "spec.rayClusterConfig.gcsFaultToleranceOptions.redisAddress", "redis:6379", "service at //redis:6379"),
        (
            RAY,
            f"{GPU}.template.spec.topologySpreadConstraints.0.labelSelector.matchLabels.rag-role",
            "gpu",
            "RayService rag: no pod has {'matchLabels': {'rag-role': 'gpu'}}",
        ),
        (RAY, f"{GPU}.template.spec.tolerations", [], "taint nvidia.com/gpu"),
        (
            ("Ingress", "rag-api"),
            "spec.rules.0.http.paths.0.backend.service.name",
            "rag-serve",
            "service rag-serve port 8000",
        ),
        (
            ("Ingress", "rag-dashboard"),
            "spec.rules.0.http.paths.0.backend.service.port.number",
            8266,
            "service rag-head-svc port 8266",
        ),
        (("Ingress", "rag-api"), "spec.tls.0.secretName", "tls", "secret tls"),
        (("StatefulSet", "rag-redis"), "spec.serviceName", "redis", "Service redis"),
        (
            ("Service", "rag-redis"),
            "spec.selector.rag-role",
            "cache",
            "Service rag-redis: no pod has {'matchLabels': {'rag-role': 'cache'}}",
        ),
        (
            ("PodDisruptionBudget", "rag-gpu-worker"),
            "spec.selector.matchLabels.rag-role",
            "gpu",
            "PodDisruptionBudget rag-gpu-worker: no pod has {'matchLabels': {'rag-role': 'gpu'}}",
        ),
        (("NetworkPolicy", "redis"), "spec.ingress.0.ports.0.port", 6380, "NetworkPolicy redis: no port 6380"),
        (
            ("NetworkPolicy", "redis"),
            "spec.ingress.0.from.0.podSelector.matchLabels.rag-role",
            "ray-head",
            "NetworkPolicy redis: no pod has {'matchLabels': {'rag-role': 'ray-head'}}",
        ),
        (("PodMonitor", "rag-ray"), "spec.podMetricsEndpoints.0.port", "metric", "PodMonitor rag-ray: no port metric"),
        (("Milvus", "rag"), "spec.dependencies.storage.secretRef", "s3", "secret s3"),
        (("NodePool", "rag-gpu"), "spec.template.spec.nodeClassRef.name", "gpu", "EC2NodeClass gpu"),
        (("RayJob", "bulk-ingest"), "spec.submitterPodTemplate.spec.priorityClassName", "low", "PriorityClass low"),
    ],
)
def test_a_name_that_leads_nowhere_is_noticed(which: tuple[str, str], path: str, value: Any, said: str) -> None:
    manifests = [changed(one, path, value) if identity(one) == which else one for one in applied(INGEST)]
    assert [one.strip() for one in dangling(manifests, listed_secrets())] == [said]
