"""`rag trace` over logs that Serve's logger, `deployments.observe` and the question flow wrote."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deployments.log_lines import lines_of, read_request
from deployments.observe import tell_answer, watched
from deployments.ray_session import ray_dir_of
from deployments.timeline import Timeline, timelines
from rag.cli import main
from rag.config import Settings, load_settings
from rag.errors import DeadlineError, StageError
from rag.pipeline import answer
from rag.types import Question
from tests.pipeline_fakes import WordScorer, make_search, make_settings, make_steps, says
from tests.request_logs import note_end, replica_log, serving

PORT = Question("Which port does the service listen on?")
FORMER, RUNNING = "session_2026-11-27_10-00-00_000001_1", "session_2026-11-28_10-00-00_000002_2"
STAGES = ["queue", "embed", "dense", "lexical", "fuse", "rerank", "prompt", "generate", "ground"]
REQUEST_MS = 60_000.0


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    for name in os.environ:
        if name.upper().startswith("RAG_") or name == "RAY_ADDRESS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path))
    return load_settings(profile="embedded")


@pytest.fixture
def ray_dir(settings: Settings) -> Iterator[Path]:
    folder = ray_dir_of(settings, "ray")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # it is not in the data directory where that has a long path


def trace(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["trace", *arguments])


def write_question(ray_dir: Path, request_id: str, *, session: str = RUNNING, **steps: Any) -> None:
    """The lines of a question that the flow answers; it came to four replicas."""
    for deployment, replica, method, took_ms in (
        ("Embedder", "e1", "embed", 40_000.0),
        ("Retriever", "r1", "lexical_search", 50_000.0),
        ("Retriever", "r2", "dense_search", 30_000.0),
    ):
        with replica_log(ray_dir, session, deployment, replica), serving(request_id):
            note_end("CALL", method, took_ms)
    with replica_log(ray_dir, session, "Orchestrator", "o1"), serving(request_id):
        with watched("question") as tell:
            made = asyncio.run(
                answer(PORT, make_steps(says("It listens on port 8000."), make_search(**steps)), make_settings())
            )
            tell_answer(tell, made)
        note_end("POST", "/ask", REQUEST_MS, "200")


def names(found: Timeline, kind: str) -> list[str]:
    return [one.name for one in found.intervals if one.kind == kind]


def read(settings: Settings, request_id: str) -> list[Timeline]:
    said: list[str] = []
    found = timelines(read_request(settings, request_id, said.append))
    assert said == []
    return found


# --- what is found ---


def test_a_question_is_found_in_every_replica_that_it_came_to(settings: Settings, ray_dir: Path) -> None:
    write_question(ray_dir, "q-1")
    write_question(ray_dir, "q-10")  # whose id begins like that
    (found,) = read(settings, "q-1")
    assert sorted(names(found, "stage")) == sorted(STAGES)
    assert [(one.name, one.replica) for one in found.intervals if one.kind != "stage"] == [
        ("POST /ask", "Orchestrator o1"),
        ("lexical_search", "Retriever r1"),
        ("embed", "Embedder e1"),
        ("dense_search", "Retriever r2"),
    ]
    assert (found.facts["outcome"], found.facts["answer_source"]) == ("answered", "generated")
    assert (found.left_out, found.warnings) == ((), ())


def test_a_call_starts_as_long_before_its_line_as_it_took(settings: Settings, ray_dir: Path) -> None:
    write_question(ray_dir, "q-1")
    lines = read_request(settings, "q-1", print)
    ends_ms = {line["message"].split()[1]: line["timestamp_ns"] / 1e6 for line in lines}
    (found,) = timelines(lines)
    origin_ms = ends_ms["/ask"] - REQUEST_MS
    for one in found.intervals:
        if one.kind == "call":
            assert one.start_ms == pytest.approx(ends_ms[one.name] - one.duration_ms - origin_ms, abs=0.06)
    assert found.intervals[0].start_ms == 0


def test_stages_stand_one_behind_the_other_but_word_search(settings: Settings, ray_dir: Path) -> None:
    write_question(ray_dir, "q-1")
    lines = read_request(settings, "q-1", print)
    (timings_ms,) = [line["timings_ms"] for line in lines if "timings_ms" in line]
    (found,) = timelines(lines)
    stages = {one.name: one for one in found.intervals if one.kind == "stage"}
    assert {name: one.duration_ms for name, one in stages.items()} == {name: timings_ms[name] for name in STAGES}

    def ends(name: str) -> float:
        return stages[name].start_ms + stages[name].duration_ms

    rounding = 0.11
    assert stages["embed"].start_ms == stages["lexical"].start_ms == pytest.approx(ends("queue"), abs=rounding)
    assert stages["dense"].start_ms == pytest.approx(ends("embed"), abs=rounding)
    assert stages["fuse"].start_ms == pytest.approx(max(ends("dense"), ends("lexical")), abs=rounding)
    assert stages["rerank"].start_ms == pytest.approx(ends("fuse"), abs=rounding)
    assert all(ends(name) <= found.duration_ms for name in STAGES)


def test_rotated_files_and_former_sessions_are_read(settings: Settings, ray_dir: Path) -> None:
    with replica_log(ray_dir, FORMER, "Retriever", "r0", max_bytes=2_000):
        for number in range(12):
            with serving(f"q-{number}"):
                note_end("CALL", "dense_search", float(number))
    rotated = sorted((ray_dir / FORMER).glob("logs/serve/*.log.*"))
    assert len(rotated) >= 2
    write_question(ray_dir, "other")
    for number in range(12):
        (found,) = read(settings, f"q-{number}")
        assert [(one.replica, one.duration_ms) for one in found.intervals] == [("Retriever r0", float(number))]


def test_a_file_that_is_rotated_while_it_is_read_is_read_once(ray_dir: Path) -> None:
    with replica_log(ray_dir, RUNNING, "Retriever", "r1", max_bytes=2_000), serving("q-1"):
        for number in range(8):
            note_end("CALL", "dense_search", float(number))
    (log,) = ray_dir.glob("session_*/logs/serve/*.log")
    wanted = [float(number) for number in range(8)]
    found = lines_of(log, "q-1", print)
    lines = [next(found)]
    for number in range(len(list(log.parent.glob(f"{log.name}.*"))), 0, -1):
        log.with_name(f"{log.name}.{number}").rename(log.with_name(f"{log.name}.{number + 1}"))
    log.rename(log.with_name(f"{log.name}.1"))
    log.touch()
    lines += found
    assert sorted(float(line["message"].split()[-1].removesuffix("ms")) for line in lines) == wanted


def test_a_damaged_line_is_told_and_the_others_are_shown(ray_dir: Path) -> None:
    write_question(ray_dir, "q-1")
    (log,) = ray_dir.glob("session_*/logs/serve/replica_rag_Embedder_e1.log")
    (line,) = log.read_bytes().splitlines()
    log.write_bytes(line[:-10])
    done = trace("q-1")
    assert done.exit_code == 0
    assert f"left out: a line of {log}" in done.stderr
    assert "lexical_search()" in done.stdout
    assert "embed()" not in done.stdout


# --- what became of it ---


def test_what_was_left_out_is_told_with_its_reason(settings: Settings, ray_dir: Path) -> None:
    write_question(ray_dir, "q-1", score=WordScorer(StageError("rerank", "the reranker went down")))
    (found,) = read(settings, "q-1")
    reasons = {one.stage: one.reasons for one in found.left_out}
    assert reasons == {"rerank": ("answering without reranking: rerank: the reranker went down",), "ground": ()}
    done = trace("q-1")
    assert done.stdout.count("the reranker went down") == 1
    assert "left out: ground: no line of the log says why" in done.stdout


def test_a_question_that_failed_has_its_outcome_and_no_stages(settings: Settings, ray_dir: Path) -> None:
    with replica_log(ray_dir, RUNNING, "Orchestrator", "o1"), serving("late"):
        with pytest.raises(DeadlineError), watched("question"):
            raise DeadlineError("the deadline passed")
        note_end("POST", "/ask", 20.0, "504")
    (found,) = read(settings, "late")
    assert found.facts == {"outcome": "deadline"}
    assert [(one.name, one.status) for one in found.intervals] == [("POST /ask", "504")]
    assert "POST /ask 504" in trace("late").stdout


def test_without_an_outcome_that_is_told(ray_dir: Path) -> None:
    with replica_log(ray_dir, RUNNING, "Embedder", "e1"), serving("lost"):
        note_end("CALL", "embed", 12.0, "CANCELLED")
    done = trace("lost")
    assert "no outcome in the log" in done.stdout
    assert "embed() CANCELLED" in done.stdout


def test_an_error_that_left_nothing_out_is_told(ray_dir: Path) -> None:
    with replica_log(ray_dir, RUNNING, "Embedder", "e1"), serving("q-1"):
        logging.getLogger("ray.serve").error("the model is gone")
    assert "Embedder e1: the model is gone" in trace("q-1").stdout


def test_an_id_that_was_used_twice_is_two_requests(settings: Settings, ray_dir: Path) -> None:
    write_question(ray_dir, "q-1")
    once = read_request(settings, "q-1", print)
    again = [{**line, "timestamp_ns": line["timestamp_ns"] + 3600 * 10**9} for line in once]
    first, second = timelines([*once, *again])
    assert second.intervals == first.intervals
    assert second.started_at > first.started_at


# --- the command ---


def test_the_table_has_a_row_for_each_interval_with_its_bar(settings: Settings, ray_dir: Path) -> None:
    write_question(ray_dir, "q-1")
    (found,) = read(settings, "q-1")
    rows = [line for line in trace("q-1").stdout.splitlines() if "█" in line]
    assert len(rows) == len(found.intervals)
    assert ["~" in row for row in rows] == [one.kind == "stage" for one in found.intervals]
    bars = {one.name: row.count("█") for one, row in zip(found.intervals, rows, strict=True) if one.kind != "stage"}
    assert bars["POST /ask"] > bars["lexical_search"] > bars["embed"] > bars["dense_search"] > 1


def test_json_is_the_same_as_one_document(settings: Settings, ray_dir: Path) -> None:
    write_question(ray_dir, "q-1")
    done = trace("q-1", "--json")
    body = json.loads(done.stdout)
    (found,) = read(settings, "q-1")
    assert body == {"request_id": "q-1", "requests": [json.loads(json.dumps(found.as_dict()))]}


@pytest.mark.parametrize(
    ("environment", "write", "status", "told"),
    [
        pytest.param({}, True, 1, ["'q-2'", "X-Request-ID", '{job="rag"} | request_id="q-2"'], id="unknown"),
        pytest.param({}, False, 3, ["no service has been started in", "RAG_DATA_DIR"], id="no_service"),
        pytest.param(
            {"RAY_ADDRESS": "ray.example:6379"}, True, 2, ['{job="rag"} | request_id="q-2"', "RAY_ADDRESS"], id="joined"
        ),
    ],
)
def test_what_cannot_be_found_is_told_with_a_remedy(
    environment: dict[str, str],
    write: bool,
    status: int,
    told: Sequence[str],
    ray_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if write:
        write_question(ray_dir, "q-1")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done = trace("q-2")
    assert (done.exit_code, done.stdout) == (status, "")
    assert [one for one in told if one not in done.stderr] == []
