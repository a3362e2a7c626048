"""A new index version from the documents' files: what has none is told, and nothing else is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.copy_chunks import Copied, Files
from ingest.load import document_id_of, hash_file
from rag.config import Settings
from rag.types import Chunk, StoredChunk
from tests.fakes import InMemoryStore
from tests.ingest_fakes import FINGERPRINT, count_words, embed, paragraphs, small_settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return small_settings().model_copy(update={"data_dir": tmp_path / "data"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current one; it holds `a.md` and `b.md`."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in "ab":
        (docs / f"{name}.md").write_text(paragraphs(name))
    monkeypatch.chdir(docs)
    return docs


def copy(settings: Settings, *sources: str, revision: str | None = None) -> tuple[Copied, InMemoryStore]:
    """A collection `old` with a document of each source, copied to `new`; `revision`: instead of their files'."""
    store = InMemoryStore()
    store.ensure_collection("old", FINGERPRINT)
    for source in sources:
        identity = document_id_of(source)
        known = revision or (
            hash_file(Path(source), 10_000) if Path(source).is_absolute() and _exists(source) else "r1"
        )
        chunk = Chunk(f"{identity}:0", identity, known, 0, "text", 0, 4)
        vector = np.ones(FINGERPRINT.dimension, np.float32)
        store.upsert("old", [StoredChunk(chunk, vector, "text", "t", source, ("g",), {}, 1, None, "1")])
    given: Any = (store, embed, str.lower, count_words, FINGERPRINT, settings)
    store.ensure_collection("new", FINGERPRINT)
    return Files(*given, on_written=lambda count: None, say=print)("old", "new", lambda: None), store


def _exists(source: str) -> bool:
    return os.path.isfile(source)  # noqa: PTH113, Path.is_file raises for some of these names


def sources(store: InMemoryStore) -> list[str]:
    return [document.source for document in store.stored_documents("new")]


def test_what_has_its_file_is_read_again(settings: Settings, folder: Path) -> None:
    given = [(folder / "a.md").as_posix(), (folder / "b.md").as_posix()]
    copied, store = copy(settings, *given)
    assert copied.failures == ()
    assert sources(store) == given
    assert {document.acl for document in store.stored_documents("new")} == {("g",)}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("a.md", "its source is no absolute path"),
        ("*.md", "its source is no absolute path"),
        ("upload/x.md", "its source is no absolute path"),
        ("{folder}/*.md", "there is no such file"),
        ("{folder}/**", "there is no such file"),
        ("{folder}", "there is no such file"),
        ("{folder}/gone.md", "there is no such file"),
        ("/" + "x" * 300, "there is no such file"),
        ("/\x00", "there is no such file"),
    ],
)
def test_a_source_that_names_no_file_is_a_failure_and_nothing_is_read(
    settings: Settings, folder: Path, source: str, told: str
) -> None:
    source = source.format(folder=folder)
    copied, store = copy(settings, source)
    (failure,) = copied.failures
    assert failure.source == source
    assert told in failure.reason
    assert copied.chunks == 0
    assert sources(store) == []


def test_a_document_that_its_file_no_longer_gives_is_a_failure(settings: Settings, folder: Path) -> None:
    link = folder / "link.md"
    link.symlink_to("a.md")
    rows = folder / "rows.jsonl"
    rows.write_text('{"id": "r", "text": "A row."}\n')
    kept = (folder / "b.md").as_posix()
    copied, store = copy(settings, link.as_posix(), rows.as_posix(), kept)
    assert sorted(failure.source for failure in copied.failures) == [link.as_posix(), rows.as_posix()]
    assert all("no longer gives this document" in failure.reason for failure in copied.failures)
    assert sources(store) == [kept]


def test_a_file_that_cannot_be_read_is_told_once(settings: Settings, folder: Path) -> None:
    (folder / "a.md").write_bytes(b"\0\1\2")
    copied, _ = copy(settings, (folder / "a.md").as_posix())
    (failure,) = copied.failures
    assert "binary" in failure.reason


def test_a_file_that_the_document_was_not_made_of_is_not_read(settings: Settings, folder: Path) -> None:
    """A client's row may name any file of the machine as its source."""
    source = (folder / "a.md").as_posix()
    copied, store = copy(settings, source, revision="what the row's own text gave")
    assert [failure.source for failure in copied.failures] == [source]
    assert "not what the document was made of" in copied.failures[0].reason
    assert sources(store) == []
