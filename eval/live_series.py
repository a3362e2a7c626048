"""What a running Prometheus has for the alerts and dashboards: `python -m eval.live_series http://127.0.0.1:9090`.

Prometheus has to run with the rules of infra/observability, over a service that was asked something. A line for each
alert, recording rule and panel: `has data`, or the metrics without a series, or `no value` where they all have one and
the expression gives none all the same (an alert that does not fire gives none, and is not named for that). Exit status
1 when Prometheus does not know a rule, evaluates one with an error, or something lacks data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from eval.bench_tables import format_table
from eval.promql import names_in

FOLDER = Path(__file__).parents[1] / "infra" / "observability"
RULES = ("recording.yaml", "alerts.yaml")


class Watched(NamedTuple):
    """An expression of an alert, a recording rule or a panel."""

    kind: str
    name: str
    expression: str


def watched(folder: Path = FOLDER) -> Iterator[Watched]:
    """All of the folder's."""
    for file in RULES:
        for group in _read(folder / "rules" / file)["groups"]:
            for rule in group["rules"]:
                kind = "alert" if "alert" in rule else "record"
                yield Watched(kind, rule[kind], rule["expr"])
    for dashboard in _read(folder / "panels.yaml").values():
        for panel in dashboard["panels"]:
            for legend, expression in panel["targets"].items():
                yield Watched("panel", f"{panel['title']}: {legend}", expression)


def fault(client: httpx.Client, one: Watched) -> str:
    """What one lacks, empty where it has data. Raises httpx.HTTPError."""
    missing = sorted(name for name in names_in(one.expression).metrics if not query(client, f"count({name})"))
    if missing:
        return "no series of " + ", ".join(missing)
    return "no value" if one.kind != "alert" and not query(client, one.expression) else ""


def query(client: httpx.Client, expression: str) -> list[Any]:
    """The series that an expression has now. Raises httpx.HTTPError."""
    answer = client.get("/api/v1/query", params={"query": expression})
    answer.raise_for_status()
    found: list[Any] = answer.json()["data"]["result"]
    return found


def rule_errors(client: httpx.Client) -> dict[str, str]:
    """By name, each rule that Prometheus has; what its last evaluation said, empty where all was well."""
    answer = client.get("/api/v1/rules")
    answer.raise_for_status()
    groups = answer.json()["data"]["groups"]
    return {rule["name"]: rule.get("lastError", "") for group in groups for rule in group["rules"]}


def _read(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def main() -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(description="What a running Prometheus has for the alerts and dashboards.")
    parser.add_argument("url", help="Prometheus' address")
    rows, lacking = [], 0
    try:
        with httpx.Client(base_url=parser.parse_args().url, timeout=30) as client:
            errors = rule_errors(client)
            for one in watched():
                found = fault(client, one)
                if one.kind != "panel":
                    found = errors.get(one.name, "Prometheus has no such rule") or found
                lacking += bool(found)
                rows.append([one.kind, one.name, found or "has data"])
    except httpx.HTTPError as error:
        print(f"live_series: {error}; name a running Prometheus, as http://127.0.0.1:9090", file=sys.stderr)
        return 1
    print(format_table(["kind", "name", "found"], rows))
    print(f"{len(rows) - lacking} of {len(rows)} have data")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
