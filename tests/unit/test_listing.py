from __future__ import annotations

from rag.errors import IndexMismatchError
from rag.listing import index_versions
from rag.types import IndexFingerprint
from tests.fakes import InMemoryStore

FINGERPRINT = IndexFingerprint("hash", 64, True, "", "", "splitter", "analyzer")


class Store(InMemoryStore):
    """With a collection `gone`, dropped after it was listed, and one called `old`, of an older program."""

    def collections(self) -> list[str]:
        return [*super().collections(), "gone"]

    def fingerprint(self, name: str) -> IndexFingerprint:
        if name == "old":
            raise IndexMismatchError("the collection 'old' was made by another program")
        return super().fingerprint(name)


def test_a_collection_that_cannot_be_read_is_marked_and_one_that_is_gone_left_out() -> None:
    store = Store()
    for name in ("docs", "old", "wiki"):
        store.ensure_collection(name, FINGERPRINT)
    version = FINGERPRINT.index_version
    assert index_versions(store) == {"docs": version, "old": None, "wiki": version}
