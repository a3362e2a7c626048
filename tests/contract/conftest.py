"""The store under test: the fake one and the embedded Milvus, which have to do the same."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator

import pytest

from rag.embedded_store import ensure_server
from rag.filters import And
from rag.store import MilvusStore
from rag.types import IndexFingerprint
from tests.fakes import InMemoryStore
from tests.store_checks import FINGERPRINT, OpenStore, Store

HAS_LITE = importlib.util.find_spec("milvus_lite") is not None


@pytest.fixture(
    scope="module",
    params=["fake", pytest.param("milvus-lite", marks=pytest.mark.skipif(not HAS_LITE, reason="needs the cpu extra"))],
)
def open_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenStore]:
    if request.param == "fake":
        first = InMemoryStore()
        yield first.sharing
        return
    with ensure_server(tmp_path_factory.mktemp("store"), start_timeout_s=30, idle_s=1) as server:
        opened: list[MilvusStore] = []

        def open_milvus(fingerprint: IndexFingerprint | None) -> MilvusStore:
            opened.append(MilvusStore(server.uri, timeout_s=20, fingerprint=fingerprint))
            return opened[-1]

        yield open_milvus
        for store in opened:
            store.close()


@pytest.fixture(scope="module")
def opened(open_store: OpenStore) -> Store:
    return open_store(FINGERPRINT)


@pytest.fixture
async def store(opened: Store) -> AsyncIterator[Store]:
    """The same store for all tests of a module; a connection belongs to the loop of one."""
    yield opened
    await opened.aclose()


@pytest.fixture(scope="module")
def shared_collection(opened: Store) -> str:
    opened.ensure_collection("shared", FINGERPRINT)
    return "shared"


@pytest.fixture
def collection(store: Store, shared_collection: str) -> Iterator[str]:
    """A collection without rows; making one takes Milvus over a second, emptying it does not."""
    yield shared_collection
    store.delete(shared_collection, And(()))


@pytest.fixture
def new_collection(store: Store) -> Iterator[str]:
    """A collection that never had rows: BM25's statistics remember deleted ones for a while."""
    store.ensure_collection("new", FINGERPRINT)
    yield "new"
    store.drop_collection("new")
