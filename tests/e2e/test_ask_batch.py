"""`rag ask-batch` itself, over Ray Data with the real models: killed and resumed, and with the LLM."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUESTIONS = 300
SHORT_LLM = {"RAG_GENERATOR__MAX_MODEL_LEN": "700"}
WITHOUT_LLM = {"RAG_GENERATOR__LANGUAGES": "[]"}


def start(data_dir: Path, *arguments: str | Path, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rag.cli", *map(str, arguments), "--json"],
        cwd=ROOT,
        env={**os.environ, "RAG_DATA_DIR": str(data_dir), **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> dict[str, Any]:
    output, errors = process.communicate(timeout=400)
    assert process.returncode == status, errors
    report: dict[str, Any] = json.loads(output)
    return report


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch")
    finish(start(folder, "ingest", ROOT / "examples" / "corpus"))
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def examples() -> list[str]:
    lines = (ROOT / "examples" / "questions.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_a_batch_that_is_killed_goes_on_where_it_stopped_and_nothing_of_ray_is_left(data_dir: Path) -> None:
    asked = [examples()[number % len(examples())] for number in range(QUESTIONS)]
    source = write(data_dir / "in.jsonl", [{"id": str(n), "question": text} for n, text in enumerate(asked)])
    target = data_dir / "out.jsonl"
    process = start(data_dir, "ask-batch", source, target, variables=WITHOUT_LLM)
    while not (target.exists() and target.stat().st_size):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    ray = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert len(ray) > 3
    assert psutil.wait_procs(ray, timeout=30)[1] == []
    written = target.read_bytes()
    assert 0 < written.count(b"\n") < QUESTIONS
    report = finish(start(data_dir, "ask-batch", source, target, variables=WITHOUT_LLM))
    assert target.read_bytes().startswith(written[: written.rindex(b"\n") + 1])  # no answer was asked for again
    assert report["known"] == written.count(b"\n")
    assert report["answered"] + report["abstained"] + report["known"] == report["questions"] == QUESTIONS
    rows = read(target)
    assert sorted(row["id"] for row in rows) == sorted(map(str, range(QUESTIONS)))
    by_question: dict[str, set[str]] = {}
    for row in rows:
        by_question.setdefault(asked[int(row["id"])], set()).add(row["answer"])
    assert all(len(answers) == 1 for answers in by_question.values())
    assert all(citation["verified"] for row in rows for citation in row["citations"])
    assert {tuple(row["degraded"]) for row in rows} == {()}


def test_the_llm_writes_for_the_rows_that_need_it_and_the_others_pass(data_dir: Path) -> None:
    rows: list[dict[str, Any]] = [{"id": text, "question": text, "max_tokens": 24} for text in examples()]
    rows += [
        {"id": "none", "question": "Who composed the opera Tosca in Rome?"},
        {"id": "wrong", "question": "Which port?", "top_k": 0},
        {"id": "long", "question": "How many characters may a question have? " * 90},
    ]
    source, target = write(data_dir / "llm.jsonl", rows), data_dir / "llm-out.jsonl"
    report = finish(start(data_dir, "ask-batch", source, target, variables=SHORT_LLM), status=1)
    assert report["questions"] == len(rows)
    assert sorted(failure["id"] for failure in report["failures"]) == ["long", "wrong"]
    assert report["questions_per_s"] > 0
    found = {row["id"]: row for row in read(target)}
    assert len(found) == len(rows)
    assert found["none"]["status"] == "abstained"
    assert found["wrong"]["error"]["status"] == 422
    assert found["long"]["error"]["stage"] == "generate"
    answered = [found[text] for text in examples() if found[text]["status"] == "answered"]
    assert len(answered) >= len(examples()) // 2
    written = [row for row in answered if row["usage"]["completion_tokens"]]
    assert written
    assert all(row["usage"]["completion_tokens"] <= 24 for row in written)
    assert {row["answer_source"] for row in written} <= {"generated", "extracted"}
    assert all(row["timings_ms"]["generate"] > 0 and row["degraded"] == [] for row in written)
