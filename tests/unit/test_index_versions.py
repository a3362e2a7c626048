"""The registry over a Milvus that changes between two of its calls."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from pymilvus import MilvusException

from rag.index_versions import IndexRegistry
from rag.milvus import MilvusConnection
from rag.store_rows import REGISTRY, BuiltIndex, write_description
from rag.types import IndexFingerprint

NOT_FOUND = MilvusException(code=100, message="collection not found")
OURS = write_description(BuiltIndex(IndexFingerprint("m", 2, True, "", "", "s", "1")))


class Milvus:
    """A connection and its client: lists collections of which it then describes some; nothing was ever reindexed."""

    timeout_s = 1.0

    def __init__(self, **descriptions: str | None) -> None:
        self._descriptions = descriptions

    @contextmanager
    def client(self) -> Iterator[Milvus]:
        yield self

    def list_collections(self, timeout: float) -> list[str]:
        assert timeout == self.timeout_s
        return list(self._descriptions)

    def describe_collection(self, name: str, timeout: float) -> dict[str, Any]:
        assert timeout == self.timeout_s
        description = self._descriptions[name]
        if description is None:
            raise NOT_FOUND
        return {"collection_name": name, "description": description}

    def query(self, name: str, **_: object) -> list[dict[str, Any]]:
        assert name == REGISTRY
        raise NOT_FOUND


def test_a_collection_that_is_dropped_while_they_are_listed_is_left_out() -> None:
    connection = Milvus(notes=OURS, gone=None, foreign="", docs=OURS)
    assert IndexRegistry(cast(MilvusConnection, connection)).collections() == ["docs", "notes"]
