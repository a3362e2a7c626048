"""A Milvus without BM25: its collections have no words, dense search alone answers, and that is told."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from rag.doctor import examine
from rag.errors import InputError, StageError
from rag.filters import Like
from rag.store import MilvusStore
from rag.types import Question
from tests.fakes import HashEmbedder
from tests.pipeline_checks import answer_of
from tests.pipeline_fakes import (
    DOCUMENTS,
    FINGERPRINT,
    document_rows,
    make_search,
    make_settings,
    make_steps,
    says,
)


@pytest.fixture(scope="module")
def collection(standalone_uri: str) -> Iterator[str]:
    store = MilvusStore(standalone_uri, timeout_s=20, fingerprint=FINGERPRINT)
    store.ensure_collection("words", FINGERPRINT)
    store.upsert("words", document_rows(DOCUMENTS))
    yield "words"
    store.drop_collection("words")
    store.close()


@pytest.fixture
def store(standalone_uri: str, collection: str) -> MilvusStore:
    """A store that has to ask the server what the collection is."""
    return MilvusStore(standalone_uri, timeout_s=20, fingerprint=FINGERPRINT)


async def test_lexical_search_says_what_is_missing_and_what_mends_it(store: MilvusStore, collection: str) -> None:
    with pytest.raises(StageError, match=f"lexical: collection '{collection}' .* without BM25.*Milvus 2.5 or later"):
        await store.lexical_search(collection, "port", 5)
    await store.aclose()


async def test_a_pattern_that_this_server_does_not_know_is_the_caller_s_mistake(
    store: MilvusStore, collection: str
) -> None:
    vector = HashEmbedder().encode(["port"], "query")[0]
    found = await store.dense_search(collection, vector, 3, where=Like("title", "start", "ports"))
    assert [hit.source for hit in found.hits] == ["ports.md", "ports.md"]
    with pytest.raises(InputError, match=r"Milvus refuses the request: .*unsupported pattern"):
        await store.dense_search(collection, vector, 3, where=Like("title", "within", "ports"))
    await store.aclose()


def test_the_collection_can_be_made_sure_of_again(store: MilvusStore, collection: str) -> None:
    store.ensure_collection(collection, FINGERPRINT)
    assert store.fingerprint(collection) == FINGERPRINT
    assert len(store.stored_documents(collection)) == len(DOCUMENTS)
    store.close()


async def test_the_log_says_it_once_for_each_store(
    store: MilvusStore, collection: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rag.store"):
        store.collections()
        await store.ping()
        await store.dense_search(collection, HashEmbedder().encode(["port"], "query")[0], 3)
    assert [record.message for record in caplog.records] == [
        f"questions are answered without word search: {store.lexical_problem()}"
    ]
    assert "v2.3.5-lite, which has no BM25" in caplog.text
    await store.aclose()


async def test_a_question_is_answered_by_dense_search_alone(store: MilvusStore, collection: str) -> None:
    search = make_search(dense_search=store.dense_search, lexical_search=store.lexical_search)
    steps = make_steps(says("The service listens on port 8000."), search)
    answer = await answer_of(
        Question("On which port does the service listen?", collection=collection), steps, make_settings()
    )
    assert (answer.status, answer.degraded) == ("answered", ("lexical",))
    assert answer.citations[0].quote == "The service listens on port 8000."
    assert all(hit.scores.lexical is None for hit in answer.hits)
    await store.aclose()


def test_the_doctor_shows_it(standalone_uri: str) -> None:
    found = examine(make_settings(store={"uri": standalone_uri}), "http://127.0.0.1:9")
    store = next(finding for finding in found if finding.subject == "store")
    assert not store.ok
    assert store.found.endswith("no word search")
    assert "Milvus 2.5 or later" in store.remedy
