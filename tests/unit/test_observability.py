"""The rules, their tests by promtool, and the dashboards: nothing in them that the service does not export."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ray.serve._private.constants import SERVE_LOG_DEPLOYMENT, SERVE_LOG_LEVEL_NAME, SERVE_LOG_REQUEST_ID

from deployments.ingress import create_api
from deployments.launch import choose_metrics_port
from eval.promql import names_in
from rag.config import load_settings
from rag.serve_settings import ServeSettings
from tests.k8s_manifests import K8S, ROOT, SERVICE, build, find
from tests.known_metrics import FOREIGN, Foreign, own_metrics
from tests.observability_files import (
    DASHBOARDS,
    FOLDER,
    RULE_FILES,
    alerts,
    expressions,
    faults,
    panel_expressions,
    recorded,
    rules,
)
from tests.promql import check_expressions, promtool

RUNBOOKS = ROOT / "infra" / "runbooks"
TESTS = sorted((FOLDER / "tests").glob("*.yaml"))


def promtool_tests(alert: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """promtool's run of one alert's tests with the rules in `folder`."""
    for path in TESTS:
        file = yaml.safe_load(path.read_text(encoding="utf-8"))
        file["tests"] = [
            one for one in file["tests"] if alert in {test["alertname"] for test in one["alert_rule_test"]}
        ]
        if file["tests"]:
            only = folder / "tests" / "only.yaml"
            only.write_text(yaml.safe_dump(file), encoding="utf-8")
            return promtool("test", "rules", only)
    raise AssertionError(f"{alert} has no test")


# --- rules ---


def test_promtool_finds_nothing_wrong() -> None:
    for arguments in (
        ("check", "rules", *(FOLDER / "rules" / name for name in RULE_FILES)),
        ("check", "config", FOLDER / "prometheus.yaml"),
    ):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_alerts_fire_when_they_should_and_only_then() -> None:
    done = promtool("test", "rules", *TESTS)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_tested_both_ways() -> None:
    fires, rests = set[str](), set[str]()
    for path in TESTS:
        for one in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for test in one["alert_rule_test"]:
                (fires if test["exp_alerts"] else rests).add(test["alertname"])
    assert fires == rests == alerts().keys()


@pytest.mark.parametrize(
    ("file", "old", "new", "alert"),
    [
        # thresholds
        ("alerts.yaml", "ratio_rate5m > 0.05", "ratio_rate5m > 0.03", "RagUnavailable"),
        ("alerts.yaml", "ratio_rate5m > 0.05", "ratio_rate5m > 0.2", "RagUnavailable"),
        ("alerts.yaml", "rate5m > 0.02", "rate5m >= 0", "RagUnavailable"),
        ("alerts.yaml", "p99_rate10m > 10", "p99_rate10m > 30", "RagLatencyHigh"),
        ("alerts.yaml", "and rag:questions:rate5m > 0.05", "", "RagLatencyHigh"),
        ("alerts.yaml", "p95_rate5m > 2.5", "p95_rate5m > 5", "RagQueueOld"),
        ("alerts.yaml", "ratio_rate15m > 0.1", "ratio_rate15m > 0.3", "RagDegraded"),
        ("alerts.yaml", "and rag:answers:rate15m > 0.02", "", "RagDegraded"),
        ("alerts.yaml", "> 0.95", "> 0.93", "RagKvCacheFull"),
        ("alerts.yaml", "> 2.5\n", "> 9.5\n", "RagReplicaRestarts"),
        ("alerts.yaml", "offset 30m) > 2", "offset 30m) > 0", "RagReplicaRestarts"),
        ("alerts.yaml", "/ 100 > 0.9", "/ 100 > 0.8", "RagDiskFull"),
        ("alerts.yaml", "> 0.1 + 1.5 *", "> 0.1 + 5 *", "RagAbstentionJump"),
        ("alerts.yaml", "> 0.1 + 1.5 *", "> 0.0 + 0.9 *", "RagAbstentionJump"),
        # what is counted
        ("alerts.yaml", 'max(ray_rag_stage_up{stage="retriever"})', "max(ray_rag_stage_up)", "RagMilvusDown"),
        ("alerts.yaml", "or absent(ray_rag_stage_up)", "", "RagUnavailable"),
        ("alerts.yaml", "unless sum(increase(ray_rag_ingest_jobs_total[30m])) > 0", "", "RagIngestStuck"),
        ("alerts.yaml", 'or max(ray_rag_stage_up{stage="indexer"}) == 0', "", "RagIngestStuck"),
        ("alerts.yaml", '{namespace="rag"}', "", "RagDiskFull"),
        ("alerts.yaml", "ray_vllm_kv_cache_usage_perc", "ray_vllm_gpu_cache_usage_perc", "RagKvCacheFull"),
        ("recording.yaml", 'status=~"5.."', 'status=~"[45].."', "RagUnavailable"),
        ("recording.yaml", 'route=~"/ask|/v1/chat/completions"', 'route=~"/ask|/search"', "RagLatencyHigh"),
        ("recording.yaml", '{stage="queue"}', "", "RagQueueOld"),
        ("recording.yaml", "(rag:answers:rate1h > 0)", "rag:answers:rate1h", "RagAbstentionJump"),
        ("recording.yaml", " or 0 * rag:answers:rate1h", "", "RagAbstentionJump"),
        # what is said
        ("alerts.yaml", "severity: critical", "severity: warning", "RagMilvusDown"),
        ("alerts.yaml", "rayservice-failed.md", "oom-spiral.md", "RagUnavailable"),
        ("alerts.yaml", "for: 2m", "for: 20m", "RagUnavailable"),
    ],
)
def test_a_rule_that_is_wrong_fails_its_test(file: str, old: str, new: str, alert: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "rules" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert promtool("check", "rules", path).returncode == 0
    done = promtool_tests(alert, tmp_path)
    assert done.returncode == 1
    assert "FAILED:" in done.stdout + done.stderr


def test_every_alert_has_its_labels_and_a_page_that_names_it() -> None:
    for name, rule in alerts().items():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        page = ROOT / rule["annotations"]["runbook_url"]
        assert page.parent == RUNBOOKS
        assert f"`{name}`" in page.read_text(encoding="utf-8").split("\n\n")[1], name


def test_the_alerts_are_those_that_the_runbooks_are_for() -> None:
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(Rag\w+)`", index)) == alerts().keys()


def test_what_alerts_and_panels_read_is_recorded_and_what_is_recorded_is_read() -> None:
    named = {name for one in expressions().values() for name in names_in(one).metrics if ":" in name}
    assert named == recorded().keys()


def test_a_slow_answer_is_told_before_it_is_given_up() -> None:
    (limit,) = re.findall(r"p99_rate10m > (\d+)", alerts()["RagLatencyHigh"]["expr"])
    for profile in ("embedded", "gpu"):
        assert float(limit) < load_settings(profile=profile).deadlines.total_s


# --- names and labels ---


def test_every_expression_parses(tmp_path: Path) -> None:
    assert check_expressions(expressions().values(), tmp_path) == ""


@pytest.mark.parametrize("where", expressions())
def test_every_metric_and_label_is_exported(where: str) -> None:
    assert names_in(expressions()[where]).metrics
    assert faults(expressions()[where]) == []


@pytest.mark.parametrize("name", FOREIGN)
def test_metrics_of_others_are_in_their_sources(name: str) -> None:
    one: Foreign = FOREIGN[name]
    if not one.package:
        assert name.startswith(("milvus_", "kubelet_"))
        return
    found = importlib.util.find_spec(one.package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{one.package} is not installed")
    assert one.literal in (Path(found.submodule_search_locations[0]) / one.source).read_text(encoding="utf-8")
    assert name.startswith("ray_" + one.literal.strip('"').replace(":", "_"))


def test_each_of_the_others_metrics_is_used() -> None:
    used = {name for one in expressions().values() for name in names_in(one).metrics}
    assert FOREIGN.keys() <= used
    # And of our own each is on a dashboard, a histogram by its buckets.
    shown = {name for one in [*panel_expressions().values(), *recorded().values()] for name in names_in(one).metrics}
    assert {name for name in own_metrics() if not name.endswith("_count")} <= shown


def test_the_routes_of_questions_are_the_api_s() -> None:
    paths = create_api(load_settings(profile="gpu").serve).openapi()["paths"]
    posts = {path for path, of in paths.items() if "post" in of}
    for where, one in expressions().items():
        for _, matched in names_in(one).selectors:
            assert set(matched.get("route", "/ask").split("|")) <= posts, where


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("sum(rate(ray_rag_request_total[5m]))", "there is no metric ray_rag_request_total"),
        ("sum(rate(rag_requests_total[5m]))", "there is no metric rag_requests_total"),
        ("rate(ray_rag_stage_duration_seconds_sum[5m])", "there is no metric ray_rag_stage_duration_seconds_sum"),
        ("ray_rag_stage_duration_seconds", "there is no metric ray_rag_stage_duration_seconds"),
        ('ray_rag_requests_total{code="200", method="POST"}', "ray_rag_requests_total has no label code"),
        ('ray_rag_abstained_total{le="1"}', "ray_rag_abstained_total has no label le"),
        ("sum by (status, reason) (ray_rag_requests_total)", "no metric here has a label reason"),
        ("rag:questions:rate5m / on (route) rag:questions:rate5m", "no metric here has a label route"),
        ("rag:questions:rate1m", "there is no metric rag:questions:rate1m"),
    ],
)
def test_a_wrong_name_or_label_is_noticed(expression: str, said: str, tmp_path: Path) -> None:
    assert check_expressions([expression], tmp_path) == ""
    assert faults(expression) == [said]


@pytest.mark.parametrize(
    "expression", ["sum(ray_rag_questions_running", "rate(ray_rag_requests_total)", "sum by stage x"]
)
def test_what_is_no_expression_is_noticed(expression: str, tmp_path: Path) -> None:
    assert "expressions.yaml" in check_expressions([expression], tmp_path)


def test_names_are_read_out_of_an_expression() -> None:
    found = names_in(
        'a:b{x="}(", y=~"p|q"} offset 1d > 0.5e3 and on (z) sum without (v, w) (rate(c_total[5m])) or -inf * d'
    )
    assert found.selectors == [("a:b", {"x": "}(", "y": "p|q"}), ("c_total", {}), ("d", {})]
    assert found.labels == {"z", "v", "w"}


# --- dashboards and what is made ---


def test_what_is_built_is_as_it_is_built() -> None:
    done = subprocess.run([sys.executable, FOLDER / "build.py", "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("rules/alerts.yaml", "> 0.05", "> 0.06", "prometheus-rule.yaml"),
        ("panels.yaml", "ray_rag_questions_waiting", "ray_rag_questions_running", "questions.json"),
        ("prometheus-rule.yaml", "for: 2m", "for: 3m", "prometheus-rule.yaml"),
    ],
)
def test_a_file_that_drifts_is_named(file: str, old: str, new: str, stale: str, tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new), encoding="utf-8")
    command = [sys.executable, tmp_path / "build.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout.startswith(stale)


def test_the_cluster_gets_the_rules_and_the_dashboards() -> None:
    manifests = build(SERVICE)
    rule = find(manifests, "PrometheusRule")
    assert [one for group in rule["spec"]["groups"] for one in group["rules"]] == rules()
    dashboards = find(manifests, "ConfigMap", "rag-dashboards")
    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboards["data"] == {path.name: path.read_text(encoding="utf-8") for path in DASHBOARDS}


def test_the_claims_are_those_of_the_namespace() -> None:
    namespace = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text(encoding="utf-8"))["namespace"]
    found = [labels.get("namespace") for one in expressions().values() for _, labels in names_in(one).selectors]
    assert set(found) - {None} == {namespace}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_one_that_grafana_takes(path: Path) -> None:
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert (dashboard["uid"], len(panels)) == (f"rag-{path.stem}", len({panel["id"] for panel in panels}))
    assert len({panel["title"] for panel in panels}) == len(panels) >= 9
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(panels)
    variables = {f"${{{one['name']}}}" for one in dashboard["templating"]["list"]}
    for panel in panels:
        assert {target["datasource"]["uid"] for target in panel["targets"]} <= variables
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            # A legend's labels are what the expression leaves.
            assert shown <= names_in(target["expr"]).labels, panel["title"]


# --- one machine ---


def test_prometheus_scrapes_where_the_service_exports() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    port = ServeSettings().port + 1000
    assert target == f"127.0.0.1:{port}"
    assert choose_metrics_port(ServeSettings()) in (port, 0)  # 0: something of others is at it now


def test_promtail_reads_fields_that_the_lines_have_and_loki_gets_them() -> None:
    promtail = yaml.safe_load((FOLDER / "promtail.yaml").read_text(encoding="utf-8"))
    (job,) = promtail["scrape_configs"]
    stages = {kind: value for stage in job["pipeline_stages"] for kind, value in stage.items()}
    fields = stages["json"]["expressions"]
    assert set(fields.values()) == {SERVE_LOG_LEVEL_NAME, SERVE_LOG_DEPLOYMENT, SERVE_LOG_REQUEST_ID, "timestamp_ns"}
    assert {*stages["labels"], *stages["structured_metadata"], stages["timestamp"]["source"]} == fields.keys()
    loki = yaml.safe_load((FOLDER / "loki.yaml").read_text(encoding="utf-8"))
    server = f"http://{loki['server']['http_listen_address']}:{loki['server']['http_listen_port']}/"
    assert promtail["clients"][0]["url"].startswith(server)
