"""Uploads split anew from their stored text: killed at any write, and while they are deleted or replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.chunk import embedding_text
from ingest.copy_chunks import Copied, Files
from ingest.load import document_id_of, revision_of
from ingest.prepare import chunk_parsed
from rag.config import Settings
from rag.filters import Equals
from rag.types import Document, Page, ParsedDocument, StoredChunk
from tests.fakes import InMemoryStore
from tests.ingest_fakes import (
    FINGERPRINT,
    Countdown,
    DyingStore,
    Killed,
    count_words,
    embed,
    paragraphs,
    small_settings,
)

NAMES = ("upload/a.md", "upload/b.md", "upload/c.md")
Change = Callable[[InMemoryStore], None]


def upload(store: InMemoryStore, source: str, text: str, group: str = "g") -> None:
    """Makes the document the only one of its source."""
    document = Document(document_id_of(source), source, revision_of(text.encode()), "", (group,))
    chunks = chunk_parsed(ParsedDocument(document, "t", (Page(1, text, 0),)), small_settings(), count_words)
    at = f"{group} {document.revision}"
    store.delete("old", Equals("document_id", document.document_id))
    rows = [
        StoredChunk(chunk, one.vector, "t", "t", source, (group,), {}, len(chunks), None, at)
        for chunk, one in zip(chunks, embed([embedding_text(chunk) for chunk in chunks]), strict=True)
    ]
    store.upsert("old", rows)


def collection() -> InMemoryStore:
    """Three uploads of six chunks in `old`, and an empty `new`."""
    store = InMemoryStore()
    store.ensure_collection("old", FINGERPRINT)
    store.ensure_collection("new", FINGERPRINT)
    for name in NAMES:
        upload(store, name, paragraphs(name))
    return store


def copy(store: Any, data_dir: Path) -> Copied:
    settings: Settings = small_settings().model_copy(update={"data_dir": data_dir})
    given: Any = (store, embed, str.lower, count_words, FINGERPRINT, settings)
    return Files(*given, on_written=lambda count: None, say=lambda _: None)("old", "new", lambda: None)


def new_rows(store: InMemoryStore) -> dict[str, tuple[Any, ...]]:
    return {name: (row.chunk, row.acl, row.updated_at) for name, row in store._rows["new"].items()}


def undisturbed(store: InMemoryStore, data_dir: Path) -> dict[str, tuple[Any, ...]]:
    """What a copy of the same `old` gives that nothing stopped."""
    fresh = InMemoryStore()
    for name in ("old", "new"):
        fresh.ensure_collection(name, FINGERPRINT)
    fresh.upsert("old", list(store._rows["old"].values()))
    copy(fresh, data_dir)
    return new_rows(fresh)


def nothing(store: InMemoryStore) -> None:
    """The collection stays as it is."""


def delete_one(store: InMemoryStore) -> None:
    store.delete("old", Equals("source", NAMES[0]))


def delete_all(store: InMemoryStore) -> None:
    for name in NAMES:
        store.delete("old", Equals("source", name))


def replace_one(store: InMemoryStore) -> None:
    upload(store, NAMES[1], paragraphs("other", 4))


def shut_one(store: InMemoryStore) -> None:
    upload(store, NAMES[1], paragraphs(NAMES[1]), "other")


def open_one(store: InMemoryStore) -> None:
    upload(store, NAMES[1], paragraphs(NAMES[1]))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(None, nothing, id="nothing"),
        pytest.param(None, delete_one, id="one_deleted"),
        pytest.param(None, delete_all, id="all_deleted"),
        pytest.param(None, replace_one, id="one_replaced"),
        pytest.param(shut_one, open_one, id="given_to_a_group_and_back"),
        pytest.param(replace_one, open_one, id="replaced_and_back"),
        pytest.param(delete_one, nothing, id="deleted_after_a_whole_copy"),
    ],
)
def test_a_copy_killed_at_any_write_is_made_good_by_the_next(
    before: Change | None, after: Change, tmp_path: Path
) -> None:
    writes = 0
    while True:
        store, data = collection(), tmp_path / str(writes)
        if before is not None:  # the killed copy is a second one, of what changed since the first
            copy(store, data)
            before(store)
        try:
            copy(DyingStore(store, Countdown(writes)), data)
        except Killed:
            after(store)
            assert copy(store, data).failures == ()
            assert new_rows(store) == undisturbed(store, tmp_path / f"{writes} undisturbed"), f"after {writes} writes"
            writes += 1
        else:
            break
    assert writes > 0


@pytest.mark.parametrize("change", [delete_one, delete_all, replace_one])
def test_what_changes_while_it_is_copied_is_left_to_the_next_copy(change: Change, tmp_path: Path) -> None:
    store = collection()
    changes = iter([change])

    class Watched(DyingStore):
        """Changes the old version between the list of its documents and the first reading of their rows."""

        def every_chunk(self, *given: Any) -> Any:
            next(changes, nothing)(store)
            return self._store.every_chunk(*given)

    assert copy(Watched(store, lambda: None), tmp_path).failures == ()
    assert next(changes, None) is None
    assert copy(store, tmp_path).failures == ()
    assert new_rows(store) == undisturbed(store, tmp_path / "undisturbed")
