"""Documents and collections removed together with what the journal would still do to them.

A deletion that is killed can be repeated: the journal lets go of a complete document before the store does, and of
another one and of a collection after it.
"""

from __future__ import annotations

from typing import Protocol

from ingest.documents import DocumentStore, delete_document, find_document, may_see
from ingest.journal import Journal, Unfinished, place_of_journal, unless_ingesting
from ingest.journal_file import failures_of, remove_file
from rag.config import Settings
from rag.errors import UnknownCollectionError
from rag.filters import Equals
from rag.types import Groups, StoredDocument


class CollectionStore(Protocol):
    """What is needed of a store here."""

    def collections(self) -> list[str]:
        """The names of all collections."""

    def drop_collection(self, name: str) -> None:
        """Removes the collection with all that is in it. Raises UnknownCollectionError."""


def remove_document(
    store: DocumentStore, settings: Settings, collection: str, document_id: str, groups: Groups
) -> StoredDocument:
    """The document that was there; no later run finishes what a killed one was writing of it.

    That may be all there is of it: no list shows it then, but its parts are found and cited. While somebody ingests
    into the collection, only complete revisions go. Raises UnknownDocumentError, also for one that these groups may not
    see, UnknownCollectionError and SettingsError.
    """
    identity, path = place_of_journal(settings, collection)
    if not path.exists():
        find_document(store, collection, document_id, groups)  # a lock makes a file, which stays
    with unless_ingesting(settings, collection) as alone:
        if not alone or not path.exists():
            return delete_document(store, collection, document_id, groups, ingesting=not alone)
        with Journal(path, identity) as journal:
            entry = journal.unfinished(document_id)
            this = Equals("document_id", document_id)
            if entry is not None and may_see(entry.acl, groups) and not store.stored_documents(collection, this):
                store.delete(collection, this)
                journal.forget(document_id)  # last: without its entry nobody would know of rows that are left
                return _as_stored(entry)
            find_document(store, collection, document_id, groups)
            journal.forget(document_id)
            return delete_document(store, collection, document_id, groups, ingesting=False)


def _as_stored(entry: Unfinished) -> StoredDocument:
    """A document that never was complete, with as many chunks as are there for certain; its title is not known."""
    return StoredDocument(
        entry.document_id,
        entry.source,
        entry.source,
        entry.revision,
        entry.written,
        None,
        entry.acl,
        entry.metadata,
        entry.updated_at,
    )


def remove_collection(store: CollectionStore, settings: Settings, name: str) -> None:
    """Removes the collection, and its journal unless somebody ingests into it now: that run fails, and keeps it.

    Raises UnknownCollectionError, after a journal that was left is gone, and SettingsError.
    """
    if not place_of_journal(settings, name)[1].exists() and name not in store.collections():
        raise UnknownCollectionError(name)  # before a lock is made for it: that is a file, which stays
    with unless_ingesting(settings, name) as alone:
        try:
            store.drop_collection(name)
        except UnknownCollectionError:
            if alone:
                remove_journal(settings, name)
            raise
        if alone:
            remove_journal(settings, name)


def remove_journal(settings: Settings, collection: str) -> None:
    """Removes the collection's journal, which nobody uses now; nothing where there is none. Raises SettingsError."""
    _, path = place_of_journal(settings, collection)
    with failures_of(path):
        remove_file(path)
