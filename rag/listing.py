"""Every collection of a store, also those that this program can no longer read."""

from __future__ import annotations

from typing import Protocol

from rag.errors import IndexMismatchError, UnknownCollectionError
from rag.types import IndexFingerprint


class CollectionStore(Protocol):
    """What is needed of a store here."""

    def collections(self) -> list[str]:
        """The names, sorted."""

    def fingerprint(self, name: str) -> IndexFingerprint:
        """What the collection was built with. Raises UnknownCollectionError and IndexMismatchError."""


def index_versions(store: CollectionStore) -> dict[str, str | None]:
    """Each collection's index version, by name; None: no index of it was built as this store is set to read.

    One that is dropped meanwhile is left out.
    """
    found: dict[str, str | None] = {}
    for name in store.collections():
        try:
            found[name] = store.fingerprint(name).index_version
        except IndexMismatchError:
            found[name] = None
        except UnknownCollectionError:
            continue
    return found
