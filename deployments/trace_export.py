"""Which requests are traced, and where their spans go. Serve loads it where `trace.endpoint` is set."""

from __future__ import annotations

import os
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, Sampler, SamplingResult, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes

from deployments.traces import FRACTION_VARIABLE

HTTP_REQUEST = "replica_handle_request Orchestrator __call__"  # Serve's name of the span in which a request arrives


def span_processors() -> list[SpanProcessor]:
    """What Serve calls for, once in a replica; the environment is `traces.trace_environment`'s."""
    sampler = ParentBased(HttpRequests(float(os.environ.get(FRACTION_VARIABLE, "1"))))
    # Serve sets a provider of its own next, with another sampler, and the first one stays.
    trace.set_tracer_provider(TracerProvider(sampler, Resource.create({"service.name": "rag"})))
    return [BatchSpanProcessor(OTLPSpanExporter())]


class HttpRequests(Sampler):
    """Begins traces with a fraction of the HTTP requests, and with nothing else.

    Serve begins one with each call of a deployment that is part of none: of our probes, and of requests that were not
    sampled, since it does not pass that decision on.
    """

    def __init__(self, fraction: float) -> None:
        self._fraction = TraceIdRatioBased(fraction)

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See OpenTelemetry's Sampler."""
        chosen = self._fraction if name == HTTP_REQUEST else ALWAYS_OFF
        return chosen.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        """See OpenTelemetry's Sampler."""
        return f"HttpRequests{{{self._fraction.get_description()}}}"
