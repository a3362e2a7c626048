"""Who may reach whom: what the network policies open is used, and what is used they open."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.k8s_manifests import BUILDS, INGEST, ROOT, SERVICE, Manifest, applied, build, find

NAMESPACE = "kubernetes.io/metadata.name"
RAY = {"head", "cpu-worker", "gpu-worker"}
RAY_METRICS = 8080


def roles(selector: dict[str, Any]) -> set[str] | None:
    """The values of rag-role that a selector names; None: every pod."""
    named = {selector["matchLabels"]["rag-role"]} if "matchLabels" in selector else set()
    for one in selector.get("matchExpressions", []):
        named |= set(one["values"])
    return named or None


def rules(manifests: list[Manifest], direction: str, namespace: str) -> list[tuple[set[str] | None, set[int] | None]]:
    """The roles and ports (None: all of them) that the policies open from, or to, another namespace."""
    peers = {"ingress": "from", "egress": "to"}[direction]
    found = []
    for policy in (one["spec"] for one in manifests if one["kind"] == "NetworkPolicy"):
        for rule in policy.get(direction, []):
            namespaces = [one["namespaceSelector"] for one in rule.get(peers, []) if "namespaceSelector" in one]
            if {"matchLabels": {NAMESPACE: namespace}} in namespaces:
                ports = {one["port"] for one in rule["ports"]} if "ports" in rule else None
                found.append((roles(policy["podSelector"]), ports))
    return found


@pytest.mark.parametrize("name", [name for name in BUILDS if name != INGEST])
def test_milvus_operator_reaches_the_etcd_and_the_object_store_that_it_makes(name: str) -> None:
    # It asks both how they are before it makes Milvus. Their pods' labels are their charts', so only a rule for every
    # pod of the namespace has them.
    manifests = build(name)
    dependencies = find(manifests, "Milvus")["spec"]["dependencies"]
    within = [one for one in ("etcd", "storage") if "inCluster" in dependencies[one]]
    assert within == (["etcd", "storage"] if name == "overlays/dev" else [])
    opened = [ports for whom, ports in rules(manifests, "ingress", "milvus-operator") if whom is None]
    assert opened == ([None] if within else [])


def test_traces_reach_the_collector_that_the_readme_names() -> None:
    text = (ROOT / "infra" / "README.md").read_text(encoding="utf-8")
    kubernetes = text.partition("\n## Kubernetes\n")[2].partition("\n## ")[0]
    ((namespace, port),) = re.findall(r"`RAG_TRACE__ENDPOINT=http://[\w-]+\.([\w-]+):(\d+)`", kubernetes)
    assert (RAY, {int(port)}) in rules(build(SERVICE), "egress", namespace)


def test_prometheus_asks_every_ray_pod_that_lets_it_in() -> None:
    manifests = applied(INGEST)
    opened = [whom for whom, ports in rules(manifests, "ingress", "monitoring") if RAY_METRICS in (ports or set())]
    let_in = {role for whom in opened for role in whom or set()} - {"milvus"}  # its operator makes that one's monitor
    assert let_in > RAY
    assert roles(find(manifests, "PodMonitor")["spec"]["selector"]) == let_in
