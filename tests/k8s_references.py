"""Names in manifests that lead nowhere: secrets, claims, ports, selectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from tests.k8s_manifests import Manifest, environment, find, pod_templates, ray_containers, walk

BASIC_AUTH = "nginx.org/basic-auth-secret"
MILVUS_PORTS = {19530: "milvus", 9091: "metrics"}  # as the operator's pods have them

Pod = tuple[dict[str, str], dict[int, str]]  # labels; port -> its name


def dangling(manifests: list[Manifest], secrets: dict[str, set[str]]) -> list[str]:
    """A line for each reference to something that is not there."""
    return [
        *_names(manifests, secrets),
        *_ingress_backends(manifests),
        *_addresses(manifests),
        *_within_pods(manifests),
        *_selectors(manifests),
        *_of_the_cluster(manifests),
    ]


def secrets_used(manifests: list[Manifest]) -> set[tuple[str, str]]:
    """Secret and key; the key is empty where the whole secret is named."""
    used: set[tuple[str, str]] = set()
    for mapping in walk(manifests):
        if "secretKeyRef" in mapping:
            used.add((mapping["secretKeyRef"]["name"], mapping["secretKeyRef"]["key"]))
        used |= {(mapping[key], "") for key in ("secretName", "secretRef", BASIC_AUTH) if key in mapping}
    return used


def services(manifests: list[Manifest]) -> dict[str, set[int]]:
    """Those declared, and those that the operators make."""
    found = {
        one["metadata"]["name"]: {port["port"] for port in one["spec"]["ports"]}
        for one in manifests
        if one["kind"] == "Service"
    }
    for one in manifests:
        name = one["metadata"]["name"]
        if one["kind"] == "RayService":
            cluster = one["spec"]["rayClusterConfig"]
            found[f"{name}-head-svc"] = set(_ports(cluster["headGroupSpec"]["template"]))
            workers = [_ports(group["template"]) for group in cluster["workerGroupSpecs"]]
            found[f"{name}-serve-svc"] = {port for ports in workers for port, of in ports.items() if of == "serve"}
        elif one["kind"] == "Milvus":
            found[f"{name}-milvus"] = set(MILVUS_PORTS)
    return found


def _names(manifests: list[Manifest], secrets: dict[str, set[str]]) -> Iterator[str]:
    for name, key in sorted(secrets_used(manifests)):
        if name not in secrets or (key and key not in secrets[name]):
            yield f"secret {name} {key}"
    declared = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    for mapping in walk(manifests):
        wanted = [
            ("PersistentVolumeClaim", mapping.get("claimName")),
            ("PriorityClass", mapping.get("priorityClassName")),
            ("ConfigMap", mapping.get("configMapRef", {}).get("name")),
            ("ServiceAccount", mapping.get("serviceAccountName")),
        ]
        yield from (f"{kind} {name}" for kind, name in wanted if name and (kind, name) not in declared)
    for one in manifests:
        if one["kind"] == "StatefulSet" and ("Service", one["spec"]["serviceName"]) not in declared:
            yield f"Service {one['spec']['serviceName']}"


def _ingress_backends(manifests: list[Manifest]) -> Iterator[str]:
    known = services(manifests)
    for ingress in (one for one in manifests if one["kind"] == "Ingress"):
        for backend in (one["service"] for one in walk(ingress) if set(one) == {"service"}):
            if backend["port"]["number"] not in known.get(backend["name"], set()):
                yield f"service {backend['name']} port {backend['port']['number']}"


def _addresses(manifests: list[Manifest]) -> Iterator[str]:
    known = services(manifests)
    addresses = {f"//{one['redisAddress']}" for one in walk(manifests) if "redisAddress" in one}
    addresses |= {environment(one, manifests)["RAG_STORE__URI"] for one in ray_containers(manifests)}
    for address in addresses:
        parts = urlsplit(address)
        if parts.port not in known.get(str(parts.hostname), set()):
            yield f"service at {address}"


def _within_pods(manifests: list[Manifest]) -> Iterator[str]:
    for manifest in manifests:
        own = {one["metadata"]["name"] for one in manifest.get("spec", {}).get("volumeClaimTemplates", [])}
        for template in pod_templates(manifest):
            volumes = {one["name"] for one in template["spec"].get("volumes", [])} | own
            for container in template["spec"]["containers"]:
                mounted = {one["name"] for one in container.get("volumeMounts", [])}
                yield from (f"volume {name}" for name in mounted - volumes)
                ports = {one["name"] for one in container.get("ports", [])}
                probed = (container.get(f"{kind}Probe", {}).get("httpGet", {}) for kind in ("readiness", "liveness"))
                names = {one["port"] for one in probed if isinstance(one.get("port"), str)}
                yield from (f"port {name} of {container['name']}" for name in names - ports)


def _selectors(manifests: list[Manifest]) -> Iterator[str]:
    pods = _pods(manifests)
    for manifest in manifests:
        where = f"{manifest['kind']} {manifest['metadata']['name']}"
        selectors = [one[key] for one in walk(manifest) for key in ("podSelector", "labelSelector") if key in one]
        if manifest["kind"] == "Service":
            selectors.append({"matchLabels": manifest["spec"]["selector"]})
        elif manifest["kind"] in ("PodDisruptionBudget", "PodMonitor", "StatefulSet"):
            selectors.append(manifest["spec"]["selector"])
        yield from (f"{where}: no pod has {one}" for one in selectors if not _selected(pods, one))
        yield from (f"{where}: {problem}" for problem in _selected_ports(manifest, pods))


def _selected_ports(manifest: Manifest, pods: list[Pod]) -> Iterator[str]:
    """Ports that none of the pods has that the manifest is about."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "PodMonitor":
        names = {name for _, ports in _selected(pods, spec["selector"]) for name in ports.values()}
        yield from (f"no port {one['port']}" for one in spec["podMetricsEndpoints"] if one["port"] not in names)
    elif manifest["kind"] == "NetworkPolicy":
        numbers = {number for _, ports in _selected(pods, spec["podSelector"]) for number in ports}
        wanted = {port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])}
        yield from (f"no port {port}" for port in sorted(wanted - numbers))


