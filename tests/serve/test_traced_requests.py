"""Spans and log lines of a running service: one trace through all of its processes, one line for each question."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from deployments.launch import running_service
from deployments.ray_session import ray_dir_of
from eval.ports import free_ports
from rag.cli import main
from rag.client import Client
from rag.config import Settings, load_settings
from tests.serve.fake_graph import DOCUMENTS, GENERATE_LIMIT_S
from tests.serve.otlp_collector import Collector, collecting
from tests.serve.watched_graph import build_watched_app

pytestmark = pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="milvus-lite: the cpu extra")

PORT = "Which port does the service listen on?"
STAGES = {"queue", "embed", "dense", "lexical", "fuse", "rerank", "prompt", "generate", "ground"}
EXPORTED_S = 20.0


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Settings:
    (port,) = free_ports(1)
    return load_settings(
        profile="embedded",
        data_dir=tmp_path_factory.mktemp("traced"),
        serve={"port": port},
        trace={"endpoint": collector.url, "sample_fraction": 0},
        deadlines={"generate_s": GENERATE_LIMIT_S},
    )


@pytest.fixture(scope="module")
def client(settings: Settings) -> Iterator[httpx.Client]:
    with (
        running_service(settings, print, build_watched_app) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        with Client(running.url) as documents:
            for source, text in DOCUMENTS.items():
                documents.wait_for_job(documents.upload_text(text, title=source, source=source).id)
        yield client


def ask(client: httpx.Client, question: str, *, sampled: bool = True, **more: Any) -> tuple[str, httpx.Response]:
    """The trace's id and the response; what a caller's traceparent says decides."""
    trace_id = secrets.token_hex(16)
    headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-{int(sampled):02}", "x-request-id": trace_id}
    response = client.post("/ask", json={"question": question, "temperature": 0.5, **more}, headers=headers)
    assert response.status_code == 200, response.text
    return trace_id, response


def wait_until(fulfilled: Callable[[], bool], timeout_s: float, what: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout_s
    while not fulfilled():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("question", "stream"),
    [
        # Neither is embedded already, as the warm-up question is.
        pytest.param("How many characters may a question have?", False, id="whole"),
        pytest.param("Which port does the service listen on, then?", True, id="stream"),
    ],
)
def test_one_trace_has_a_span_of_each_stage_and_of_each_replica(
    client: httpx.Client, collector: Collector, question: str, stream: bool
) -> None:
    trace_id, _ = ask(client, question, stream=stream)
    replicas = {
        f"replica_handle_request {called}"
        for called in (
            "Orchestrator __call__",
            "Embedder embed",
            "Retriever dense_search",
            "Retriever lexical_search",
            "FakeReranker score",
            "Generator-smollm2-135m-instruct generate",
        )
    }

    def names() -> set[str]:
        return {span.name for span in collector.of(trace_id)}

    wait_until(lambda: names() >= STAGES | replicas, EXPORTED_S, lambda: f"missing: {(STAGES | replicas) - names()}")
    spans = collector.of(trace_id)
    (request,) = [span for span in spans if span.name == "replica_handle_request Orchestrator __call__"]
    for span in spans:
        if span.name in STAGES:
            assert span.parent_span_id == request.span_id, span.name
            assert request.start_time_unix_nano <= span.end_time_unix_nano <= request.end_time_unix_nano + 50_000_000
    assert collector.services == {"rag"}


def test_only_what_its_caller_wants_traced_is_traced(client: httpx.Client, collector: Collector) -> None:
    unwanted, _ = ask(client, PORT, sampled=False)
    client.post("/ask", json={"question": PORT})
    wanted, _ = ask(client, PORT)
    wait_until(lambda: bool(collector.of(wanted)), EXPORTED_S, lambda: "no trace")
    time.sleep(6)  # every replica has exported meanwhile
    assert collector.of(unwanted) == []
    known = {span.trace_id for span in collector.spans if span.name == "replica_handle_request Orchestrator __call__"}
    assert {span.trace_id for span in collector.spans} == known  # neither probes nor the warm-up began one


def lines_of(settings: Settings, request_id: str, deployment: str = "Orchestrator") -> list[dict[str, Any]]:
    folder = ray_dir_of(settings, "ray") / "session_latest" / "logs" / "serve"
    files: list[Path] = list(folder.glob(f"replica_rag_{deployment}_*.log"))
    assert len(files) == 1, sorted(path.name for path in folder.iterdir())
    lines = [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line.get("request_id") == request_id]


def test_a_question_is_a_line_of_json_with_its_id_outcome_and_timings(client: httpx.Client, settings: Settings) -> None:
    request_id, response = ask(client, PORT)
    (line,) = [line for line in lines_of(settings, request_id) if "outcome" in line]
    body = response.json()
    assert (line["outcome"], line["answer_source"], line["degraded"]) == ("answered", "generated", [])
    assert line["timings_ms"] == body["timings_ms"]
    assert line["model"] == body["model"]
    assert PORT not in json.dumps(line)


def test_what_a_stage_fails_with_is_a_line_with_the_request_s_id_and_the_stage(
    client: httpx.Client, settings: Settings
) -> None:
    request_id, _ = ask(client, "When was the broken engine repaired?")
    lines = lines_of(settings, request_id)
    (failed,) = [line for line in lines if line.get("stage")]
    assert (failed["stage"], failed["levelname"]) == ("generate", "WARNING")
    assert "on strike" in failed["message"]
    (line,) = [line for line in lines if "outcome" in line]
    assert (line["outcome"], line["degraded"]) == ("answered", ["generate"])
    # The other replicas' lines have the same id.
    assert lines_of(settings, request_id, "Retriever")


def test_rag_trace_finds_every_stage_of_a_running_service_and_each_call(
    client: httpx.Client, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAG_DATA_DIR", str(settings.data_dir))
    response = client.post("/ask", json={"question": "Which lamp burns for eleven hours?", "temperature": 0.5})
    found: dict[str, Any] = {}

    def read() -> list[str]:
        done = CliRunner().invoke(main, ["trace", response.headers["x-request-id"], "--json"])
        assert done.exit_code == 0, done.stderr
        (request,) = json.loads(done.stdout)["requests"]
        found.update(request)
        return [one["name"] for one in request["intervals"] if one["kind"] == "request"]

    # Serve writes the request's own line after the client has its answer.
    wait_until(lambda: read() == ["POST /ask"], EXPORTED_S, lambda: f"without the request's line: {found}")
    timings_ms = response.json()["timings_ms"]
    stages = {one["name"]: one["duration_ms"] for one in found["intervals"] if one["kind"] == "stage"}
    assert stages == {name: timings_ms[name] for name in STAGES}
    calls = {(one["replica"].split()[0], one["name"]) for one in found["intervals"] if one["kind"] == "call"}
    assert calls >= {
        ("Embedder", "embed"),
        ("Retriever", "dense_search"),
        ("Retriever", "lexical_search"),
        ("FakeReranker", "score"),
        ("Generator-smollm2-135m-instruct", "generate"),
    }
    assert found["facts"]["outcome"] == "answered"


@pytest.mark.skipif(importlib.util.find_spec("memray") is None, reason="memray: the profile extra")
def test_rag_profile_memory_tracks_a_running_replica_which_goes_on(
    client: httpx.Client, settings: Settings, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "rag.cli", "profile-memory"]
    environment = {**os.environ, "RAG_DATA_DIR": str(settings.data_dir)}
    # Ray's driver, which this process is, takes the exit status of every child: the output tells.
    with subprocess.Popen(
        [*command, "embedder", "--seconds", "3", "--out", str(tmp_path)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as profiling:
        while profiling.poll() is None:
            ask(client, f"Which port does the service number {secrets.randbelow(10**6)} listen on?")
        assert profiling.stdout is not None
        told = profiling.stdout.read()
    (page,) = tmp_path.glob("memory-Embedder-*.html")
    assert told.endswith(f"{page}\n")
    assert "deployments/embedder.py" in page.read_text(encoding="utf-8")
    refused = subprocess.run([*command, "nobody"], env=environment, stderr=subprocess.PIPE, text=True)
    assert "there is no stage 'nobody'; these run: embedder, " in refused.stderr


def test_a_question_that_fails_is_a_line_with_the_reason(client: httpx.Client, settings: Settings) -> None:
    headers = {"x-request-id": "late-1"}
    response = client.post("/ask", json={"question": "Why?", "deadline_s": 1e-6}, headers=headers)
    assert response.status_code == 504
    assert [line["outcome"] for line in lines_of(settings, "late-1") if "outcome" in line] == ["deadline"]
