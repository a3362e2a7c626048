"""`rag documents` and `rag collections` on a Milvus Lite."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ingest.fingerprint import index_fingerprint
from ingest.journal import Unfinished, open_journal
from ingest.load import document_id_of
from rag.cli import main
from rag.config import load_settings
from rag.connect import open_store
from rag.embedded_store import ensure_server
from rag.types import Chunk, StoredChunk

pytestmark = pytest.mark.skipif(importlib.util.find_spec("milvus_lite") is None, reason="milvus-lite: the cpu extra")

SOURCES = ("upload/b.md", "upload/메모.pdf")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two documents of two chunks in the collection `docs`."""
    for name in [name for name in os.environ if name.startswith("RAG_")]:
        monkeypatch.delenv(name)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"hidden_size": 8}', encoding="utf-8")
    monkeypatch.setenv("RAG_EMBEDDER__MODEL", str(model))
    monkeypatch.setenv("RAG_DATA_DIR", str(tmp_path / "data"))
    settings = load_settings()
    with ensure_server(settings.data_dir, start_timeout_s=30, idle_s=1):
        fingerprint = index_fingerprint(settings)
        with open_store(settings, fingerprint) as opened:
            opened.ensure_collection("docs", fingerprint)
            for source in SOURCES:
                identity = document_id_of(source)
                pages = 3 if source.endswith(".pdf") else None
                vector = np.eye(8, dtype=np.float32)[0]
                for number in range(2):
                    start = 6 * number
                    chunk = Chunk(
                        f"{identity}:{number}", identity, "r1", number, "text", start, start + 4, lead="\n\n" * number
                    )
                    acl, metadata = ("staff",), {"year": 2024}
                    row = StoredChunk(chunk, vector, "text", "제목", source, acl, metadata, 2, pages, "2026-01-01")
                    opened.upsert("docs", [row])
        yield


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def read_json(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.usefixtures("store")
def test_an_operator_lists_shows_and_deletes_every_document() -> None:
    listed = read_json("documents", "list", "--collection", "docs")
    assert [one["source"] for one in listed["documents"]] == list(SOURCES)
    pdf = listed["documents"][1]
    assert pdf == {
        "document_id": document_id_of(SOURCES[1]),
        "source": SOURCES[1],
        "title": "제목",
        "revision": "r1",
        "chunks": 2,
        "pages": 3,
        "acl": ["staff"],
        "metadata": {"year": 2024},
        "updated_at": "2026-01-01",
    }
    assert read_json("documents", "show", pdf["document_id"], "--collection", "docs") == {"documents": [pdf]}
    with_text = read_json("documents", "show", pdf["document_id"], "--collection", "docs", "--text")
    assert with_text == {"documents": [pdf | {"text": "text\n\ntext"}]}
    shown = run("documents", "show", pdf["document_id"], "--collection", "docs").stdout
    assert {"source: upload/메모.pdf", "pages: 3", "acl: staff", "metadata: year=2024"} <= set(shown.splitlines())
    assert SOURCES[1] in run("documents", "list", "--collection", "docs").stdout
    deleted = run("documents", "delete", pdf["document_id"], "--collection", "docs")
    assert deleted.stdout == f"deleted {pdf['document_id']}  {SOURCES[1]}\n"
    left = read_json("documents", "list", "--collection", "docs")["documents"]
    assert [one["source"] for one in left] == [SOURCES[0]]
    for command in ("show", "delete"):
        gone = run("documents", command, pdf["document_id"], "--collection", "docs")
        assert (gone.exit_code, gone.stdout) == (2, "")
        assert "no document" in gone.stderr


@pytest.mark.usefixtures("store")
def test_collections_are_made_listed_and_deleted() -> None:
    made = read_json("collections", "create", "notes")["collections"]
    assert [one["name"] for one in made] == ["notes"]
    assert made == read_json("collections", "create", "notes")["collections"]
    listed = read_json("collections", "list")["collections"]
    assert [one["name"] for one in listed] == ["docs", "notes"]
    assert {one["index_version"] for one in listed} == {made[0]["index_version"]}
    assert read_json("documents", "list", "--collection", "notes") == {"documents": []}
    assert run("collections", "delete", "notes").stdout == "deleted notes\n"
    read_json("collections", "create", "notes")
    assert read_json("collections", "delete", "notes") == {"collections": [{"name": "notes"}]}
    gone = run("documents", "list", "--collection", "notes")
    assert gone.exit_code == 2
    assert "notes" in gone.stderr


@pytest.mark.usefixtures("store")
def test_what_is_deleted_takes_its_part_of_the_journal_along() -> None:
    settings = load_settings()
    identity = document_id_of(SOURCES[0])
    with open_journal(settings, "docs", print) as journal:
        journal.begin([Unfinished(identity, "r2", SOURCES[0], SOURCES[0], (), {}, "v", "2026-01-02")])
    assert run("documents", "delete", identity, "--collection", "docs").exit_code == 0
    with open_journal(settings, "docs", print) as journal:
        assert (journal.fault, journal.all_unfinished()) == ("", [])
    assert run("collections", "delete", "docs").exit_code == 0
    with open_journal(settings, "docs", print) as journal:
        assert journal.fault == "is new"


@pytest.mark.usefixtures("store")
def test_a_name_that_no_collection_can_have_is_refused() -> None:
    result = run("collections", "create", "a b")
    assert result.exit_code == 2
    assert "cannot name a collection" in result.stderr