def _of_the_cluster(manifests: list[Manifest]) -> Iterator[str]:
    """Karpenter's nodes: their class, and that the pods with a GPU bear their taints."""
    for pool in (one for one in manifests if one["kind"] == "NodePool"):
        spec = pool["spec"]["template"]["spec"]
        reference = spec["nodeClassRef"]
        if not any(
            (one["kind"], one["metadata"]["name"]) == (reference["kind"], reference["name"]) for one in manifests
        ):
            yield f"{reference['kind']} {reference['name']}"
        for template in pod_templates(find(manifests, "RayService")):
            limits = [one["resources"]["limits"] for one in template["spec"]["containers"]]
            if any("nvidia.com/gpu" in one for one in limits):
                borne = {(one["key"], one["effect"]) for one in template["spec"].get("tolerations", [])}
                yield from (f"taint {one['key']}" for one in spec["taints"] if (one["key"], one["effect"]) not in borne)


def _pods(manifests: list[Manifest]) -> list[Pod]:
    found = [(one["metadata"]["labels"], _ports(one)) for manifest in manifests for one in pod_templates(manifest)]
    milvus = [one["spec"]["components"]["podLabels"] for one in manifests if one["kind"] == "Milvus"]
    return [*found, *((labels, MILVUS_PORTS) for labels in milvus)]


def _ports(template: dict[str, Any]) -> dict[int, str]:
    containers = template["spec"]["containers"]
    return {port["containerPort"]: port["name"] for one in containers for port in one.get("ports", [])}


def _selected(pods: list[Pod], selector: dict[str, Any]) -> list[Pod]:
    """Those whose labels fit; all, where the selector is empty."""
    wanted = {key: [value] for key, value in selector.get("matchLabels", {}).items()}
    for one in selector.get("matchExpressions", []):
        assert one["operator"] == "In", one
        wanted[one["key"]] = one["values"]
    return [pod for pod in pods if all(pod[0].get(key) in values for key, values in wanted.items())]
