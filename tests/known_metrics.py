"""Every metric that an alert or a panel may name, with its labels."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.metrics import TABLE

SUFFIXES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_count")}  # of a histogram Ray makes up the sum
# Prometheus puts the first two at what it scrapes.
SCRAPED = {"job", "instance"}
# Ray's agent puts these at what a worker records (ray/_private/telemetry; seen in a scrape).
OF_RAY = SCRAPED | {"Component", "NodeAddress", "SessionName", "Version", "WorkerId"}


@dataclass(frozen=True, slots=True)
class Foreign:
    """A metric of others: its name in `source`, a file of the installed `package`; empty where it is not installed."""

    labels: frozenset[str]
    package: str = ""
    source: str = ""
    literal: str = ""


def _foreign(package: str, source: str, literal: str, *labels: str) -> Foreign:
    return Foreign(frozenset(labels), package, source, literal)


_SERVE = ("application", "deployment")
_NODE = ("ip", "IsHeadNode", "RayNodeType", "SessionName", "Version", "instance", "job")
_PROCESS = ("ip", "pid", "Component", "SessionName", "Version", "instance", "job")
_ENGINE = ("model_name", "engine", "ReplicaId", "WorkerId", "instance", "job")
_REPORTER = "dashboard/modules/reporter/reporter_agent.py"
_DEPLOYMENTS = "serve/_private/deployment_state.py"
_REPLICA = "serve/_private/replica.py"
_VLLM = "v1/metrics/loggers.py"

# What Ray's exporter makes of a name: `ray_` before it, and of vLLM's colon an underscore. A counter gets `_total`.
FOREIGN: dict[str, Foreign] = {
    # Ray's agent of each node. In a pod the disk's is 0, unless RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE is 1.
    "ray_node_cpu_utilization": _foreign("ray", _REPORTER, '"node_cpu_utilization"', *_NODE),
    "ray_node_mem_used": _foreign("ray", _REPORTER, '"node_mem_used"', *_NODE),
    "ray_node_mem_total": _foreign("ray", _REPORTER, '"node_mem_total"', *_NODE),
    "ray_node_disk_utilization_percentage": _foreign("ray", _REPORTER, '"node_disk_utilization_percentage"', *_NODE),
    "ray_node_gpus_utilization": _foreign("ray", _REPORTER, '"node_gpus_utilization"', "GpuIndex", *_NODE),
    "ray_node_gram_used": _foreign("ray", _REPORTER, '"node_gram_used"', "GpuIndex", *_NODE),
    "ray_component_rss_bytes": _foreign("ray", _REPORTER, '"component_rss_bytes"', *_PROCESS),
    # Serve
    "ray_serve_deployment_status": _foreign("ray", _DEPLOYMENTS, '"serve_deployment_status"', *_SERVE),
    "ray_serve_autoscaling_target_replicas": _foreign(
        "ray", _DEPLOYMENTS, '"serve_autoscaling_target_replicas"', *_SERVE
    ),
    "ray_serve_replica_startup_latency_ms_count": _foreign(
        "ray", _DEPLOYMENTS, '"serve_replica_startup_latency_ms"', *_SERVE
    ),
    "ray_serve_health_check_failures_total": _foreign(
        "ray", _DEPLOYMENTS, '"serve_health_check_failures_total"', "replica", *_SERVE
    ),
    "ray_serve_deployment_queued_queries": _foreign(
        "ray", "serve/_private/router.py", '"serve_deployment_queued_queries"', "handle", *_SERVE
    ),
    "ray_serve_replica_processing_queries": _foreign(
        "ray", _REPLICA, '"serve_replica_processing_queries"', "replica", *_SERVE
    ),
    "ray_serve_deployment_processing_latency_ms_bucket": _foreign(
        "ray", _REPLICA, '"serve_deployment_processing_latency_ms"', "le", "replica", "route", *_SERVE
    ),
    "ray_serve_deployment_error_counter_total": _foreign(
        "ray", _REPLICA, '"serve_deployment_error_counter"', "replica", "route", "exception_type", *_SERVE
    ),
    "ray_serve_event_loop_scheduling_latency_ms_bucket": _foreign(
        "ray",
        "serve/_private/event_loop_monitoring.py",
        '"serve_event_loop_scheduling_latency_ms"',
        *("le", "component", "loop_type", *_SERVE),
    ),
    # vLLM, whose logger for Ray (v1/metrics/ray_wrappers.py) adds the replica
    "ray_vllm_kv_cache_usage_perc": _foreign("vllm", _VLLM, '"vllm:kv_cache_usage_perc"', *_ENGINE),
    "ray_vllm_num_requests_running": _foreign("vllm", _VLLM, '"vllm:num_requests_running"', *_ENGINE),
    "ray_vllm_num_requests_waiting": _foreign("vllm", _VLLM, '"vllm:num_requests_waiting"', *_ENGINE),
    "ray_vllm_num_preemptions_total": _foreign("vllm", _VLLM, '"vllm:num_preemptions"', *_ENGINE),
    "ray_vllm_prompt_tokens_total": _foreign("vllm", _VLLM, '"vllm:prompt_tokens"', *_ENGINE),
    "ray_vllm_generation_tokens_total": _foreign("vllm", _VLLM, '"vllm:generation_tokens"', *_ENGINE),
    "ray_vllm_prefix_cache_hits_total": _foreign("vllm", _VLLM, '"vllm:prefix_cache_hits"', *_ENGINE),
    "ray_vllm_prefix_cache_queries_total": _foreign("vllm", _VLLM, '"vllm:prefix_cache_queries"', *_ENGINE),
    "ray_vllm_time_to_first_token_seconds_bucket": _foreign(
        "vllm", _VLLM, '"vllm:time_to_first_token_seconds"', "le", *_ENGINE
    ),
    "ray_vllm_inter_token_latency_seconds_bucket": _foreign(
        "vllm", _VLLM, '"vllm:inter_token_latency_seconds"', "le", *_ENGINE
    ),
    # Milvus, read in its repository: pkg/metrics/proxy_metrics.go, rootcoord_metrics.go and metrics.go of 2.6. Its
    # counters have no `_total`.
    "milvus_proxy_req_count": Foreign(frozenset({"node_id", "function_name", "status", "db_name", "collection_name"})),
    "milvus_proxy_sq_latency_bucket": Foreign(frozenset({"le", "node_id", "query_type", "db_name", "collection_name"})),
    "milvus_rootcoord_entity_num": Foreign(frozenset({"db_name", "collection_name", "status"})),
    "milvus_num_node": Foreign(frozenset({"node_id", "role_name"})),
    # The kubelets, read in Kubernetes' repository: pkg/kubelet/metrics/collectors/volume_stats.go.
    "kubelet_volume_stats_available_bytes": Foreign(frozenset({"namespace", "persistentvolumeclaim"})),
    "kubelet_volume_stats_capacity_bytes": Foreign(frozenset({"namespace", "persistentvolumeclaim"})),
}


def own_metrics() -> dict[str, frozenset[str]]:
    """The table's metrics as they are at the endpoint, with their labels."""
    return {
        f"ray_{metric.name}{suffix}": OF_RAY | {*metric.labels, *(("le",) if suffix == "_bucket" else ())}
        for metric in TABLE
        for suffix in SUFFIXES[metric.kind]
    }


def known_metrics() -> dict[str, frozenset[str]]:
    """Name at the endpoint -> labels."""
    return {**own_metrics(), **{name: one.labels for name, one in FOREIGN.items()}}
