"""Documents as callers may see them, over the in-memory store."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.documents import delete_document, document_body, find_document, list_documents, next_page
from rag.errors import InputError, UnknownCollectionError, UnknownDocumentError
from rag.types import Chunk, IndexFingerprint, StoredChunk, StoredDocument
from tests.fakes import InMemoryStore

FINGERPRINT = IndexFingerprint("hash", 2, True, "", "", "whole", "1")


def make_store(*documents: tuple[str, tuple[str, ...]], revision: str = "r1", updated_at: str = "1") -> InMemoryStore:
    store = InMemoryStore()
    store.ensure_collection("docs", FINGERPRINT)
    add(store, *documents, revision=revision, updated_at=updated_at)
    return store


def add(store: InMemoryStore, *documents: tuple[str, tuple[str, ...]], revision: str, updated_at: str) -> None:
    for source, acl in documents:
        for ordinal in range(2):
            chunk = Chunk(f"{source}:{revision}:{ordinal}", f"id-{source}", revision, ordinal, "text", 0, 4)
            row = StoredChunk(chunk, np.array([1, 0]), "text", source, source, acl, {"n": 1}, 2, None, updated_at)
            store.upsert("docs", [row])


def find(store: InMemoryStore, collection: str, document_id: str) -> StoredDocument:
    return find_document(store, collection, document_id, frozenset())


def delete(store: InMemoryStore, collection: str, document_id: str, *, ingesting: bool = False) -> StoredDocument:
    return delete_document(store, collection, document_id, frozenset(), ingesting=ingesting)


def sources(documents: Any) -> list[str]:
    return [document.source for document in documents]


def test_documents_with_groups_are_hidden_from_callers_in_none_of_them() -> None:
    store = make_store(("open", ()), ("staff", ("staff", "boss")), ("boss", ("boss",)))
    assert sources(list_documents(store, "docs", frozenset())) == ["open"]
    assert sources(list_documents(store, "docs", {"staff", "other"})) == ["open", "staff"]
    assert sources(list_documents(store, "docs", {"boss"})) == ["boss", "open", "staff"]
    assert sources(list_documents(store, "docs", None)) == ["boss", "open", "staff"]


def test_a_hidden_document_is_as_unknown_as_one_that_is_not_there() -> None:
    store = make_store(("staff", ("staff",)))
    messages = []
    for document_id in ("id-staff", "id-nobody"):
        for call in (find, delete):
            with pytest.raises(UnknownDocumentError) as raised:
                call(store, "docs", document_id)
            messages.append(str(raised.value).replace(document_id, "ID"))
    assert len(set(messages)) == 1
    assert find_document(store, "docs", "id-staff", {"staff"}).source == "staff"


def test_a_deleted_document_takes_all_its_chunks_along_and_no_others() -> None:
    store = make_store(("a", ()), ("b", ()))
    assert delete(store, "docs", "id-a").source == "a"
    assert store.chunks("docs", "id-a") == []
    assert len(store.chunks("docs", "id-b")) == 2
    with pytest.raises(UnknownDocumentError):
        delete(store, "docs", "id-a")


def test_a_revision_that_is_being_written_survives_the_deletion_of_the_former_one() -> None:
    store = make_store(("a", ()), revision="old")
    chunk = Chunk("a:new:1", "id-a", "new", 1, "text", 0, 4)  # its first chunk comes last
    store.upsert("docs", [StoredChunk(chunk, np.array([1, 0]), "text", "a", "a", (), {}, 2, None, "2")])
    delete(store, "docs", "id-a", ingesting=True)
    assert [one.revision for one in store.chunks("docs", "id-a")] == ["new"]
    add(store, ("a", ()), revision="new", updated_at="2")
    delete(store, "docs", "id-a")
    assert store.chunks("docs", "id-a") == []


def test_while_a_revision_takes_another_s_place_the_document_is_listed_once_as_the_later_one() -> None:
    store = make_store(("a", ()), revision="old", updated_at="2026-01-01")
    add(store, ("a", ()), revision="new", updated_at="2026-01-02")
    (listed,) = list_documents(store, "docs", None)
    assert listed.revision == "new"


def test_an_unknown_collection_is_named() -> None:
    with pytest.raises(UnknownCollectionError):
        list_documents(make_store(), "nope", None)


def test_a_body_has_the_contract_s_fields() -> None:
    (document,) = list_documents(make_store(("a", ("staff",))), "docs", None)
    assert document_body(document) == {
        "document_id": "id-a",
        "source": "a",
        "title": "a",
        "revision": "r1",
        "chunks": 2,
        "pages": None,
        "acl": ("staff",),
        "metadata": {"n": 1},
        "updated_at": "1",
    }


def document(source: str) -> StoredDocument:
    return StoredDocument(f"id-{source}", source, "", "r", 1, None, (), {}, "")


@given(names=st.sets(st.text(max_size=5)), limit=st.integers(1, 7))
def test_pages_joined_are_the_whole_list(names: set[str], limit: int) -> None:
    listed = [document(name) for name in sorted(names)]
    seen: list[StoredDocument] = []
    cursor: str | None = None
    while True:
        page, cursor = next_page(listed, cursor, limit)
        assert len(page) <= limit
        seen += page
        if cursor is None:
            break
        assert page
    assert seen == listed


def test_a_document_that_comes_or_goes_moves_no_other_between_two_pages() -> None:
    first, cursor = next_page([document(name) for name in "bdfh"], None, 2)
    second, end = next_page([document(name) for name in "acdfhi"], cursor, 10)
    assert (sources(first), sources(second), end) == (["b", "d"], ["f", "h", "i"], None)


def test_a_cursor_is_short_enough_for_the_route_whatever_the_documents_are_called() -> None:
    names = [f"{number}" + "🙂" * 999 for number in range(2)]
    listed = [replace(document(name), document_id=name[0] * 64) for name in names]
    (first,), cursor = next_page(listed, None, 1)
    assert cursor is not None
    assert len(cursor) <= 8000
    (second,), end = next_page(listed, cursor, 1)
    assert ([first.source, second.source], end) == (names, None)


NESTED = base64.urlsafe_b64encode(b"[" * 6000).decode()


@pytest.mark.parametrize("cursor", ["", "x", "가", "e30", "WzEsMl0", "bnVsbA", "WyJhIl0", "a" * 5001, NESTED])
def test_a_cursor_that_was_not_given_here_is_refused(cursor: str) -> None:
    with pytest.raises(InputError, match="cursor"):
        next_page([document("a")], cursor, 1)
