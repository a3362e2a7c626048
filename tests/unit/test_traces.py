"""What is traced: the sampler's choice, and a clock's stages as spans."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from deployments.trace_export import HTTP_REQUEST, HttpRequests
from deployments.traces import stage_tracer, trace_environment, tracing_config
from rag.clock import RequestClock
from rag.errors import StageTimeoutError
from rag.step_settings import TraceSettings


def sampled(fraction: float, name: str, *, parent: bool | None = None) -> bool:
    """Whether a span is recorded; `parent`: what the caller's traceparent says."""
    tracer = TracerProvider(ParentBased(HttpRequests(fraction))).get_tracer("test")
    context = None
    if parent is not None:
        flags = TraceFlags(TraceFlags.SAMPLED if parent else TraceFlags.DEFAULT)
        context = set_span_in_context(NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=flags)))
    return tracer.start_span(name, context).is_recording()


def test_a_trace_begins_with_an_http_request_alone() -> None:
    assert sampled(1, HTTP_REQUEST)
    assert not sampled(1, "route_to_replica")
    assert not sampled(1, "replica_handle_request Embedder ready")
    assert not sampled(0, HTTP_REQUEST)
    share = sum(sampled(0.25, HTTP_REQUEST) for _ in range(2000)) / 2000
    assert 0.2 < share < 0.3


@pytest.mark.parametrize("name", [HTTP_REQUEST, "replica_handle_request Embedder embed"])
def test_a_caller_s_own_decision_holds(name: str) -> None:
    assert sampled(0, name, parent=True)
    assert not sampled(1, name, parent=False)


def test_without_an_address_there_are_no_traces() -> None:
    off = TraceSettings()
    assert (trace_environment(off), tracing_config(off), stage_tracer(off)) == ({}, None, None)
    on = TraceSettings(endpoint="http://collector:4318/", sample_fraction=0.5)
    assert trace_environment(on) == {
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "OTEL_TRACES_SAMPLER_ARG": "0.5",
    }


class Spans(list[tuple[str, float]]):
    def __call__(self, name: str, seconds: float) -> None:
        self.append((name, seconds))


async def pieces() -> AsyncIterator[int]:
    for piece in range(5):
        await asyncio.sleep(0)
        yield piece


async def test_each_stage_is_told_once_as_it_ends_with_what_the_timings_say() -> None:
    spans = Spans()
    clock = RequestClock(10, 0.25, spans)
    with clock.timed("fuse"):
        await clock.run("embed", lambda: asyncio.sleep(0), 1)
    assert [piece async for piece in clock.iterate("generate", pieces(), 5)] == list(range(5))
    assert [name for name, _ in spans] == ["queue", "embed", "fuse", "generate"]
    seconds = dict(spans)
    assert seconds["queue"] == 0.25
    for name in ("embed", "fuse"):
        assert seconds[name] * 1000 == pytest.approx(clock.timings_ms[name], abs=5)
    assert seconds["generate"] * 1000 >= clock.timings_ms["generate"]


async def test_a_stage_that_fails_is_told_too() -> None:
    spans = Spans()
    with pytest.raises(StageTimeoutError):
        await RequestClock(10, 0, spans).run("dense", lambda: asyncio.sleep(1), 0.01)
    assert [name for name, _ in spans] == ["queue", "dense"]


def test_a_clock_without_traces_can_go_to_another_process() -> None:
    clock = pickle.loads(pickle.dumps(RequestClock(10)))
    with clock.timed("fuse"):
        pass
    assert "fuse" in clock.timings_ms
