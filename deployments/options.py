"""Serve's options of a stage, made of its settings."""

from __future__ import annotations

from typing import Any

from rag.serve_settings import ModelServing, StageServing, scaling_target
from rag.step_settings import GeneratorSettings

# A replica that goes has so much longer than the longest call.
SPARE_S = 5.0
# Of every replica: a line is a JSON object, with the request's id where there is a request.
JSON_LOGS = {"encoding": "JSON"}


def stage_options(
    serving: StageServing, *, calls: int, longest_s: float, llm: GeneratorSettings | None = None
) -> dict[str, Any]:
    """All but what it asks of its node: replicas or what they scale by, limits, health and its end.

    `calls` is what the questions at work can send to a replica at once, `longest_s` how long one of them may take.
    """
    max_ongoing = serving.max_ongoing or calls
    return {
        **_replicas(serving, scaling_target(llm, serving)),
        "max_ongoing_requests": max_ongoing,
        "max_queued_requests": max_ongoing if serving.max_queued is None else serving.max_queued,
        "health_check_period_s": serving.health_period_s,
        "health_check_timeout_s": serving.health_timeout_s,
        "logging_config": JSON_LOGS,
        "graceful_shutdown_timeout_s": serving.shutdown_s or longest_s + SPARE_S,
        # How often a replica that is to stop looks whether its last request has ended.
        "graceful_shutdown_wait_loop_s": 0.25,
        # Not of an LLM: Serve takes no such limit beside the bundles by which its workers are placed.
        "max_replicas_per_node": serving.max_replicas_per_node if isinstance(serving, ModelServing) else None,
    }


def actor_options(serving: StageServing, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """A replica's place on a node, by what it asks Ray for there; `environment` is what its process reads."""
    options: dict[str, Any] = {"num_cpus": serving.num_cpus, "num_gpus": serving.num_gpus}
    if serving.memory_bytes:
        options["memory"] = serving.memory_bytes
    if serving.resources:
        options["resources"] = dict(serving.resources)
    if isinstance(serving, ModelServing) and serving.accelerator_type:
        options["accelerator_type"] = serving.accelerator_type
    if environment:
        options["runtime_env"] = {"env_vars": environment}
    return options


def _replicas(serving: StageServing, target: float) -> dict[str, Any]:
    if serving.max_replicas is None:
        return {"num_replicas": serving.replicas}
    return {
        "autoscaling_config": {
            "min_replicas": serving.replicas,
            "max_replicas": serving.max_replicas,
            **serving.scaling.model_dump(exclude_none=True),
            "target_ongoing_requests": target,
        }
    }
