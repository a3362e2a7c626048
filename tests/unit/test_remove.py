"""What was deleted does not come back: what a killed run was writing of it is not finished by the next one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ingest.documents import list_documents
from ingest.journal import Journal, open_journal, unless_ingesting
from ingest.load import document_id_of
from ingest.pipeline import IngestReport, ingest_documents
from ingest.prepare import prepare_here
from ingest.remove import remove_collection, remove_document
from rag.config import Settings
from rag.errors import UnknownCollectionError, UnknownDocumentError
from tests.fakes import InMemoryStore
from tests.ingest_fakes import (
    COLLECTION,
    FINGERPRINT,
    Countdown,
    DyingStore,
    Killed,
    count_words,
    embed,
    paragraphs,
    write_document,
)
from tests.ingest_fakes import small_settings as _settings

UNDISTURBED = Countdown(-1)
KILLED_AFTER = 2  # of the rows: some of the new revision are in the store


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return _settings().model_copy(update={"data_dir": tmp_path / "data"})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_document(tmp_path)


def ingest(
    store: InMemoryStore,
    settings: Settings,
    *paths: Path,
    before_write: Callable[[], None] = UNDISTURBED,
    metadata: dict[str, Any] | None = None,
    acl: Sequence[str] = (),
) -> IngestReport:
    with open_journal(settings, COLLECTION, print) as journal:
        return ingest_documents(
            paths,
            store=DyingStore(store, before_write),
            journal=journal,
            embed=embed,
            analyze=str.lower,
            prepare=prepare_here(settings, count_words),
            fingerprint=FINGERPRINT,
            settings=settings,
            say=print,
            collection=COLLECTION,
            metadata=metadata,
            acl=acl,
        )


@pytest.fixture
def store(settings: Settings, path: Path) -> InMemoryStore:
    """It holds the document, and a changed revision of it in part: the run was killed."""
    opened = InMemoryStore()
    ingest(opened, settings, path)
    path.write_text(paragraphs("pears"))
    with pytest.raises(Killed):
        ingest(opened, settings, path, before_write=Countdown(KILLED_AFTER))
    return opened


def files(settings: Settings) -> list[Path]:
    return [file for file in (settings.data_dir / "journal").iterdir() if file.suffix != ".lock"]


def test_a_deleted_document_is_not_finished_by_the_next_run(store: InMemoryStore, settings: Settings) -> None:
    (document,) = list_documents(store, COLLECTION, None)
    assert remove_document(store, settings, COLLECTION, document.document_id, None) == document
    assert store.chunks(COLLECTION, document.document_id) == []
    ingest(store, settings)
    assert list_documents(store, COLLECTION, None) == []
    with pytest.raises(UnknownDocumentError):
        remove_document(store, settings, COLLECTION, document.document_id, None)


def test_a_document_that_the_caller_may_not_see_is_not_forgotten(store: InMemoryStore, settings: Settings) -> None:
    (document,) = list_documents(store, COLLECTION, None)
    with pytest.raises(UnknownDocumentError):
        remove_document(store, settings, COLLECTION, "nobody's", frozenset())
    ingest(store, settings)
    assert list_documents(store, COLLECTION, None) != [document]  # it was finished


def half_ingested(settings: Settings, path: Path, **options: Any) -> tuple[InMemoryStore, str]:
    """A store with the first rows of a document that never was complete, and its id."""
    store = InMemoryStore()
    with pytest.raises(Killed):
        ingest(store, settings, path, before_write=Countdown(KILLED_AFTER), **options)
    return store, document_id_of(str(path))


def test_what_is_there_of_a_document_that_never_was_complete_is_deleted(settings: Settings, path: Path) -> None:
    store, document_id = half_ingested(settings, path)
    assert list_documents(store, COLLECTION, None) == []
    assert len(store.chunks(COLLECTION, document_id)) == KILLED_AFTER
    deleted = remove_document(store, settings, COLLECTION, document_id, frozenset())
    assert (deleted.document_id, deleted.source) == (document_id, str(path))
    assert store.chunks(COLLECTION, document_id) == []
    ingest(store, settings)
    assert list_documents(store, COLLECTION, None) == []
    with pytest.raises(UnknownDocumentError):
        remove_document(store, settings, COLLECTION, document_id, None)


def test_one_that_the_caller_may_not_see_or_that_is_being_written_is_not(settings: Settings, path: Path) -> None:
    store, document_id = half_ingested(settings, path, acl=["staff"])
    with pytest.raises(UnknownDocumentError):
        remove_document(store, settings, COLLECTION, document_id, frozenset({"others"}))
    with unless_ingesting(settings, COLLECTION), pytest.raises(UnknownDocumentError):
        remove_document(store, settings, COLLECTION, document_id, None)
    assert len(store.chunks(COLLECTION, document_id)) == KILLED_AFTER
    remove_document(store, settings, COLLECTION, document_id, frozenset({"staff"}))
    assert store.chunks(COLLECTION, document_id) == []


def test_a_hidden_document_is_not_deleted_because_a_change_of_it_would_be_seen(settings: Settings, path: Path) -> None:
    store = InMemoryStore()
    ingest(store, settings, path, acl=["staff"])
    with pytest.raises(Killed):
        ingest(store, settings, path, before_write=Countdown(KILLED_AFTER), acl=["all"])
    (document,) = list_documents(store, COLLECTION, None)
    with pytest.raises(UnknownDocumentError):
        remove_document(store, settings, COLLECTION, document.document_id, frozenset({"all"}))
    assert list_documents(store, COLLECTION, None) == [document]


def test_while_somebody_ingests_only_the_complete_revisions_go(store: InMemoryStore, settings: Settings) -> None:
    (document,) = list_documents(store, COLLECTION, None)
    with unless_ingesting(settings, COLLECTION):
        remove_document(store, settings, COLLECTION, document.document_id, None)
    assert {chunk.revision for chunk in store.chunks(COLLECTION, document.document_id)} - {document.revision}
    ingest(store, settings)
    assert len(list_documents(store, COLLECTION, None)) == 1


def test_a_deletion_while_the_same_revision_is_rewritten_leaves_no_holes(settings: Settings, path: Path) -> None:
    store, writes = InMemoryStore(), 0
    ingest(store, settings, path)
    (document,) = list_documents(store, COLLECTION, None)
    whole = {chunk.ordinal for chunk in store.chunks(COLLECTION, document.document_id)}

    def delete_midway() -> None:
        nonlocal writes
        writes += 1
        if writes == KILLED_AFTER:
            remove_document(store, settings, COLLECTION, document.document_id, None)

    ingest(store, settings, path, before_write=delete_midway, metadata={"year": 2024})
    assert writes > KILLED_AFTER
    assert {chunk.ordinal for chunk in store.chunks(COLLECTION, document.document_id)} == whole


def test_two_deletions_at_once_are_no_ingest(store: InMemoryStore, settings: Settings) -> None:
    (document,) = list_documents(store, COLLECTION, None)
    first_holds = threading.Event()

    def first() -> None:
        with unless_ingesting(settings, COLLECTION):
            first_holds.set()
            time.sleep(0.2)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(first)
        assert first_holds.wait(20)
        remove_document(store, settings, COLLECTION, document.document_id, None)
    ingest(store, settings)
    assert list_documents(store, COLLECTION, None) == []


def test_a_deleted_collection_made_anew_is_empty(store: InMemoryStore, settings: Settings) -> None:
    assert files(settings)
    remove_collection(store, settings, COLLECTION)
    assert files(settings) == []
    assert store.collections() == []
    ingest(store, settings)
    assert list_documents(store, COLLECTION, None) == []


def test_the_deletion_of_a_collection_can_be_repeated(store: InMemoryStore, settings: Settings) -> None:
    store.drop_collection(COLLECTION)  # as a run did that was killed after it
    with pytest.raises(UnknownCollectionError):
        remove_collection(store, settings, COLLECTION)
    assert files(settings) == []


def test_the_journal_of_somebody_who_ingests_stays(store: InMemoryStore, settings: Settings) -> None:
    with open_journal(settings, COLLECTION, print) as journal:
        assert isinstance(journal, Journal)
        remove_collection(store, settings, COLLECTION)
        assert files(settings)
        assert len(journal.all_unfinished()) == 1
    assert store.collections() == []


def test_what_a_run_was_writing_into_a_deleted_collection_does_not_come_back(settings: Settings, path: Path) -> None:
    store, writes = InMemoryStore(), 0

    def delete_midway() -> None:
        nonlocal writes
        writes += 1
        if writes == KILLED_AFTER:
            remove_collection(store, settings, COLLECTION)

    with pytest.raises(UnknownCollectionError):
        ingest(store, settings, path, before_write=delete_midway)
    store.ensure_collection(COLLECTION, FINGERPRINT)
    ingest(store, settings)
    assert list_documents(store, COLLECTION, None) == []


def test_a_collection_that_a_run_has_to_make_holds_nothing_that_a_killed_one_was_writing(
    store: InMemoryStore, settings: Settings
) -> None:
    with unless_ingesting(settings, COLLECTION):  # somebody ingests, and is killed
        remove_collection(store, settings, COLLECTION)
    ingest(store, settings)
    assert list_documents(store, COLLECTION, None) == []


def test_what_is_not_there_is_not_locked(settings: Settings) -> None:
    store = InMemoryStore()
    store.ensure_collection("known", FINGERPRINT)
    with pytest.raises(UnknownCollectionError):
        remove_document(store, settings, "nowhere", "some id", None)
    with pytest.raises(UnknownCollectionError):
        remove_collection(store, settings, "nowhere")
    with pytest.raises(UnknownDocumentError):
        remove_document(store, settings, "known", "some id", None)
    assert not settings.data_dir.exists()


def test_a_collection_that_nobody_ingested_into_is_deleted(settings: Settings) -> None:
    store = InMemoryStore()
    store.ensure_collection(COLLECTION, FINGERPRINT)
    remove_collection(store, settings, COLLECTION)
    assert store.collections() == []


def test_a_document_of_a_collection_without_a_journal_is_deleted_and_none_made(
    store: InMemoryStore, settings: Settings
) -> None:
    for file in files(settings):
        file.unlink()
    (document,) = list_documents(store, COLLECTION, None)
    remove_document(store, settings, COLLECTION, document.document_id, None)
    assert list_documents(store, COLLECTION, None) == []
    assert files(settings) == []
