"""The registry, index versions and other programs' collections are no collections of ours, over a Milvus Lite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from pymilvus import MilvusClient

from rag.errors import InputError, UnknownCollectionError
from rag.index_versions import IndexVersion
from rag.store import MilvusStore
from rag.store_rows import REGISTRY
from tests.crash import raw_client
from tests.store_checks import FINGERPRINT

OTHER = replace(FINGERPRINT, model="other")
TTL_S = 0.1


@pytest.fixture
def store(lite_uri: str) -> Iterator[MilvusStore]:
    opened = MilvusStore(lite_uri, timeout_s=20, versions_ttl_s=TTL_S)
    yield opened
    opened.close()


@pytest.fixture
def client(lite_uri: str) -> Iterator[MilvusClient]:
    opened = raw_client(lite_uri)
    yield opened
    opened.close()


@pytest.fixture
def version(store: MilvusStore) -> Iterator[IndexVersion]:
    """Version 1 of the collection `docs`, being built."""
    store.ensure_collection("docs", FINGERPRINT)
    begun = store.registry.begin("docs")
    store.ensure_collection(begun.physical, OTHER)
    yield begun
    store.drop_collection("docs")


@pytest.mark.parametrize("name", [REGISTRY, "docs__v1", "docs__v1__v2"])
def test_a_name_that_is_kept_for_index_versions_makes_no_collection(
    store: MilvusStore, client: MilvusClient, name: str
) -> None:
    there = client.list_collections()
    with pytest.raises(InputError, match="choose another name"):
        store.ensure_collection(name, FINGERPRINT)
    with pytest.raises(InputError, match="choose another name"):
        store.registry.begin(name)
    assert client.list_collections() == there


def test_a_version_is_made_while_it_is_built_and_never_by_its_name_afterwards(
    store: MilvusStore, version: IndexVersion
) -> None:
    store.ensure_collection(version.physical, OTHER)
    store.registry.finish(version)
    with pytest.raises(InputError, match="choose another name"):
        store.ensure_collection(version.physical, OTHER)


def test_neither_the_registry_nor_a_version_is_dropped_by_its_name(
    store: MilvusStore, client: MilvusClient, version: IndexVersion
) -> None:
    for name in (REGISTRY, version.physical):
        with pytest.raises(UnknownCollectionError, match=name):
            store.drop_collection(name)
        assert client.has_collection(name)


def test_another_programs_collection_is_not_dropped(store: MilvusStore, client: MilvusClient) -> None:
    client.create_collection("foreign", dimension=4)
    with pytest.raises(UnknownCollectionError, match="'foreign'"):
        store.drop_collection("foreign")
    assert client.has_collection("foreign")
    client.drop_collection("foreign")


def test_what_a_killed_run_left_of_a_version_can_be_dropped(
    store: MilvusStore, client: MilvusClient, version: IndexVersion
) -> None:
    store.registry.clear("docs")
    store.drop_collection(version.physical)
    assert not client.has_collection(version.physical)
