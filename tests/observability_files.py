"""What infra/observability says, as values."""

from __future__ import annotations

import json
from typing import Any

import yaml

from eval.promql import Named, names_in
from tests.k8s_manifests import ROOT
from tests.known_metrics import known_metrics

FOLDER = ROOT / "infra" / "observability"
RULE_FILES = ("recording.yaml", "alerts.yaml")
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))


def rules() -> list[dict[str, Any]]:
    """Of both files."""
    loaded = [yaml.safe_load((FOLDER / "rules" / name).read_text(encoding="utf-8")) for name in RULE_FILES]
    return [rule for one in loaded for group in one["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> dict[str, str]:
    """The expression of each recording rule."""
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def panel_expressions() -> dict[str, str]:
    """By dashboard, panel and letter."""
    return {
        f"{path.stem}/{panel['title']}/{target['refId']}": target["expr"]
        for path in DASHBOARDS
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel["targets"]
    }


def expressions() -> dict[str, str]:
    """Of every rule and panel, by where it is."""
    own = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    return own | panel_expressions()


def faults(expression: str) -> list[str]:
    """Metrics that nobody exports, and labels that they do not have."""
    known = {name: set(labels) for name, labels in known_metrics().items()}
    known |= {name: names_in(expr).labels - {"le"} for name, expr in recorded().items()}
    named: Named = names_in(expression)
    found = [f"there is no metric {name}" for name in sorted(named.metrics - known.keys())]
    for name, matched in named.selectors:
        if name in known:
            found += [f"{name} has no label {label}" for label in matched.keys() - known[name]]
    every = set().union(*(known[name] for name in named.metrics & known.keys()))
    return found + [f"no metric here has a label {label}" for label in sorted(named.labels - every)]
