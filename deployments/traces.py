"""A request's stages as spans, for an OpenTelemetry collector.

Serve itself takes a request's `traceparent` and passes it on with each call of a deployment: its spans show the
replicas. What is added is one for each stage of the flow, from the same clock as the response's timings; where they go
is in deployments.trace_export.
"""

from __future__ import annotations

import time
from typing import Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from rag.clock import TraceStage
from rag.step_settings import TraceSettings

FRACTION_VARIABLE = "OTEL_TRACES_SAMPLER_ARG"


def traces_url(settings: TraceSettings) -> str | None:
    """Where spans are posted to; None where there are no traces."""
    return None if settings.endpoint is None else f"{settings.endpoint.rstrip('/')}/v1/traces"


def trace_environment(settings: TraceSettings) -> dict[str, str]:
    """What the exporters in the processes of Serve and vLLM read; nothing where there are no traces."""
    url = traces_url(settings)
    if url is None:
        return {}
    return {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": url,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        # vLLM's: a span of a request that is part of a trace, none of its start.
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        FRACTION_VARIABLE: str(settings.sample_fraction),
    }


def tracing_config(settings: TraceSettings) -> dict[str, Any] | None:
    """Serve's own setting, for `serve.start` and for a file of `serve deploy`."""
    if settings.endpoint is None:
        return None
    return {"enabled": True, "exporter_import_path": "deployments.trace_export:span_processors"}


def trace_headers() -> dict[str, str]:
    """The `traceparent` of the request that this is part of; nothing where it is not traced."""
    headers: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(headers)
    return headers


def stage_tracer(settings: TraceSettings) -> TraceStage | None:
    """What a request's clock tells its stages to; None where there are no traces."""
    if settings.endpoint is None:
        return None
    tracer = trace.get_tracer("rag")

    def trace_stage(name: str, seconds: float) -> None:
        ended = time.time_ns()
        span = tracer.start_span(name, start_time=ended - int(seconds * 1e9))
        span.end(ended)

    return trace_stage
