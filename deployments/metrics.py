"""Every metric of the service in one table, and what each is fed from.

Ray's agent on each node exports them, `ray_` before each name, beside Ray's, Serve's and vLLM's own. Recording one
takes two microseconds and raises nothing. Each label has few values: routes, stages, names from the settings. Of a
histogram Ray keeps the buckets alone: its sum, and so a mean, takes each value for its bucket's middle.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from ray.util.metrics import Counter, Gauge, Histogram

from rag.clock import NOT_STAGES
from rag.types import Answer, Usage

logger = logging.getLogger("ray.serve")

MAX_COLLECTIONS = 100  # whose index versions are told by a process: whoever may upload makes collections

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)
_TEXTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_TOKENS = (16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as its table row has it; `buckets` are a histogram's upper bounds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


TABLE = (
    # requests
    Metric(
        "rag_requests_total",
        "counter",
        "HTTP requests by their route's path; other: they reached none.",
        ("method", "route", "status"),
    ),
    Metric(
        "rag_request_duration_seconds",
        "histogram",
        "HTTP requests, to the last byte of a stream.",
        ("method", "route"),
        _SECONDS,
    ),
    Metric("rag_questions_running", "gauge", "Questions and searches that are worked on."),
    Metric("rag_questions_waiting", "gauge", "Questions and searches that wait for a place."),
    Metric(
        "rag_questions_failed_total",
        "counter",
        "Questions and searches without an answer, by the problem's type: overloaded, deadline, ...",
        ("reason",),
    ),
    # answers
    Metric(
        "rag_answers_total",
        "counter",
        "Answers: answered or abstained; source generated, extracted or none; by the LLM chosen; degraded yes or no.",
        ("status", "source", "model", "degraded"),
    ),
    Metric("rag_abstained_total", "counter", "Abstentions by reason.", ("reason",)),
    Metric("rag_degraded_total", "counter", "Answers and searches that lack a stage, by stage.", ("stage",)),
    Metric("rag_llm_fallbacks_total", "counter", "Answers by the next LLM in this one's place.", ("model",)),
    Metric(
        "rag_sentences_total",
        "counter",
        "Sentences sent with a verified citation (cited) or without support (unsupported), and those of the LLM "
        "that were not sent (dropped).",
        ("outcome",),
    ),
    Metric(
        "rag_cache_lookups_total",
        "counter",
        "Lookups of answers (exact, semantic, miss) and of queries' embeddings (exact, miss).",
        ("cache", "result"),
    ),
    # stages
    Metric(
        "rag_stage_duration_seconds", "histogram", "A question's or search's time in a stage.", ("stage",), _SECONDS
    ),
    Metric("rag_stage_up", "gauge", "1 while the stage's deployment answers, else 0.", ("stage",)),
    Metric(
        "rag_time_to_first_token_seconds", "histogram", "To the first piece of an answer that is sent.", (), _SECONDS
    ),
    Metric(
        "rag_llm_time_to_first_token_seconds",
        "histogram",
        "To the first piece that the LLM writes.",
        ("model",),
        _SECONDS,
    ),
    Metric(
        "rag_llm_time_per_output_token_seconds",
        "histogram",
        "Between an LLM's tokens: from its first piece to its last, by the tokens after the first.",
        ("model",),
        _SECONDS,
    ),
    Metric("rag_llm_tokens_total", "counter", "An LLM's tokens: prompt or completion.", ("model", "kind")),
    Metric("rag_batch_texts", "histogram", "Texts of a batch of embedder or cross-encoder.", ("stage",), _TEXTS),
    Metric("rag_batch_tokens", "histogram", "Tokens of such a batch.", ("stage",), _TOKENS),
    # ingestion and the index
    Metric(
        "rag_ingest_documents_total",
        "counter",
        "Uploaded documents: added, replaced, unchanged or failed.",
        ("outcome",),
    ),
    Metric("rag_ingest_chunks_total", "counter", "Chunks of uploads that were written."),
    Metric("rag_ingest_jobs_total", "counter", "Jobs of uploads that ended: done or failed.", ("outcome",)),
    Metric("rag_ingest_jobs_unfinished", "gauge", "Jobs of uploads that are queued or run."),
    Metric(
        "rag_ingest_job_start_timestamp_seconds",
        "gauge",
        "When the job that runs was first begun, in Unix seconds; 0 while none runs.",
    ),
    Metric(
        "rag_data_dir_used_ratio",
        "gauge",
        "How full the file system of the data directory is, 0 to 1, as whoever is not root finds it.",
    ),
    Metric(
        "rag_index_version_info",
        "gauge",
        "1: the index version of a collection that was searched.",
        ("collection", "index_version"),
    ),
)

_gauges: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}  # what each shows
_index_versions: dict[str, str] = {}  # of each collection that was searched, the last one
_BY_NAME = {metric.name: metric for metric in TABLE}
_METHODS = {"GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"}


def count(name: str, value: float = 1, **labels: str) -> None:
    """Adds to a counter; nothing where `value` is 0."""
    if value:
        _record(name, value, labels)


def observe(name: str, value: float, **labels: str) -> None:
    """A value of a histogram."""
    _record(name, value, labels)


def set_gauge(name: str, value: float, **labels: str) -> None:
    """What a gauge shows from now on, while `refresh_gauges` is called."""
    _gauges[name, tuple(labels.items())] = value
    _record(name, value, labels)


def refresh_gauges() -> None:
    """To be called every few seconds: Ray forgets a gauge that was not set between two of its reports."""
    for (name, labels), value in list(_gauges.items()):
        _record(name, value, dict(labels))


def note_request(method: str, route: str, status: int, seconds: float) -> None:
    """A request that has ended."""
    method = method if method in _METHODS else "other"
    count("rag_requests_total", method=method, route=route, status=str(status))
    observe("rag_request_duration_seconds", seconds, method=method, route=route)


def note_answer(answer: Answer) -> None:
    """An answer that was made, or given again."""
    count(
        "rag_answers_total",
        status=answer.status,
        source=answer.answer_source or "none",
        model=answer.model or "none",
        degraded="yes" if answer.degraded else "no",
    )
    if answer.reason is not None:
        count("rag_abstained_total", reason=answer.reason)
    count("rag_sentences_total", len(answer.citations), outcome="cited")
    count("rag_sentences_total", len(answer.unsupported), outcome="unsupported")
    count("rag_sentences_total", answer.dropped, outcome="dropped")
    note_stages(answer.timings_ms, answer.degraded)
    note_index_version(answer.collection, answer.index_version)
    if "cache" in answer.timings_ms:
        count("rag_cache_lookups_total", cache="answers", result=answer.cached or "miss")
    if "ttft" in answer.timings_ms:
        observe("rag_time_to_first_token_seconds", answer.timings_ms["ttft"] / 1000)


def note_stages(timings_ms: Mapping[str, float], degraded: Sequence[str]) -> None:
    """What each stage of a question or search took, and which it had to do without."""
    for stage, spent_ms in timings_ms.items():
        if stage not in NOT_STAGES:
            observe("rag_stage_duration_seconds", spent_ms / 1000, stage=stage)
    for name in degraded:
        stage, _, llm = name.partition(":")
        if llm:
            count("rag_llm_fallbacks_total", model=llm)
        else:
            count("rag_degraded_total", stage=stage)


def note_embeddings(hits: int, misses: int) -> None:
    """Queries whose vectors were known, and others."""
    count("rag_cache_lookups_total", hits, cache="embeddings", result="exact")
    count("rag_cache_lookups_total", misses, cache="embeddings", result="miss")


def note_generation(model: str, usage: Usage, first_s: float, last_s: float) -> None:
    """What an LLM wrote, until seconds `last_s`, of which its first piece took `first_s`."""
    count("rag_llm_tokens_total", usage.prompt_tokens, model=model, kind="prompt")
    count("rag_llm_tokens_total", usage.completion_tokens, model=model, kind="completion")
    observe("rag_llm_time_to_first_token_seconds", first_s, model=model)
    if usage.completion_tokens > 1:
        per_token_s = (last_s - first_s) / (usage.completion_tokens - 1)
        observe("rag_llm_time_per_output_token_seconds", per_token_s, model=model)


def note_batch(stage: str, texts: int, tokens: int) -> None:
    """A batch that requests share."""
    observe("rag_batch_texts", texts, stage=stage)
    observe("rag_batch_tokens", tokens, stage=stage)


def note_index_version(collection: str, version: str) -> None:
    """The index that a question's search, or /info, found of a collection."""
    former = _index_versions.get(collection)
    if former is None and len(_index_versions) == MAX_COLLECTIONS:
        return
    if former is not None:
        _gauges.pop(("rag_index_version_info", (("collection", collection), ("index_version", former))), None)
    _index_versions[collection] = version
    set_gauge("rag_index_version_info", 1, collection=collection, index_version=version)


def _record(name: str, value: float, labels: dict[str, str]) -> None:
    try:
        _RECORD[_BY_NAME[name].kind](_instrument(name), value, labels)
    except (ValueError, TypeError) as error:  # all that Ray raises here; a request is worth more than its count
        logger.error("the metric %s was not recorded: %s", name, error)


_RECORD: dict[str, Any] = {"counter": Counter.inc, "gauge": Gauge.set, "histogram": Histogram.observe}


@cache
def _instrument(name: str) -> Counter | Gauge | Histogram:
    """This process's own, made when it is first used."""
    metric = _BY_NAME[name]
    if metric.kind == "histogram":
        return Histogram(name, metric.help, list(metric.buckets), metric.labels)
    return (Counter if metric.kind == "counter" else Gauge)(name, metric.help, metric.labels)
