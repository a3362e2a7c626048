"""The documents of a collection as a caller may see them: found, listed page by page, deleted."""

from __future__ import annotations

import base64
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from rag.errors import InputError, UnknownDocumentError
from rag.filters import And, Equals, Filter
from rag.types import Groups, StoredDocument


class DocumentStore(Protocol):
    """What is needed of a store here."""

    def stored_documents(self, collection: str, where: Filter | None = None) -> Sequence[StoredDocument]:
        """An entry for each complete revision that `where` means, by source, ties by id; all where it is None.

        Raises UnknownCollectionError.
        """

    def delete(self, collection: str, where: Filter) -> None:
        """Every row that matches; a search that starts afterwards sees none of them."""


def list_documents(
    store: DocumentStore, collection: str, groups: Groups, where: Filter | None = None
) -> list[StoredDocument]:
    """The documents that somebody in these groups may see, each once, by source, ties by id; of those that `where`
    means, where it is given."""
    latest: dict[str, StoredDocument] = {}
    for document in store.stored_documents(collection, where):
        known = latest.get(document.document_id)
        # While a revision takes the place of another, both are there.
        if known is None or known.updated_at < document.updated_at:
            latest[document.document_id] = document
    return sorted((one for one in latest.values() if may_see(one.acl, groups)), key=_place)


def find_document(store: DocumentStore, collection: str, document_id: str, groups: Groups) -> StoredDocument:
    """Raises UnknownDocumentError, also for one that these groups may not see."""
    for document in list_documents(store, collection, groups, Equals("document_id", document_id)):
        return document
    raise UnknownDocumentError(f"the collection {collection!r} has no document {document_id[:80]!r}")


def delete_document(
    store: DocumentStore, collection: str, document_id: str, groups: Groups, *, ingesting: bool
) -> StoredDocument:
    """The document that was there; a search that starts afterwards finds nothing of it. Raises as `find_document`.

    `ingesting`: somebody may be writing to the collection. Only complete revisions go then, told from one that is being
    written, perhaps of the same bytes, by when they were: that one would be left without its first chunks.
    """
    document = find_document(store, collection, document_id, groups)
    whole = Equals("document_id", document_id)
    if not ingesting:
        store.delete(collection, whole)
        return document
    for one in store.stored_documents(collection, whole):
        written = And((Equals("revision", one.revision), Equals("updated_at", one.updated_at)))
        store.delete(collection, And((whole, written)))
    return document


def next_page(
    documents: Sequence[StoredDocument], cursor: str | None, limit: int
) -> tuple[Sequence[StoredDocument], str | None]:
    """At most `limit` of the listed documents, those after `cursor`, and the cursor of the page after; None: the last.

    A document that comes or goes between two pages moves none of the others. Raises InputError for a cursor that was
    not given here.
    """
    after = _read_cursor(cursor) if cursor is not None else None
    rest = [one for one in documents if after is None or _place(one) > after]
    page = rest[:limit]
    return page, _write_cursor(page[-1]) if len(rest) > limit else None


def document_body(document: StoredDocument) -> dict[str, Any]:
    """A document as the command line and HTTP show it."""
    names = ("document_id", "source", "title", "revision", "chunks", "pages", "acl", "metadata", "updated_at")
    fields = asdict(document)
    return {name: fields[name] for name in names}


def may_see(acl: Collection[str], groups: Groups) -> bool:
    """Whether somebody in these groups may see what `acl` is said of; without any, everyone may."""
    return groups is None or not acl or not groups.isdisjoint(acl)


def _place(document: StoredDocument) -> tuple[str, str]:
    return document.source, document.document_id


def _write_cursor(document: StoredDocument) -> str:
    place = json.dumps(_place(document), ensure_ascii=False)  # escapes would make it too long for a URL
    return base64.urlsafe_b64encode(place.encode("utf-8")).decode("ascii").rstrip("=")


def _read_cursor(cursor: str) -> tuple[str, str]:
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        place = json.loads(base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True))
        source, document_id = place
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"the cursor {cursor[:80]!r} is none that was given here; leave it out to begin anew"
        ) from error
    if not isinstance(source, str) or not isinstance(document_id, str):
        raise InputError(f"the cursor {cursor[:80]!r} is none that was given here; leave it out to begin anew")
    return source, document_id
