"""The retriever over stores in memory that go down, and come back somewhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.retriever import Retriever
from rag.config import load_settings
from rag.errors import IndexMismatchError, StoreUnavailableError, UnknownCollectionError
from rag.types import IndexFingerprint, SearchResult
from tests.fakes import InMemoryStore

FINGERPRINT = IndexFingerprint("hash", 64, True, "", "", "splitter", "analyzer")


class Store(InMemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.ensure_collection("docs", FINGERPRINT)
        self.down = False
        self.closed = False
        self.faults: dict[str, Exception] = {}

    async def dense_search(self, *arguments: Any, **options: Any) -> SearchResult:
        await self.ping()
        return await super().dense_search(*arguments, **options)

    async def ping(self) -> None:
        if self.down:
            raise StoreUnavailableError("nobody listens there")

    def fingerprint(self, name: str) -> IndexFingerprint:
        if name in self.faults:
            raise self.faults[name]
        return super().fingerprint(name)

    def close(self) -> None:
        self.closed = True


class Server:
    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.released = False

    def release(self) -> None:
        self.released = True


class Milvus:
    """What `connect_store` gives: each time a new store and a use of the server, which has an address."""

    def __init__(self, *, embedded: bool = True) -> None:
        self.uri = "http://127.0.0.1:1"
        self.embedded = embedded
        self.stores: list[Store] = []
        self.servers: list[Server] = []

    def connect(self, *_: object) -> Any:
        self.stores.append(Store())
        self.servers.append(Server(self.uri))
        return self.stores[-1], self.servers[-1] if self.embedded else None


def make(milvus: Milvus, folder: Path) -> Retriever:
    return Retriever(load_settings(profile="embedded", data_dir=folder), milvus.connect)


async def search(retriever: Retriever) -> SearchResult:
    return await retriever.dense_search("docs", np.ones(64, np.float32), 5, groups=frozenset(), where=None)


async def test_an_embedded_milvus_that_comes_back_on_another_port_is_found_there(tmp_path: Path) -> None:
    milvus = Milvus()
    retriever = make(milvus, tmp_path)
    milvus.stores[0].down = True
    milvus.uri = "http://127.0.0.1:2"
    assert (await search(retriever)).index_version == FINGERPRINT.index_version
    assert milvus.stores[0].closed
    assert not milvus.stores[1].closed
    assert [server.released for server in milvus.servers] == [True, False]
    await search(retriever)
    assert len(milvus.stores) == 2


async def test_the_health_check_follows_it_too(tmp_path: Path) -> None:
    milvus = Milvus()
    retriever = make(milvus, tmp_path)
    milvus.stores[0].down = True
    milvus.uri = "http://127.0.0.1:2"
    await retriever.check_health()
    await retriever.ready()


async def test_a_milvus_that_comes_back_where_it_was_keeps_its_store(tmp_path: Path) -> None:
    milvus = Milvus()
    retriever = make(milvus, tmp_path)
    milvus.stores[0].down = True
    with pytest.raises(StoreUnavailableError):
        await search(retriever)
    milvus.stores[0].down = False
    await search(retriever)
    assert not milvus.stores[0].closed
    assert all(store.closed for store in milvus.stores[1:])
    assert [server.released for server in milvus.servers] == [True, False]


async def test_a_milvus_of_somebody_else_s_is_not_started_again(tmp_path: Path) -> None:
    milvus = Milvus(embedded=False)
    retriever = make(milvus, tmp_path)
    milvus.stores[0].down = True
    with pytest.raises(StoreUnavailableError):
        await search(retriever)
    assert len(milvus.stores) == 1


@pytest.mark.parametrize("error", [IndexMismatchError("of an older program"), UnknownCollectionError("gone")])
async def test_a_collection_that_cannot_be_read_costs_the_others_nothing(tmp_path: Path, error: Exception) -> None:
    milvus = Milvus()
    retriever = make(milvus, tmp_path)
    milvus.stores[0].ensure_collection("old", FINGERPRINT)
    milvus.stores[0].faults["old"] = error
    assert await retriever.index_versions() == {"docs": FINGERPRINT.index_version}
