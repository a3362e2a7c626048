"""Manifests against the schemas that Kubernetes and the operators publish, without a field that they do not have."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.k8s_manifests import ROOT, Manifest

CRDS = ROOT.parent / "shared" / "data" / "crds"
KUBERNETES = "1.34"
CUSTOM_GROUPS = ("karpenter.k8s.aws", "karpenter.sh", "milvus.io", "monitoring.coreos.com", "ray.io")
_ROOT_METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
    "required": ["name"],
    "additionalProperties": False,
}


def is_custom(manifest: Manifest) -> bool:
    return manifest["apiVersion"].partition("/")[0] in CUSTOM_GROUPS


def faults(manifest: Manifest) -> list[str]:
    """What its schema refuses, unknown fields too. Skips the test where the schema is not at hand."""
    return custom_faults(manifest) if is_custom(manifest) else core_faults(manifest)


def custom_faults(manifest: Manifest) -> list[str]:
    if not CRDS.is_dir():
        pytest.skip(f"the operators' published definitions are not in {CRDS}")
    group, _, version = manifest["apiVersion"].partition("/")
    paths = [path for path in CRDS.glob(f"{group}_*.yaml") if _kind_of(path) == manifest["kind"]]
    if not paths or version not in _versions(paths[0]):
        return [f"apiVersion: there is no {manifest['kind']} in {manifest['apiVersion']}"]
    errors = _validator(paths[0], version).iter_errors(manifest)
    return [f"{'.'.join(map(str, one.absolute_path))}: {one.message[:300]}" for one in errors]


def core_faults(manifest: Manifest) -> list[str]:
    package = pytest.importorskip(
        "kubernetes_validate", reason="Kubernetes' schemas are not installed: pip install kubernetes-validate"
    )
    try:
        package.validate(manifest, KUBERNETES, strict=True)
    except package.SchemaNotFoundError:
        return [f"apiVersion: there is no {manifest['kind']} in {manifest['apiVersion']}"]
    except package.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"]
    return []


def strict(schema: dict[str, Any], kept: bool = False) -> dict[str, Any]:
    """A schema that refuses what the API server would prune: each field without a schema, unless told to keep it.

    `kept`: of an array that was told so, its elements.
    """
    kept = kept or bool(schema.get("x-kubernetes-preserve-unknown-fields"))
    result = dict(schema)
    if schema.get("nullable"):
        result["type"] = [schema["type"], "null"]
    if "properties" in schema:
        result["properties"] = {name: strict(one) for name, one in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        result["items"] = strict(schema["items"], kept)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = strict(schema["additionalProperties"])
    elif schema.get("type") == "object" and not kept and "additionalProperties" not in schema:
        result["additionalProperties"] = False
    return result


@functools.cache
def _definition(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
    return loaded


def _kind_of(path: Path) -> str:
    kind: str = _definition(path)["spec"]["names"]["kind"]
    return kind


def _versions(path: Path) -> dict[str, dict[str, Any]]:
    """The schema of each version that the API server serves."""
    versions = _definition(path)["spec"]["versions"]
    return {one["name"]: one["schema"]["openAPIV3Schema"] for one in versions if one["served"]}


@functools.cache
def _validator(path: Path, version: str) -> jsonschema.Draft4Validator:
    schema = strict(_versions(path)[version])
    schema["properties"]["metadata"] = _ROOT_METADATA
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return jsonschema.Draft4Validator(schema)
