"""Writes what is made of others here: dashboards/ of panels.yaml, and prometheus-rule.yaml, for Kubernetes, of rules/.

.venv/bin/python infra/observability/build.py            writes them
.venv/bin/python infra/observability/build.py --check    names those that it would write otherwise; exit status 1
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
RULES = ("recording.yaml", "alerts.yaml")
SOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS, WIDTH, HEIGHT = 3, 8, 8  # Grafana's grid is 24 wide


def read_yaml(name: str) -> dict[str, Any]:
    """A file of this folder."""
    loaded: dict[str, Any] = yaml.safe_load((HERE / name).read_text(encoding="utf-8"))
    return loaded


def panel_json(number: int, panel: dict[str, Any]) -> dict[str, Any]:
    """Panel `number`, from 0, in rows of three."""
    row, column = divmod(number, COLUMNS)
    limits = {"min": 0, "max": panel["maximum"]} if "maximum" in panel else {"min": 0}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel["title"],
        "datasource": SOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel["unit"], **limits}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expression, "legendFormat": legend}
            for index, (legend, expression) in enumerate(panel["targets"].items())
        ],
    }


def dashboard_json(name: str, dashboard: dict[str, Any]) -> dict[str, Any]:
    """As Grafana takes it, from a file or by import; the data source is chosen at the top."""
    source = {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"rag-{name}",
        "title": dashboard["title"],
        "tags": ["rag"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [source]},
        "panels": [panel_json(number, panel) for number, panel in enumerate(dashboard["panels"])],
    }


def built() -> Iterator[tuple[Path, str]]:
    """Every file that is made here, with its text."""
    for name, dashboard in read_yaml("panels.yaml").items():
        text = json.dumps(dashboard_json(name, dashboard), indent=1)
        yield HERE / "dashboards" / f"{name}.json", f"{text}\n"
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "rag"},
        "spec": {"groups": [group for name in RULES for group in read_yaml(f"rules/{name}")["groups"]]},
    }
    text = yaml.safe_dump(rule, sort_keys=False, width=120)
    yield HERE / "prometheus-rule.yaml", f"# Made of rules/ by build.py.\n{text}"


def main() -> int:
    """The exit status."""
    if sys.argv[1:] == ["--check"]:
        stale = [path.name for path, text in built() if not path.is_file() or path.read_text(encoding="utf-8") != text]
        for name in stale:
            print(f"{name} is not what build.py makes: run .venv/bin/python infra/observability/build.py")
        return bool(stale)
    for path, text in built():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
