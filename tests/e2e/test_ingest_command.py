"""`rag ingest` itself, with the real embedder, killed."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
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
SEED, DOCUMENTS = 7, 60


def start(
    data_dir: Path, folder: Path, collection: str, *, variables: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rag.cli", "ingest", str(folder), "--collection", collection, "--prune", "--json"]
    return subprocess.Popen(
        [*command, "--pdf-password", "wrong", "--pdf-password", "sesame"],
        cwd=ROOT,
        env={**os.environ, "RAG_DATA_DIR": str(data_dir), "RAG_INGEST__EMBED_BATCH": "8", **(variables or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> dict[str, Any]:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    report: dict[str, Any] = json.loads(output)
    return report


def locked_pdf(path: Path) -> None:
    drawn = io.BytesIO()
    canvas = Canvas(drawn)
    canvas.drawString(72, 720, "The vault opens at nine.")
    canvas.save()
    writer = PdfWriter(clone_from=PdfReader(drawn))
    writer.encrypt("sesame", algorithm="AES-256")
    writer.write(path)


@dataclass
class Ingested:
    """A folder, what it holds as a run left alone stored it, and that run's report and seconds."""

    data_dir: Path
    folder: Path
    uri: str
    report: dict[str, Any]
    seconds: float

    def compare(self, collection: str) -> None:
        crash.compare_rows(crash.stored_rows(self.uri, collection), crash.stored_rows(self.uri, "calm"))


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ingested]:
    data_dir = tmp_path_factory.mktemp("ingest")
    folder = data_dir / "docs"
    lay_out(folder, next(crash.changing_corpora(SEED, DOCUMENTS, versions=1)))
    locked_pdf(folder / "vault.pdf")
    (folder / "damaged.pdf").write_bytes(b"%PDF-1.7 and no more")
    with ensure_server(data_dir, start_timeout_s=30, idle_s=1) as server:
        started = time.monotonic()
        report = finish(start(data_dir, folder, "calm"), status=1)
        seconds = time.monotonic() - started
        assert (report["documents"]["added"], len(report["failures"])) == (DOCUMENTS + 1, 1)
        assert "The vault opens at nine." in [row["text"] for row in crash.stored_rows(server.uri, "calm")]
        yield Ingested(data_dir, folder, server.uri, report, seconds)


def test_the_command_killed_and_run_again_ends_as_if_it_had_been_left_alone(calm: Ingested) -> None:
    process = start(calm.data_dir, calm.folder, "killed")
    time.sleep(random.Random(SEED).uniform(0.4, 0.8) * calm.seconds)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    finish(start(calm.data_dir, calm.folder, "killed"), status=1)
    calm.compare("killed")
    again = finish(start(calm.data_dir, calm.folder, "killed"), status=1)
    assert again["documents"]["unchanged"] == DOCUMENTS + 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_over_ray_data_the_rows_are_the_same_also_after_a_kill(calm: Ingested) -> None:
    over_ray = {"RAG_INGEST__RAY_DOCUMENTS": "1"}
    process = start(calm.data_dir, calm.folder, "ray", variables=over_ray)
    store = MilvusStore(calm.uri, timeout_s=20)
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
    again, errors = start(calm.data_dir, calm.folder, "ray", variables=over_ray).communicate(timeout=300)
    assert "over Ray Data" in errors
    assert again, errors  # no report: the run itself failed, and says why
    assert json.loads(again)["failures"] == calm.report["failures"]
    calm.compare("ray")
