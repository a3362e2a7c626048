"""A collection built anew beside itself, with another embedder or splitter, while questions go on.

    begin     a new index version is registered, or the one that a killed run left is taken over
    copy      what the current version holds and the new one lacks; the collection is used as before
    switch    writes are refused, what changed meanwhile is copied, the new version becomes current

The old version is kept for services that still run with its embedder, until it is dropped. It takes no new documents,
and keeps one that is replaced as it was; a deleted one goes from it too.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ingest.copy_chunks import Copied, Copy
from rag.errors import UnknownCollectionError
from rag.index_versions import IndexVersion
from rag.store import MilvusStore
from rag.types import IndexFingerprint

Texts = Literal["stored", "files"]


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What a run did. `texts` says where the new version's texts came from, None when there was nothing to do.

    With `failures` nothing was switched: the old version is current, and the next run goes on from what was copied.
    """

    collection: str
    old_version: str
    index_version: str
    texts: Texts | None
    copied: Copied
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The report as `rag collections reindex --json` prints it."""
        return {
            "collection": self.collection,
            "old_index_version": self.old_version,
            "index_version": self.old_version if self.copied.failures else self.index_version,
            "texts": self.texts,
            "chunks": self.copied.chunks,
            "cut_chunks": self.copied.cut,
            "rebuilt_documents": self.copied.rebuilt,
            "seconds": round(self.seconds, 3),
            "failures": [asdict(failure) for failure in self.copied.failures],
        }

    def sentence(self) -> str:
        """The report for a person."""
        if self.copied.failures:
            return (
                f"{self.collection} stays at index version {self.old_version}: {len(self.copied.failures)} documents "
                "could not be made; delete them, then run this again"
            )
        parts = [f"{self.collection} is at index version {self.index_version}"]
        if self.texts:
            source = "the stored texts" if self.texts == "stored" else "the files"
            parts.append(f"{self.copied.chunks} chunks built from {source} in {self.seconds:.1f} s")
            if self.copied.rebuilt:
                parts.append(f"{self.copied.rebuilt} documents without such a file from their stored text")
            parts.append("start the service with the new settings to use it")
            parts.append(f"the old version is kept until: rag collections reindex {self.collection} --drop-old")
        if self.copied.cut:
            parts.append(f"the embedder does not read the end of {self.copied.cut} chunks: lower chunk.max_tokens")
        return "; ".join(parts)


def reindex_collection(
    name: str,
    *,
    store: MilvusStore,
    fingerprint: IndexFingerprint,
    copy_stored: Copy,
    copy_files: Copy,
    drain_s: float,
) -> ReindexReport:
    """Brings the collection to `fingerprint`; `store` has that fingerprint too.

    Chunks are those stored where the splitter is unchanged; else the files are read again, and what has none is put
    together from its chunks. Where a document cannot be made, the report says so and nothing is switched. The same call
    again goes on where a killed one stopped. Where the current version is as wanted, all that is done is to remove what
    was begun for other settings: a run that was killed during its switch leaves writes refused. `drain_s` is what a
    single call of a process that writes may take: the switch waits for it, and until every process knows of it.

    Raises UnknownCollectionError, StoreUnavailableError, ModelError, and RagError when another run takes over.
    """
    started = time.monotonic()
    current = store.registry.read(name).ready[0]
    old = current.built.fingerprint
    gained_words = not current.built.lexical and store.lexical_problem() is None
    copied = Copied()
    texts: Texts | None = None
    if old != fingerprint or gained_words:
        texts = "stored" if old.splitter == fingerprint.splitter else "files"
        version = _begin(store, name, fingerprint)
        copy = copy_stored if texts == "stored" else copy_files
        copied = _build(store, current.physical, version, copy, drain_s)
    else:
        unfinished = [version for version in store.registry.versions(name) if version.state != "ready"]
        store.registry.drop(unfinished, drain_s=0)  # nobody searches them
    seconds = time.monotonic() - started
    return ReindexReport(name, old.index_version, fingerprint.index_version, texts, copied, seconds)


def drop_old_versions(name: str, store: MilvusStore, drain_s: float) -> int:
    """Removes every version but the current one, unfinished ones too; how many. Raises UnknownCollectionError."""
    current = store.registry.read(name).ready[0]
    others = [version for version in store.registry.versions(name) if version.physical != current.physical]
    store.registry.drop(others, drain_s)
    return len(others)


def _begin(store: MilvusStore, name: str, fingerprint: IndexFingerprint) -> IndexVersion:
    """The version to build: one that was left unfinished for the same fingerprint, else a new one."""
    left = None
    for version in store.registry.versions(name):
        if version.state == "ready":
            continue
        if left is None and _built_for(store, version) in (None, fingerprint):
            left = version.number
        else:
            store.registry.drop([version], drain_s=0)  # nobody searches it
    version = store.registry.begin(name, left)
    store.ensure_collection(version.physical, fingerprint)
    return version


def _built_for(store: MilvusStore, version: IndexVersion) -> IndexFingerprint | None:
    """What an unfinished version was begun with; None when it was not made yet."""
    try:
        return store.registry.read(version.physical).ready[0].built.fingerprint
    except UnknownCollectionError:
        return None


def _build(store: MilvusStore, old: str, version: IndexVersion, copy: Copy, drain_s: float) -> Copied:
    registry = store.registry

    def check() -> None:
        registry.check_run(version)

    first = copy(old, version.physical, check)
    if first.failures:
        return first
    switched = False
    try:
        registry.refuse_writes(version, drain_s)
        late = copy(old, version.physical, check)
        switched = not late.failures
    finally:
        if switched:
            registry.finish(version)
        else:
            registry.allow_writes(version)
    rebuilt = first.rebuilt + late.rebuilt
    return Copied(first.chunks + late.chunks, first.cut + late.cut, rebuilt, late.failures)
