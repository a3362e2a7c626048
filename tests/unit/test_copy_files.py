"""A new index version from the documents' files; what has none is made of its stored text, and nothing else is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ingest.copy_chunks import Copied, Files
from ingest.load import document_id_of, hash_file
from rag.config import Settings
from rag.errors import RagError
from rag.filters import Equals
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


def files(store: InMemoryStore, settings: Settings) -> Files:
    given: Any = (store, embed, str.lower, count_words, FINGERPRINT, settings)
    return Files(*given, on_written=lambda count: None, say=print)


def copy(
    settings: Settings,
    *sources: str,
    revision: str | None = None,
    text: str = "text",
    check: Callable[[], None] = lambda: None,
) -> tuple[Copied, InMemoryStore]:
    """A collection `old` with a document of each source, copied to `new`; `revision`: instead of their files'."""
    store = InMemoryStore()
    store.ensure_collection("old", FINGERPRINT)
    for source in sources:
        identity = document_id_of(source)
        known = revision or (
            hash_file(Path(source), 10_000) if Path(source).is_absolute() and _exists(source) else "r1"
        )
        chunk = Chunk(f"{identity}:0", identity, known, 0, text, 0, len(text))
        vector = np.ones(FINGERPRINT.dimension, np.float32)
        store.upsert("old", [StoredChunk(chunk, vector, "text", "t", source, ("g",), {}, 1, None, "1")])
    store.ensure_collection("new", FINGERPRINT)
    return files(store, settings)("old", "new", check), store


def _exists(source: str) -> bool:
    return os.path.isfile(source)  # noqa: PTH113, Path.is_file raises for some of these names


def texts(store: InMemoryStore) -> dict[str, list[str]]:
    """The new version's texts by source."""
    found = store.stored_documents("new")
    return {one.source: [chunk.text for chunk in store.chunks("new", one.document_id)] for one in found}


def sources(store: InMemoryStore) -> list[str]:
    return [document.source for document in store.stored_documents("new")]


def test_what_has_its_file_is_read_again(settings: Settings, folder: Path) -> None:
    given = [(folder / "a.md").as_posix(), (folder / "b.md").as_posix()]
    copied, store = copy(settings, *given)
    assert (copied.rebuilt, copied.failures) == (0, ())
    assert sources(store) == given
    assert {document.acl for document in store.stored_documents("new")} == {("g",)}


@pytest.mark.parametrize(
    "source",
    [
        "a.md",
        "*.md",
        "upload/x.md",
        "{folder}/*.md",
        "{folder}/**",
        "{folder}",
        "{folder}/gone.md",
        "/" + "x" * 300,
        "/\x00",
    ],
)
def test_a_source_that_names_no_file_keeps_its_stored_text(settings: Settings, folder: Path, source: str) -> None:
    source = source.format(folder=folder)
    copied, store = copy(settings, source)
    assert (copied.chunks, copied.rebuilt, copied.failures) == (1, 1, ())
    assert texts(store) == {source: ["text"]}


def test_what_its_file_no_longer_gives_keeps_its_stored_text(settings: Settings, folder: Path) -> None:
    link = folder / "link.md"
    link.symlink_to("a.md")
    rows = folder / "rows.jsonl"
    rows.write_text('{"id": "r", "text": "A row."}\n')
    binary = folder / "binary.md"
    binary.write_bytes(b"\0\1\2")
    kept = folder / "b.md"
    copied, store = copy(settings, *(path.as_posix() for path in (link, rows, binary, kept)))
    assert (copied.rebuilt, copied.failures) == (3, ())
    assert [texts(store)[path.as_posix()] for path in (link, rows, binary)] == [["text"]] * 3
    assert len(texts(store)[kept.as_posix()]) == 6


def test_a_file_that_the_document_was_not_made_of_is_not_read(settings: Settings, folder: Path) -> None:
    """A client's row may name any file of the machine as its source."""
    source = (folder / "a.md").as_posix()
    copied, store = copy(settings, source, revision="what the row's own text gave")
    assert copied.rebuilt == 1
    assert texts(store) == {source: ["text"]}
    assert {document.acl for document in store.stored_documents("new")} == {("g",)}


def test_a_document_that_cannot_be_made_is_told(settings: Settings, folder: Path) -> None:
    copied, store = copy(settings, "upload/x.md", text="   ")
    assert [failure.source for failure in copied.failures] == ["upload/x.md"]
    assert "no text" in copied.failures[0].reason
    assert sources(store) == []


def test_a_run_that_was_killed_makes_the_rest(settings: Settings, folder: Path) -> None:
    given = [f"upload/{name}" for name in "abcdefgh"]
    once, store = copy(settings, *given)
    assert once.rebuilt == 8
    store.delete("new", Equals("source", "upload/c"))
    again = files(store, settings)("old", "new", lambda: None)
    assert (again.chunks, again.rebuilt) == (1, 1)
    assert sources(store) == given


def test_nothing_is_written_once_another_run_has_taken_over(settings: Settings, folder: Path) -> None:
    def taken_over() -> None:
        raise RagError("taken over")

    with pytest.raises(RagError, match="taken over"):
        copy(settings, "upload/x.md", check=taken_over)
