"""Rules and dashboards: they parse, do what their tests say, and name only metrics and labels that there are."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.metrics import TABLE

INFRA = Path(__file__).parents[2] / "infra"
FOLDER = INFRA / "observability"
RULES = ("recording.yaml", "alerts.yaml")
# Of Ray's node agent, of Serve and of vLLM, as a running service exports them (tests/serve/test_scraped_metrics.py).
OTHERS = {
    "ray_node_cpu_utilization": {"ip"},
    "ray_node_disk_free": {"ip"},
    "ray_node_disk_usage": {"ip"},
    "ray_node_mem_total": {"ip"},
    "ray_node_mem_used": {"ip"},
    "ray_serve_deployment_error_counter_total": {"deployment"},
    "ray_serve_deployment_replica_healthy": {"deployment"},
    "ray_serve_deployment_replica_starts_total": {"deployment"},
    "ray_serve_replica_processing_queries": {"deployment"},
    "ray_vllm_kv_cache_usage_perc": {"model_name"},
    "ray_vllm_num_requests_running": {"model_name"},
    "ray_vllm_num_requests_waiting": {"model_name"},
}
METRIC = re.compile(r"\b(?:ray_\w+|rag:[\w:]+)")
LABELS = re.compile(r"\bby \(([^)]*)\)|\{([^{}]*)\}")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool: Debian's package prometheus, which CI installs"
)


def load(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def dashboards() -> Any:
    spec = importlib.util.spec_from_file_location("make_dashboards", FOLDER / "make_dashboards.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rules() -> Iterator[dict[str, Any]]:
    for name in RULES:
        for group in load(name)["groups"]:
            yield from group["rules"]


def panels() -> Iterator[tuple[str, str]]:
    """Each query of each dashboard, with the panel that it is of."""
    for path in sorted(FOLDER.glob("dashboard-*.json")):
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]


def every_expression() -> list[tuple[str, str]]:
    named = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]
    return [*named, *panels()]


def known() -> dict[str, set[str]]:
    """What may be asked for: each name that Prometheus has, with its labels."""
    names = {name: set(labels) for name, labels in OTHERS.items()}
    for metric in TABLE:
        labels = set(metric.labels)
        if metric.kind == "histogram":
            names |= {f"ray_{metric.name}_bucket": labels | {"le"}, f"ray_{metric.name}_count": labels}
        else:
            names[f"ray_{metric.name}"] = labels
    return names | {rule["record"]: set() for rule in rules() if "record" in rule}


def faults(expression: str) -> set[str]:
    """The metrics that there are not, and the labels that none of its metrics has."""
    names, there = set(METRIC.findall(expression)), known()
    unknown = names - there.keys()
    held = set[str]().union(*(there[name] for name in names & there.keys()))
    asked = {
        part.split("=")[0].strip().rstrip("!~")
        for by, chosen in LABELS.findall(expression)
        for part in re.sub(r'"[^"]*"', "", by or chosen).split(",")
    }
    return unknown | (asked - held)


def promtool(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)


def copy_rules(folder: Path, changed: str = "", old: str = "", new: str = "") -> Path:
    """The rules and their test in `folder`, `old` in one of the files replaced."""
    for name in (*RULES, "alerts_test.yaml"):
        text = (FOLDER / name).read_text(encoding="utf-8")
        if name == changed:
            assert old in text
            text = text.replace(old, new, 1)
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "alerts_test.yaml"


@pytest.mark.parametrize(("where", "expression"), every_expression(), ids=lambda value: value[:60])
def test_an_expression_names_what_there_is(where: str, expression: str) -> None:
    assert faults(expression) == set(), where


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("sum(rate(ray_rag_request_total[5m]))", "ray_rag_request_total"),
        ("ray_rag_request_duration_seconds", "ray_rag_request_duration_seconds"),
        ("sum by (code) (ray_rag_requests_total)", "code"),
        ('ray_rag_requests_total{route="/ask", code=~"5.."}', "code"),
        ("rag:nothing:ratio5m > 1", "rag:nothing:ratio5m"),
    ],
)
def test_one_that_names_what_there_is_not_is_found(expression: str, fault: str) -> None:
    assert faults(expression) == {fault}


@needs_promtool
def test_every_expression_parses(tmp_path: Path) -> None:
    queries = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, (_, expression) in enumerate(panels())
    ]
    assert queries
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": queries}]}))
    checked = promtool("check", "rules", tmp_path / "panels.yaml", *(FOLDER / name for name in RULES))
    assert checked.returncode == 0, checked.stderr
    assert f"{len(queries)} rules found" in checked.stdout
    scraping = promtool("check", "config", "--lint=none", FOLDER / "prometheus.yaml")
    assert scraping.returncode == 0, scraping.stderr


@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    tested = promtool("test", "rules", copy_rules(tmp_path))
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("alerts.yaml", "ratio5m > 0.05", "ratio5m > 0.5"),
        ("alerts.yaml", "or absent(ray_rag_stage_up)", ""),
        ("alerts.yaml", "p99_5m > 15", "p99_5m > 150"),
        ("alerts.yaml", "ratio15m > 0.1", "ratio15m > 0.01"),
        ("alerts.yaml", "> 2 * avg_over_time", "> 20 * avg_over_time"),
        ("alerts.yaml", "p95_5m > 2", "p95_5m > 20"),
        ("alerts.yaml", "usage_perc) > 0.95", "usage_perc) > 0.8"),
        ("alerts.yaml", "_starts_total) > 3", "_starts_total) > 30"),
        ("alerts.yaml", "or vector(0)) == 0", "or vector(0)) >= 0"),
        ("alerts.yaml", "< 0.1", "< 0.9"),
        ("alerts.yaml", 'stage="retriever"', 'stage="reranker"'),
        ("alerts.yaml", "severity: page", "severity: none"),
        ("recording.yaml", 'status=~"5.."', 'status="500"'),
        ("recording.yaml", 'route=~"/ask|/v1/chat/completions"}[5m])))', 'route=~".+"}[5m])))'),
        ("recording.yaml", 'stage="queue"', 'stage=~".+"'),
        ("recording.yaml", 'degraded="yes"', 'degraded="no"'),
        ("recording.yaml", 'status="abstained"', 'status="answered"'),
    ],
)
def test_a_rule_that_is_wrong_fails_its_test(tmp_path: Path, name: str, old: str, new: str) -> None:
    assert promtool("test", "rules", copy_rules(tmp_path, name, old, new)).returncode != 0


def test_every_alert_is_tested_both_ways_and_has_its_page() -> None:
    cases = [case for test in load("alerts_test.yaml")["tests"] for case in test.get("alert_rule_test", [])]
    index = (INFRA / "runbooks" / "README.md").read_text(encoding="utf-8")
    alerts = [rule for rule in rules() if "alert" in rule]
    assert alerts
    for rule in alerts:
        name = rule["alert"]
        assert {bool(case["exp_alerts"]) for case in cases if case["alertname"] == name} == {True, False}, name
        page = (INFRA.parent / rule["annotations"]["runbook_url"]).relative_to(INFRA / "runbooks").name
        assert (INFRA / "runbooks" / page).is_file()
        assert re.search(rf"\({page}\) \|[^\n]*`{name}`", index), name


def test_the_cluster_has_the_same_rules() -> None:
    there = yaml.safe_load((INFRA / "k8s" / "base" / "rules.yaml").read_text(encoding="utf-8"))
    assert there["spec"]["groups"] == [group for name in RULES for group in load(name)["groups"]]


def test_the_dashboards_are_what_their_maker_writes() -> None:
    maker = dashboards()
    files = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("dashboard-*.json")}
    assert files == {f"dashboard-{name}.json": maker.write_dashboard(name) for name in maker.DASHBOARDS}


def test_every_metric_of_ours_is_on_a_dashboard() -> None:
    shown = {name for _, expression in panels() for name in METRIC.findall(expression)}
    recorded = {name for rule in rules() if "record" in rule for name in METRIC.findall(rule["expr"])}
    for metric in TABLE:
        name = f"ray_{metric.name}" + ("_bucket" if metric.kind == "histogram" else "")
        assert name in shown | recorded, name
