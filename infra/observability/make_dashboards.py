"""Grafana's dashboards, written beside this file: `python infra/observability/make_dashboards.py`.

A panel is its title, its unit as Grafana names it, and its queries: legend and expression.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeAlias

Panel: TypeAlias = tuple[str, str, dict[str, str]]
WIDTH, HEIGHT, COLUMNS = 8, 8, 3
ASKED = 'route=~"/ask|/v1/chat/completions"'


def quantiles(metric: str, by: str = "", matches: str = "") -> dict[str, str]:
    """The 50th, 95th and 99th percentile of a histogram; with `by` the 95th for each of its values."""
    chosen = f"{{{matches}}}" if matches else ""
    if by:
        rate = f"sum by (le, {by}) (rate({metric}_bucket{chosen}[$__rate_interval]))"
        return {f"{{{{{by}}}}}": f"histogram_quantile(0.95, {rate})"}
    rate = f"sum by (le) (rate({metric}_bucket{chosen}[$__rate_interval]))"
    return {f"p{share}": f"histogram_quantile(0.{share}, {rate})" for share in (50, 95, 99)}


def rates(metric: str, by: str) -> dict[str, str]:
    """How often a counter grows, for each value of its labels."""
    legend = " ".join(f"{{{{{label}}}}}" for label in by.split(", "))
    return {legend: f"sum by ({by}) (rate({metric}[$__rate_interval]))"}


DASHBOARDS: dict[str, tuple[str, list[Panel]]] = {
    "questions": (
        "RAG: questions and answers",
        [
            ("Requests", "reqps", rates("ray_rag_requests_total", "route, status")),
            ("Failed requests", "percentunit", {"5xx": "rag:requests_failed:ratio5m"}),
            ("Questions without an answer", "reqps", rates("ray_rag_questions_failed_total", "reason")),
            ("Time of a question", "s", quantiles("ray_rag_request_duration_seconds", matches=ASKED)),
            ("First piece of an answer", "s", quantiles("ray_rag_time_to_first_token_seconds")),
            ("Stages, p95", "s", quantiles("ray_rag_stage_duration_seconds", by="stage")),
            ("Worked on", "short", {"questions": "sum(ray_rag_questions_running)"}),
            ("Waiting", "short", {"questions": "sum(ray_rag_questions_waiting)", "p95, s": "rag:queue_seconds:p95_5m"}),
            ("Stages that answer", "short", {"{{stage}}": "min by (stage) (ray_rag_stage_up)"}),
            ("Answers", "reqps", rates("ray_rag_answers_total", "status, source, model")),
            ("Degraded answers", "percentunit", {"share": "rag:answers_degraded:ratio15m"}),
            ("Lacking stages", "reqps", rates("ray_rag_degraded_total", "stage")),
            ("Abstentions", "percentunit", {"share": "rag:answers_abstained:ratio1h"}),
            ("Abstentions by reason", "reqps", rates("ray_rag_abstained_total", "reason")),
            ("Sentences: cited, unsupported, dropped", "cps", rates("ray_rag_sentences_total", "outcome")),
            ("LLMs: first token, p95", "s", quantiles("ray_rag_llm_time_to_first_token_seconds", by="model")),
            ("LLMs: time per token, p95", "s", quantiles("ray_rag_llm_time_per_output_token_seconds", by="model")),
            ("LLMs: tokens", "cps", rates("ray_rag_llm_tokens_total", "model, kind")),
            ("Answers by another LLM", "reqps", rates("ray_rag_llm_fallbacks_total", "model")),
            ("Caches", "cps", rates("ray_rag_cache_lookups_total", "cache, result")),
            ("Texts of a batch, p95", "short", quantiles("ray_rag_batch_texts", by="stage")),
        ],
    ),
    "ingestion": (
        "RAG: ingestion and index",
        [
            ("Uploaded documents", "cps", rates("ray_rag_ingest_documents_total", "outcome")),
            ("Chunks written", "cps", {"chunks": "sum(rate(ray_rag_ingest_chunks_total[$__rate_interval]))"}),
            ("Jobs that ended", "cps", rates("ray_rag_ingest_jobs_total", "outcome")),
            ("Jobs queued or running", "short", {"jobs": "sum(ray_rag_ingest_jobs_unfinished)"}),
            (
                "Age of the job that runs",
                "s",
                {"job": "time() - max(ray_rag_ingest_job_start_timestamp_seconds > 0)"},
            ),
            (
                "Index versions searched",
                "short",
                {"{{collection}} {{index_version}}": "max by (collection, index_version) (ray_rag_index_version_info)"},
            ),
            ("Tokens of a batch, p95", "short", quantiles("ray_rag_batch_tokens", by="stage")),
        ],
    ),
    "machines": (
        "RAG: Ray, vLLM and the machines",
        [
            (
                "Healthy replicas",
                "short",
                {"{{deployment}}": "sum by (deployment) (ray_serve_deployment_replica_healthy)"},
            ),
            (
                "Requests at replicas",
                "short",
                {"{{deployment}}": "sum by (deployment) (ray_serve_replica_processing_queries)"},
            ),
            ("Errors of replicas", "cps", rates("ray_serve_deployment_error_counter_total", "deployment")),
            (
                "Key-value cache",
                "percentunit",
                {"{{model_name}}": "max by (model_name) (ray_vllm_kv_cache_usage_perc)"},
            ),
            (
                "Requests at vLLM",
                "short",
                {
                    "{{model_name}} running": "sum by (model_name) (ray_vllm_num_requests_running)",
                    "{{model_name}} waiting": "sum by (model_name) (ray_vllm_num_requests_waiting)",
                },
            ),
            (
                "Memory used",
                "percentunit",
                {"{{ip}}": "max by (ip) (ray_node_mem_used / ray_node_mem_total)"},
            ),
            ("CPU", "percent", {"{{ip}}": "max by (ip) (ray_node_cpu_utilization)"}),
            (
                "Disk left",
                "percentunit",
                {"{{ip}}": "min by (ip) (ray_node_disk_free / (ray_node_disk_free + ray_node_disk_usage))"},
            ),
        ],
    ),
}


def make_dashboard(name: str) -> dict[str, Any]:
    """A dashboard as Grafana imports it; it asks for its data source."""
    title, panels = DASHBOARDS[name]
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "uid": f"rag-{name}",
        "title": title,
        "tags": ["rag"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus"}]},
        "panels": [
            {
                "id": number + 1,
                "type": "timeseries",
                "title": panel,
                "datasource": source,
                "gridPos": {
                    "x": number % COLUMNS * WIDTH,
                    "y": number // COLUMNS * HEIGHT,
                    "w": WIDTH,
                    "h": HEIGHT,
                },
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(ord("A") + place), "datasource": source, "expr": expr, "legendFormat": legend}
                    for place, (legend, expr) in enumerate(queries.items())
                ],
            }
            for number, (panel, unit, queries) in enumerate(panels)
        ],
    }


def write_dashboard(name: str) -> str:
    """The file's text."""
    return json.dumps(make_dashboard(name), indent=1) + "\n"


if __name__ == "__main__":
    for one in DASHBOARDS:
        (Path(__file__).parent / f"dashboard-{one}.json").write_text(write_dashboard(one), encoding="utf-8")
