"""Ingestion into a collection that was reindexed: the old index version stays whole for the services that read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rag.config import Settings
from rag.filters import Filter
from rag.step_settings import ChunkSettings
from rag.types import StoredChunk
from tests.fakes import InMemoryStore
from tests.ingest_fakes import COLLECTION, Store, ingest, kill, paragraphs, rows, small_settings, write_document


class Versions:
    """Two ready versions of one collection, as MilvusStore has them: the new one is written to and read."""

    def __init__(self, new: Store, old: Store) -> None:
        self._new = new
        self._old = old

    def __getattr__(self, name: str) -> Any:
        return getattr(self._new, name)

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        self._new.upsert(collection, rows)

    def delete(self, collection: str, where: Filter, *, everywhere: bool = True) -> None:
        self._new.delete(collection, where)
        if everywhere:
            self._old.delete(collection, where)


def in_large_chunks() -> Settings:
    return small_settings().model_copy(update={"chunk": ChunkSettings(max_tokens=200, overlap_tokens=0)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_document(tmp_path)


@pytest.fixture
def old(path: Path) -> Store:
    store = Store()
    ingest(store, path)
    return store


@pytest.fixture
def versions(path: Path, old: Store) -> Versions:
    """The new one holds the document in fewer chunks."""
    new = Store()
    ingest(new, path, settings=in_large_chunks())
    assert len(rows(new)) < len(rows(old))
    return Versions(new, old)


def texts(store: InMemoryStore) -> list[str]:
    return sorted(row.chunk.text for row in store._rows[COLLECTION].values())


@pytest.mark.parametrize("change", ["groups", "text"])
def test_a_document_that_is_replaced_keeps_all_its_chunks_in_the_old_version(
    path: Path, old: Store, versions: Versions, change: str
) -> None:
    before = texts(old)
    if change == "text":
        path.write_text(paragraphs("pears"))
    acl = ["staff"] if change == "groups" else []
    assert ingest(versions, path, settings=in_large_chunks(), acl=acl).replaced == 1
    assert texts(old) == before
    fresh = Store()
    ingest(fresh, path, settings=in_large_chunks(), acl=acl)
    assert rows(versions._new) == rows(fresh)


@pytest.mark.parametrize("lost", [False, True], ids=["journal", "journal lost"])
def test_what_a_killed_run_left_is_removed_from_the_new_version_alone(
    path: Path, old: Store, versions: Versions, lost: bool
) -> None:
    before = texts(old)
    path.write_text(paragraphs("pears"))
    ingest(versions, path, settings=in_large_chunks())
    path.write_text(paragraphs("plums", 40))
    assert kill(versions, 3, path, settings=in_large_chunks())
    if lost:
        versions.journal.unlink()
    path.unlink()
    ingest(versions, path.parent, settings=in_large_chunks())
    assert texts(old) == before
    assert "plums" not in str(texts(versions._new))


def test_a_document_that_moved_goes_from_the_old_version(path: Path, old: Store, versions: Versions) -> None:
    path.rename(path.with_name("b.txt"))
    assert ingest(versions, path.parent, settings=in_large_chunks()).replaced == 1
    assert texts(old) == []


def test_a_document_that_is_pruned_goes_from_the_old_version(path: Path, old: Store, versions: Versions) -> None:
    path.unlink()
    assert ingest(versions, path.parent, settings=in_large_chunks(), prune=True).removed == 1
    assert texts(old) == []
