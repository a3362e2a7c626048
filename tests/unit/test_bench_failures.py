from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from eval.bench_failures import Pace, Row, Seen, kill_part, main, summarize, to_outcome
from eval.bench_http import read_questions
from eval.bench_service import BenchError
from tests.http_fake import Reply, Service, problem, serving

WELL = Reply(json.dumps({"stages": {"embedder": "ok", "generator": "ok"}}).encode())
WHOLE = Reply(json.dumps({"degraded": []}).encode())
HALF = Reply(json.dumps({"degraded": ["dense", "rerank"]}).encode())
QUICK = Pace(settle_s=0.1, least_s=0.2, quiet_s=0.3, limit_s=30, pause_s=0.02)
HASTY = replace(QUICK, limit_s=1)


@pytest.fixture
def victim() -> Iterator[psutil.Process]:
    """A process to kill."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield psutil.Process(process.pid)
        process.kill()


async def mend(service: Service, process: psutil.Process) -> None:
    """What the service answers once the process is dead: first a refusal, then half answers, then whole ones."""
    await asyncio.to_thread(process.wait)
    service.replies |= {"ask": problem(503), "readyz": problem(503)}
    await asyncio.sleep(0.2)
    service.replies |= {"ask": HALF, "readyz": WELL}
    await asyncio.sleep(0.4)
    service.replies["ask"] = WHOLE


def test_a_killed_part_is_watched_until_answers_are_whole_again(victim: psutil.Process) -> None:
    async def watch(service: Service) -> Row:
        mending = asyncio.create_task(mend(service, victim))
        row = await kill_part(service.url, "embedder's replica", lambda: [victim], ["one", "two", "three"], 2, QUICK)
        await mending
        return row

    with serving(ask=WHOLE, readyz=WELL) as service:
        row = asyncio.run(watch(service))
    assert {body["question"] for path, body in service.asked if path == "/ask"} == {"one", "two", "three"}
    assert set(row.not_whole) == {"HTTP 503", "without dense, rerank"}
    assert row.requests > sum(row.not_whole.values())
    assert row.over_after_s > 0


def test_a_part_that_does_not_recover_is_an_error(victim: psutil.Process) -> None:
    with serving(ask=HALF, readyz=WELL) as service, pytest.raises(BenchError, match=r"not recovered .* dense, rerank"):
        asyncio.run(kill_part(service.url, "embedder's replica", lambda: [victim], ["one"], 1, HASTY))


def test_answers_are_not_trusted_while_a_stage_is_down(victim: psutil.Process) -> None:
    down = Reply(json.dumps({"stages": {"embedder": "ok", "generator": "starting"}}).encode())
    with serving(ask=WHOLE, readyz=down) as service, pytest.raises(BenchError, match="not recovered"):
        asyncio.run(kill_part(service.url, "LLM's replica", lambda: [victim], ["one"], 1, HASTY))


def test_a_part_that_is_not_there_is_an_error() -> None:
    with serving(ask=WHOLE, readyz=WELL) as service, pytest.raises(BenchError, match="no process of the reranker"):
        asyncio.run(kill_part(service.url, "reranker's replica", list, ["one"], 1, QUICK))


def test_only_what_ended_after_the_kill_counts() -> None:
    seen = [Seen(1.0, "HTTP 503"), Seen(2.5, "whole"), Seen(3.0, "HTTP 503"), Seen(4.0, "HTTP 503"), Seen(5.0, "whole")]
    assert summarize("Milvus", 1, 2.0, seen) == Row("Milvus", 1, 4, {"HTTP 503": 2}, 2.0)
    assert summarize("Milvus", 1, 4.5, seen) == Row("Milvus", 1, 1, {}, 0.0)


@pytest.mark.parametrize(("degraded", "outcome"), [([], "whole"), (["dense", "rerank"], "without dense, rerank")])
def test_an_answer_says_what_it_lacks(degraded: list[str], outcome: str) -> None:
    assert to_outcome({"degraded": degraded}) == outcome


def test_questions_are_the_lines_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("# English\n\nWhat is a port?\n 포트는? \n", encoding="utf-8")
    assert read_questions(path) == ["What is a port?", "포트는?"]


def test_a_file_without_questions_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "questions.txt"
    path.write_text("# none\n", encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["bench_failures", str(tmp_path), str(path)])
    assert main() == 1
    assert "has no question; write one a line" in capsys.readouterr().err
