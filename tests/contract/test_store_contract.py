"""What every store does: the fake is worth nothing unless the real Milvus does the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.ingest_job import LOOKED_UP
from rag.columns import MAX_TEXT_BYTES
from rag.errors import IndexMismatchError, InputError, UnknownCollectionError
from rag.filters import And, Equals, HasAny, NotEquals, OneOf
from rag.types import Chunk, StoredChunk
from tests.store_checks import (
    DIMENSION,
    FINGERPRINT,
    ODD_TEXTS,
    OpenStore,
    Store,
    dense_ids,
    lexical_ids,
    row,
    vector,
)

# --- collections ---


def test_a_collection_is_made_listed_and_dropped(store: Store) -> None:
    assert [store.ensure_collection("made", FINGERPRINT) for _ in range(2)] == [True, False]
    assert "made" in store.collections()
    assert store.fingerprint("made") == FINGERPRINT
    store.drop_collection("made")
    assert "made" not in store.collections()


@pytest.mark.parametrize("name", ["", "1st", "a-b", "a b", "한글", "a" * 256, "a;drop", "a\n"])
def test_a_name_that_milvus_does_not_take_is_refused(store: Store, name: str) -> None:
    with pytest.raises(InputError, match="cannot name a collection"):
        store.ensure_collection(name, FINGERPRINT)


@pytest.mark.parametrize("name", ["_", "A1_b", "a" * 255])
def test_a_name_at_the_limits_is_taken(store: Store, name: str) -> None:
    store.ensure_collection(name, FINGERPRINT)
    assert name in store.collections()
    store.drop_collection(name)


async def test_an_unknown_collection_is_named(store: Store) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.fingerprint("nowhere"),
        lambda: store.upsert("nowhere", [row("a")]),
        lambda: store.delete("nowhere", Equals("ordinal", 0)),
        lambda: store.stored_documents("nowhere"),
        lambda: store.chunks("nowhere", "d1"),
        lambda: store.drop_collection("nowhere"),
    ]
    for call in calls:
        with pytest.raises(UnknownCollectionError, match="'nowhere'"):
            call()
    for search in (store.dense_search("nowhere", vector(1), 3), store.lexical_search("nowhere", "a", 3)):
        with pytest.raises(UnknownCollectionError, match="'nowhere'"):
            await search


async def test_another_fingerprint_is_refused_with_the_commands_that_mend_it(
    open_store: OpenStore, store: Store, collection: str
) -> None:
    other_fingerprint = replace(FINGERPRINT, model="bge-m3", query_prefix="query: ")
    other = open_store(other_fingerprint)
    told = f"model is 'hash', not 'bge-m3'; query_prefix.*rag collections reindex {collection}"
    with pytest.raises(IndexMismatchError, match=told):
        other.ensure_collection(collection, other_fingerprint)
    with pytest.raises(IndexMismatchError, match=told):
        other.upsert(collection, [row("a")])
    with pytest.raises(IndexMismatchError, match=told):
        await other.dense_search(collection, vector(1), 3)
    with pytest.raises(IndexMismatchError, match=told):
        await other.lexical_search(collection, "a", 3)
    assert store.stored_documents(collection) == []


async def test_a_collection_made_anew_is_checked_anew(open_store: OpenStore, new_collection: str) -> None:
    changed = replace(FINGERPRINT, splitter="other")
    before, after = open_store(FINGERPRINT), open_store(changed)
    await before.dense_search(new_collection, vector(1), 3)
    before.drop_collection(new_collection)
    after.ensure_collection(new_collection, changed)
    with pytest.raises(IndexMismatchError, match="splitter"):
        await before.dense_search(new_collection, vector(1), 3)
    assert (await after.dense_search(new_collection, vector(1), 3)).index_version == changed.index_version


async def test_a_store_without_a_fingerprint_reads_any_collection(
    open_store: OpenStore, store: Store, collection: str
) -> None:
    store.upsert(collection, [row("a")])
    found = await open_store(None).dense_search(collection, vector(1), 3)
    assert (len(found.hits), found.index_version) == (1, FINGERPRINT.index_version)


# --- rows ---


async def test_a_chunk_comes_back_as_it_was_stored(store: Store, collection: str) -> None:
    text = "  첫 줄\n\x00\ttab 'single' \"double\" \\n 😀 e\u0301 \u2028 끝  "
    chunk = Chunk("a", "d1", "r1", 0, text, 7, 7 + len(text), '안내 > "설치"', 3, 6, (0, 9, 9, 20))
    stored = row(
        "a",
        chunk=chunk,
        analyzed="첫 줄",
        title="제목\n둘째",
        metadata={"tags": ["한", 1, None], "n": {"x": 1.5}, "a\n": nested(98)},
    )
    store.upsert(collection, [stored])
    assert store.chunks(collection, "d1") == [chunk]
    hit = (await store.dense_search(collection, vector(1), 1)).hits[0]
    assert (hit.chunk, hit.title, hit.source) == (chunk, "제목\n둘째", "d1.md")
    if store.lexical_problem() is None:
        assert (await store.lexical_search(collection, "줄", 1)).hits[0].chunk == chunk
    assert dict(store.stored_documents(collection)[0].metadata) == dict(stored.metadata)


async def test_a_lead_comes_back_with_the_chunk_but_not_with_a_hit(store: Store, collection: str) -> None:
    lead = "\n\n# 제목 \x1c\u3000\t😀\r\n" + "𐀀" * 15_000
    chunk = Chunk("a", "d1", "r1", 0, "text", 20_000, 20_004, lead=lead)
    store.upsert(collection, [row("a", chunk=chunk), row("b", "d2")])
    assert store.chunks(collection, "d1") == [chunk]
    assert [found for found, _ in store.every_chunk(collection, Equals("document_id", "d1"))] == [chunk]
    assert {hit.chunk.lead for hit in (await store.dense_search(collection, vector(1), 2)).hits} == {""}


@pytest.fixture
def with_tokens(open_store: OpenStore, new_collection: str) -> Store:
    """A store whose collection keeps token vectors."""
    fingerprint = replace(FINGERPRINT, token_vectors="code")
    store = open_store(fingerprint)
    store.drop_collection(new_collection)
    store.ensure_collection(new_collection, fingerprint)
    return store


async def test_token_vectors_come_back_in_the_order_asked_for(with_tokens: Store, new_collection: str) -> None:
    kept = {"a": bytes(range(256)), "b": b"", "c": b"\x00\xff" * 9}
    with_tokens.upsert(new_collection, [row(name, token_vectors=coded) for name, coded in kept.items()])
    asked = ["c", "none", "a", "b"]
    assert await with_tokens.token_vectors(new_collection, asked) == [kept["c"], b"", kept["a"], b""]
    assert await with_tokens.token_vectors(new_collection, []) == []
    hit = (await with_tokens.dense_search(new_collection, vector(1), 1)).hits[0]
    assert hit.token_vectors == b""  # a search does not carry them
    with_tokens.upsert(new_collection, [row("a", token_vectors=b"new")])
    assert await with_tokens.token_vectors(new_collection, ["a"]) == [b"new"]
    with_tokens.delete(new_collection, Equals("document_id", "d1"))
    assert await with_tokens.token_vectors(new_collection, ["a"]) == [b""]


async def test_a_collection_that_keeps_no_token_vectors_has_none(store: Store, collection: str) -> None:
    store.upsert(collection, [row("a", token_vectors=b"some")])
    assert await store.token_vectors(collection, ["a", "b"]) == [b"", b""]


def test_a_chunk_without_pages_and_of_the_greatest_length_comes_back(store: Store, collection: str) -> None:
    longest = Chunk("a", "d1", "r1", 0, "x" * MAX_TEXT_BYTES, 0, MAX_TEXT_BYTES)
    store.upsert(collection, [row("a", chunk=longest)])
    chunk = store.chunks(collection, "d1")[0]
    assert chunk == longest
    assert (chunk.first_page, chunk.last_page, chunk.page_starts) == (None, None, ())
    assert store.stored_documents(collection)[0].pages is None


@pytest.mark.parametrize("value", ODD_TEXTS)
def test_odd_names_are_stored_found_and_deleted(store: Store, collection: str, value: str) -> None:
    odd = Chunk("odd", value, value, 0, "t", 0, 1)
    store.upsert(collection, [row("odd", chunk=odd, source=value, acl=(value, "b")), row("plain", "d2")])
    document = next(found for found in store.stored_documents(collection) if found.document_id != "d2")
    assert (document.document_id, document.source, document.revision, document.acl) == (
        value,
        value,
        value,
        (value, "b"),
    )
    assert store.chunks(collection, value) == [odd]
    store.delete(collection, And((Equals("document_id", value), HasAny("acl", (value,)), OneOf("revision", (value,)))))
    assert [left.document_id for left in store.stored_documents(collection)] == ["d2"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=()), max_size=12), min_size=2, max_size=6, unique=True))
def test_a_source_is_found_by_its_value_and_by_no_other(store: Store, collection: str, sources: list[str]) -> None:
    rows = [row(f"c{number}", f"d{number}", source=source) for number, source in enumerate(sources)]
    store.upsert(collection, rows)
    store.delete(collection, Equals("source", sources[0]))
    assert {left.source for left in store.stored_documents(collection)} == set(sources[1:])
    store.delete(collection, NotEquals("source", sources[1]))
    assert {left.source for left in store.stored_documents(collection)} == {sources[1]}
    store.delete(collection, And(()))
    assert store.stored_documents(collection) == []


async def test_the_same_id_replaces(store: Store, collection: str) -> None:
    store.upsert(collection, [row("a", analyzed="old", title="first"), row("a", analyzed="old", title="second")])
    assert [found.title for found in store.stored_documents(collection)] == ["second"]
    store.upsert(collection, [row("a", analyzed="new", title="third", vector=vector(0, 1))])
    assert [found.title for found in store.stored_documents(collection)] == ["third"]
    hits = (await store.dense_search(collection, vector(0, 1), 5)).hits
    assert [hit.score for hit in hits] == [pytest.approx(1.0)]


@pytest.mark.usefixtures("lexical")
async def test_the_same_id_replaces_the_words(store: Store, collection: str) -> None:
    store.upsert(collection, [row("a", analyzed="old")])
    store.upsert(collection, [row("a", analyzed="new")])
    assert await lexical_ids(store, collection, "old") == []
    assert await lexical_ids(store, collection, "new") == ["a"]


async def test_writes_are_seen_by_the_next_dense_search(store: Store, collection: str) -> None:
    for number in range(20):
        store.upsert(collection, [row(f"c{number}", f"d{number}")])
        assert len(await dense_ids(store, collection, vector(1), 50)) == 1
        store.delete(collection, Equals("document_id", f"d{number}"))
        assert await dense_ids(store, collection, vector(1), 50) == []


@pytest.mark.usefixtures("lexical")
async def test_writes_are_seen_by_the_next_lexical_search(store: Store, collection: str) -> None:
    for number in range(20):
        store.upsert(collection, [row(f"c{number}", f"d{number}", analyzed="word")])
        assert len(await lexical_ids(store, collection, "word", 50)) == 1
        store.delete(collection, Equals("document_id", f"d{number}"))
        assert await lexical_ids(store, collection, "word", 50) == []


def test_an_old_revision_is_deleted_and_the_new_one_stays(store: Store, collection: str) -> None:
    new = Chunk("new", "d1", "r2", 0, "t", 0, 1)
    store.upsert(collection, [row("old"), row("new", chunk=new), row("other", "d2")])
    store.delete(collection, And((Equals("document_id", "d1"), NotEquals("revision", "r2"))))
    assert store.chunks(collection, "d1") == [new]
    assert [chunk.chunk_id for chunk in store.chunks(collection, "d2")] == ["other"]


def test_a_document_is_listed_only_with_its_first_chunk(store: Store, collection: str) -> None:
    store.upsert(
        collection, [row("a1", "a", 1), row("b0", "b", 0, source="z.md"), row("c0", "c", 0), row("c1", "c", 1)]
    )
    listed = [(found.document_id, found.source) for found in store.stored_documents(collection)]
    assert listed == [("c", "c.md"), ("b", "z.md")]
    some = store.stored_documents(collection, OneOf("document_id", ("a", "b", "nobody")))
    assert [found.document_id for found in some] == ["b"]


def test_thousands_of_rows_are_paged(store: Store, collection: str) -> None:
    rows = [row(f"c{number:05}", f"d{number % 1500}", number // 1500, document_pages=2) for number in range(3000)]
    store.upsert(collection, rows)
    documents = store.stored_documents(collection)
    assert {found.document_id for found in documents} == {f"d{number}" for number in range(1500)}
    assert len(documents) == 1500
    some = tuple(f"d{number}" for number in range(1000, 1000 + LOOKED_UP))  # as many as a job asks for at once
    assert {found.document_id for found in store.stored_documents(collection, OneOf("document_id", some))} == set(some)
    assert [chunk.chunk_id for chunk in store.chunks(collection, "d7")] == ["c00007", "c01507"]
    store.upsert(collection, [row(f"e{number}", "long", 2999 - number) for number in range(3000)])
    assert [chunk.ordinal for chunk in store.chunks(collection, "long")] == list(range(3000))
    store.delete(collection, Equals("document_id", "long"))
    assert store.chunks(collection, "long") == []
    assert len(store.stored_documents(collection)) == 1500


def nested(levels: int) -> dict[str, object]:
    inner: dict[str, object] = {}
    for _ in range(levels):
        inner = {"x": inner}
    return inner


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (row("a", vector=np.ones(3, dtype=np.float32)), "shape"),
        (row("a", vector=np.full(DIMENSION, np.nan, dtype=np.float32)), "finite"),
        (row("a", chunk=Chunk("a", "d", "r", 0, "가" * MAX_TEXT_BYTES, 0, 1)), "text has 196605 bytes"),
        (row("a", chunk=Chunk("a", "d", "r", 0, "\ud800", 0, 1)), "surrogate"),
        (row('a"b'), "chunk id"),
        (row("a", acl=("g",) * 5000), "acl has 5000 entries"),
        (row("a", metadata={"x": object()}), "metadata is not JSON"),
        (row("a", metadata=nested(101)), "nested deeper than 100"),
        (row("a", metadata={"x": "가" * MAX_TEXT_BYTES}), "metadata has 1966[0-9]{2} bytes"),
        (row("a", metadata={"x": [2**63]}), "metadata holds an integer beyond 64 bits"),
        (row("a", metadata={"x": float("inf")}), "metadata is not JSON"),
    ],
    ids=["shape", "nan", "long", "surrogate", "id", "acl", "metadata", "nested", "json", "integer", "infinite"],
)
def test_a_chunk_that_cannot_be_stored_is_named_and_nothing_is_written(
    store: Store, collection: str, bad: StoredChunk, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        store.upsert(collection, [row("good"), bad])
    assert store.stored_documents(collection) == []


# --- searching ---


async def test_dense_search_orders_by_cosine_and_breaks_ties_by_id(store: Store, new_collection: str) -> None:
    far, near = vector(-1), vector(3, 1)
    store.upsert(new_collection, [row(name, vector=near) for name in "dbca"] + [row("z", vector=far), row("y")])
    hits = (await store.dense_search(new_collection, vector(1), 10)).hits
    assert [hit.chunk.chunk_id for hit in hits] == ["y", "a", "b", "c", "d", "z"]
    assert [hit.score for hit in hits] == pytest.approx([1, *[3 / 10**0.5] * 4, -1], abs=1e-5)
    assert all(hit.scores.dense == hit.score and hit.scores.lexical is None for hit in hits)
    assert await dense_ids(store, new_collection, vector(1), 1) == ["y"]


@pytest.mark.usefixtures("lexical")
async def test_lexical_search_has_bm25s_scores(store: Store, new_collection: str) -> None:
    texts = {"a": "serve replica replica", "b": "serve", "c": "replica 서울", "d": "other words entirely here", "e": ""}
    store.upsert(new_collection, [row(name, name, analyzed=text) for name, text in texts.items()])
    found = await store.lexical_search(new_collection, "replica", 10)
    assert [hit.chunk.chunk_id for hit in found.hits] == ["a", "c"]
    assert all(hit.scores.lexical == hit.score > 0 and hit.scores.dense is None for hit in found.hits)
    assert await lexical_ids(store, new_collection, "서울") == ["c"]
    assert await lexical_ids(store, new_collection, "서") == []
    assert await lexical_ids(store, new_collection, "replica 서울", 1) == ["c"]
    store.upsert(new_collection, [row(name, name, analyzed="same words") for name in "hgf"])
    assert await lexical_ids(store, new_collection, "same") == ["f", "g", "h"]


@pytest.mark.usefixtures("lexical")
@pytest.mark.parametrize("query", ["", "  \n", "unseen", '"', "\\ AND (", "a" * 100_000])
async def test_a_query_that_matches_nothing_gives_no_hits(store: Store, collection: str, query: str) -> None:
    store.upsert(collection, [row("a", analyzed="seen")])
    found = await store.lexical_search(collection, query, 5)
    assert found.hits == ()
    assert found.index_version == FINGERPRINT.index_version


async def test_an_empty_collection_gives_no_hits(store: Store, new_collection: str) -> None:
    assert await dense_ids(store, new_collection, vector(1)) == []
    assert store.stored_documents(new_collection) == []
    assert store.chunks(new_collection, "d1") == []
    store.upsert(new_collection, [])
    assert store.stored_documents(new_collection) == []


@pytest.mark.usefixtures("lexical")
async def test_a_collection_without_words_gives_no_hits(store: Store, new_collection: str) -> None:
    assert await lexical_ids(store, new_collection, "a") == []
    store.upsert(new_collection, [row("a", analyzed="")])
    assert await lexical_ids(store, new_collection, "a") == []


async def test_a_wrong_query_is_refused(store: Store, collection: str) -> None:
    with pytest.raises(InputError, match="shape"):
        await store.dense_search(collection, np.ones(3, dtype=np.float32), 5)
    for top_k in (0, -1, 16_385):
        with pytest.raises(InputError, match="top_k"):
            await store.dense_search(collection, vector(1), top_k)
        with pytest.raises(InputError, match="top_k"):
            await store.lexical_search(collection, "a", top_k)


async def test_searches_at_once_do_not_disturb_each_other(store: Store, collection: str) -> None:
    axes = [vector(*([0] * number), 1) for number in range(DIMENSION)]
    store.upsert(collection, [row(f"c{number}", vector=axis) for number, axis in enumerate(axes)])
    found = await asyncio.gather(*(dense_ids(store, collection, axes[number % DIMENSION], 1) for number in range(64)))
    assert found == [[f"c{number % DIMENSION}"] for number in range(64)]


async def test_a_closed_store_can_be_used_again(open_store: OpenStore, store: Store, collection: str) -> None:
    store.upsert(collection, [row("a")])
    other = open_store(FINGERPRINT)
    await other.ping()
    await other.aclose()
    assert await dense_ids(other, collection, vector(1)) == ["a"]
    assert len(other.chunks(collection, "d1")) == 1
    await other.aclose()
