"""Ingests into Milvus Lite that are killed: the rerun ends in the rows of a run that was left alone."""

import asyncio
import importlib.util
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.journal import Journal
from rag.embedded_store import EmbeddedServer, ensure_server
from rag.filters import And
from rag.store import MilvusStore
from tests import crash
from tests.fakes import HashEmbedder
from tests.ingest_fakes import COLLECTION, DyingJournal, ForgetfulJournal, kill, lay_out, paragraphs
from tests.ingest_fakes import FINGERPRINT as SMALL
from tests.ingest_fakes import ingest as ingest_small

pytestmark = pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="needs the cpu extra")

ROOT = Path(__file__).parents[2]
SEED = 20261121
DOCUMENTS, VERSIONS, KILLS_OF_A_VERSION = 60, 5, 6
ATTEMPTS_OF_A_KILL = 4
SETTLED_S = 30.0


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[EmbeddedServer]:
    with ensure_server(data_dir, start_timeout_s=30, idle_s=1) as running:
        yield running


def start(data_dir: Path, folder: Path) -> subprocess.Popen[str]:
    """An ingest into the collection `killed`, about to open the store."""
    command = [sys.executable, "-m", "tests.crash", str(data_dir), "killed", str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


async def found(store: MilvusStore, collection: str) -> list[list[tuple[str, float]]]:
    """What some searches give: chunk ids with scores, best first."""
    results = []
    for query in ("apple pear", "kiwi", "quince guava papaya plum", "olive date melon"):
        vector = HashEmbedder().encode([query], "query")[0]
        for result in (
            await store.dense_search(collection, vector, 10),
            await store.lexical_search(collection, query, 10),
        ):
            results.append([(hit.chunk.chunk_id, round(hit.score, 4)) for hit in result.hits])
    return results


async def expect_the_same_found(store: MilvusStore) -> None:
    """Over equal rows one BM25 score was once seen to differ, why is not known: perhaps its statistics, which the rows
    that the killed runs deleted had a part in. So they are given time, and have to agree in the end."""
    deadline = time.monotonic() + SETTLED_S
    while (killed := await found(store, "killed")) != (calm := await found(store, "calm")):
        assert time.monotonic() < deadline, f"{killed} differs from {calm}"
        await asyncio.sleep(0.5)


@pytest.mark.timeout(900)
async def test_runs_killed_at_random_instants_end_as_those_that_were_left_alone(
    tmp_path: Path, data_dir: Path, server: EmbeddedServer
) -> None:
    chance = random.Random(SEED)
    folder, settings = tmp_path / "docs", crash.crash_settings(data_dir)
    store = MilvusStore(server.uri, timeout_s=20, fingerprint=crash.FINGERPRINT)
    killed = 0
    for version, corpus in enumerate(crash.changing_corpora(SEED, DOCUMENTS, VERSIONS)):
        lay_out(folder, corpus)
        started = time.monotonic()
        report = crash.ingest(settings, store, "calm", folder)
        duration_s = time.monotonic() - started
        assert report.failed == 0
        for _ in range(KILLS_OF_A_VERSION):
            reach_s = duration_s
            for _ in range(ATTEMPTS_OF_A_KILL):
                process = start(data_dir, folder)
                await asyncio.sleep(chance.uniform(0, reach_s))
                process.kill()
                process.communicate()
                if process.returncode == -signal.SIGKILL:
                    killed += 1
                    break
                reach_s /= 2  # it ended first: the calm run was slower than this one, or there was nothing left to do
        if version % 2 and version < VERSIONS - 1:
            continue  # the next version meets what the killed runs left of this one
        last = start(data_dir, folder)
        errors = last.communicate(timeout=120)[1]
        assert last.returncode == 0, errors
        wanted = crash.stored_rows(server.uri, "calm")
        assert len({row["source"] for row in wanted}) == len(corpus)
        crash.compare_rows(crash.stored_rows(server.uri, "killed"), wanted)
        await expect_the_same_found(store)
    await store.aclose()
    assert killed >= 25


class LiteStore(MilvusStore):
    """A collection of Milvus Lite and its journal."""

    journal: Path


@pytest.fixture
def lite(tmp_path: Path, server: EmbeddedServer) -> Iterator[LiteStore]:
    store = LiteStore(server.uri, timeout_s=20, fingerprint=SMALL)
    store.journal = tmp_path / "journal.sqlite"
    yield store
    store.close()


OLD = {"a.txt": paragraphs("apples", 5), "b.txt": paragraphs("pears", 2)}
NEW = {"a.txt": paragraphs("figs", 5), "c.txt": paragraphs("pears", 2)}


def rows_after(
    lite: LiteStore, uri: str, folder: Path, writes: int | None, journal: type[Journal], last: dict[str, str]
) -> list[dict[str, Any]] | None:
    """What is stored after runs over OLD, NEW and `last`, the second ended before a write; None if none was left."""
    lite.ensure_collection(COLLECTION, SMALL)
    lite.delete(COLLECTION, And(()))
    lite.journal.unlink(missing_ok=True)
    lay_out(folder, OLD)
    ingest_small(lite, folder)
    lay_out(folder, NEW)
    if writes is None:
        ingest_small(lite, folder)
    elif not kill(lite, writes, folder, journal=journal):
        return None
    lay_out(folder, last)
    ingest_small(lite, folder)
    return crash.stored_rows(uri, COLLECTION)


@pytest.mark.parametrize("last", [NEW, OLD], ids=["the_same_again", "back_to_the_old"])
def test_a_run_ended_before_any_of_its_writes_is_made_good(
    tmp_path: Path, server: EmbeddedServer, lite: LiteStore, last: dict[str, str]
) -> None:
    wanted = rows_after(lite, server.uri, tmp_path / "docs", None, DyingJournal, last)
    assert wanted
    writes = 0
    while (rows := rows_after(lite, server.uri, tmp_path / "docs", writes, DyingJournal, last)) is not None:
        crash.compare_rows(rows, wanted)
        writes += 1
    assert writes > 10


def test_without_the_journals_marker_the_comparison_fails(
    tmp_path: Path, server: EmbeddedServer, lite: LiteStore
) -> None:
    wanted = rows_after(lite, server.uri, tmp_path / "docs", None, ForgetfulJournal, OLD)
    rows = rows_after(lite, server.uri, tmp_path / "docs", 3, ForgetfulJournal, OLD)
    assert wanted
    assert rows
    with pytest.raises(AssertionError):
        crash.compare_rows(rows, wanted)


@pytest.mark.parametrize("writes", [2, 8, 12])
def test_a_journal_lost_after_the_kill_is_rebuilt_from_the_store(
    tmp_path: Path, server: EmbeddedServer, lite: LiteStore, writes: int
) -> None:
    folder, said = tmp_path / "docs", list[str]()
    wanted = rows_after(lite, server.uri, folder, None, DyingJournal, NEW)
    lite.delete(COLLECTION, And(()))
    lite.journal.unlink()
    lay_out(folder, OLD)
    ingest_small(lite, folder)
    lay_out(folder, NEW)
    assert kill(lite, writes, folder)
    lite.journal.unlink()
    ingest_small(lite, folder, said=said, prune=True)  # which document the killed run moved is lost with the journal
    assert wanted
    crash.compare_rows(crash.stored_rows(server.uri, COLLECTION), wanted)
    assert "rebuilt from the store" in said[0]
