"""The stores under test, the fake one and two real servers, which have to do the same."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator

import pytest

from rag.embedded_store import ensure_server
from rag.filters import And
from rag.store import MilvusStore
from rag.types import IndexFingerprint
from tests.fakes import InMemoryStore
from tests.standalone_milvus import running_milvus
from tests.store_checks import FINGERPRINT, OpenStore, Store


@pytest.fixture(scope="session")
def lite_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus Lite, as the embedded profile runs it."""
    if importlib.util.find_spec("milvus_lite") is None:
        pytest.skip("needs milvus-lite: the cpu extra")
    with ensure_server(tmp_path_factory.mktemp("store"), start_timeout_s=30, idle_s=1) as server:
        yield server.uri


@pytest.fixture(scope="session")
def standalone_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Milvus standalone 2.3.5, a server without BM25."""
    if importlib.util.find_spec("milvus") is None:
        pytest.skip("needs the package milvus: the dev extra")
    with running_milvus(tmp_path_factory.mktemp("milvus")) as uri:
        yield uri


@pytest.fixture(scope="module", params=["fake", "lite", "standalone"])
def open_store(request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    if request.param == "fake":
        first = InMemoryStore()
        yield first.sharing
        return
    uri: str = request.getfixturevalue(f"{request.param}_uri")
    opened: list[MilvusStore] = []

    def open_milvus(fingerprint: IndexFingerprint | None) -> MilvusStore:
        opened.append(MilvusStore(uri, timeout_s=20, fingerprint=fingerprint))
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
def shared_collection(opened: Store) -> Iterator[str]:
    """Gone with its module: the servers are shared by all of them."""
    opened.ensure_collection("shared", FINGERPRINT)
    yield "shared"
    opened.drop_collection("shared")


@pytest.fixture
def collection(store: Store, shared_collection: str) -> Iterator[str]:
    """A collection without rows; making one takes Milvus over a second, emptying it does not."""
    yield shared_collection
    store.delete(shared_collection, And(()))


@pytest.fixture
def new_collection(store: Store) -> Iterator[str]:
    """A collection that never had rows: BM25's statistics remember deleted ones for a while, and an approximate index
    that is full of them finds less."""
    store.ensure_collection("new", FINGERPRINT)
    yield "new"
    store.drop_collection("new")


@pytest.fixture
def lexical(store: Store) -> None:
    """Skips where the server has no BM25; tests/contract/test_dense_only.py says what happens there."""
    problem = store.lexical_problem()
    if problem:
        pytest.skip(problem)
