"""`rag ingest` itself, with the real embedder, killed at random instants."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from pypdf import PdfReader, PdfWriter
from reportlab.pdfgen.canvas import Canvas

from rag.embedded_store import ensure_server
from rag.store import MilvusStore
from tests import crash
from tests.ingest_fakes import lay_out

ROOT = Path(__file__).parents[2]
SEED, DOCUMENTS, KILLS_OF_A_VERSION = 7, 60, 1


def start(
    data_dir: Path, folder: Path, collection: str, *options: str, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rag.cli", "ingest", str(folder), "--collection", collection, "--prune", "--json"]
    return subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env={**os.environ, "RAG_DATA_DIR": str(data_dir), "RAG_INGEST__EMBED_BATCH": "8", **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    report: dict[str, Any] = json.loads(output)
    return report


@pytest.mark.timeout(900)
def test_the_command_killed_and_run_again_ends_as_if_it_had_been_left_alone(tmp_path: Path) -> None:
    chance, folder, killed = random.Random(SEED), tmp_path / "docs", 0
    with ensure_server(tmp_path, start_timeout_s=30, idle_s=1) as server:
        for corpus in crash.changing_corpora(SEED, DOCUMENTS, versions=2):
            lay_out(folder, corpus)
            started = time.monotonic()
            finish(start(tmp_path, folder, "calm"))
            duration_s = time.monotonic() - started
            for _ in range(KILLS_OF_A_VERSION):
                process = start(tmp_path, folder, "killed")
                time.sleep(chance.uniform(0.4, 0.8) * duration_s)
                process.kill()
                process.communicate()
                killed += process.returncode == -signal.SIGKILL
        report = finish(start(tmp_path, folder, "killed"))
        assert report["documents"]["failed"] == 0
        crash.compare_rows(crash.stored_rows(server.uri, "killed"), crash.stored_rows(server.uri, "calm"))
        assert finish(start(tmp_path, folder, "killed"))["documents"]["unchanged"] == DOCUMENTS
    assert killed >= KILLS_OF_A_VERSION


@pytest.mark.timeout(900)
def test_over_ray_data_the_rows_are_the_same_also_after_a_kill(tmp_path: Path) -> None:
    folder, over_ray = tmp_path / "docs", {"RAG_INGEST__RAY_DOCUMENTS": "1"}
    lay_out(folder, next(crash.changing_corpora(SEED, DOCUMENTS, versions=1)))
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.7 and no more")
    with ensure_server(tmp_path, start_timeout_s=30, idle_s=1) as server:
        output, _ = start(tmp_path, folder, "here").communicate(timeout=300)
        process = start(tmp_path, folder, "ray", variables=over_ray)
        store = MilvusStore(server.uri, timeout_s=20)
        while not ("ray" in store.collections() and list(store.every_chunk("ray"))):
            assert process.poll() is None
            time.sleep(0.02)
        store.close()
        ray = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert len(ray) > 3
        assert psutil.wait_procs(ray, timeout=30)[1] == []  # nothing of Ray is left behind
        again, errors = start(tmp_path, folder, "ray", variables=over_ray).communicate(timeout=300)
        assert "over Ray Data" in errors
        crash.compare_rows(crash.stored_rows(server.uri, "ray"), crash.stored_rows(server.uri, "here"))
    assert json.loads(again)["failures"] == json.loads(output)["failures"]
    assert len(json.loads(output)["failures"]) == 1


def test_a_password_given_opens_an_encrypted_pdf(tmp_path: Path) -> None:
    drawn = io.BytesIO()
    canvas = Canvas(drawn)
    canvas.drawString(72, 720, "The vault opens at nine.")
    canvas.save()
    writer = PdfWriter(clone_from=PdfReader(drawn))
    writer.encrypt("sesame", algorithm="AES-256")
    folder = tmp_path / "docs"
    folder.mkdir()
    writer.write(folder / "vault.pdf")
    report = finish(start(tmp_path, folder, "vault", "--pdf-password", "wrong", "--pdf-password", "sesame"))
    assert report["documents"]["added"] == 1
