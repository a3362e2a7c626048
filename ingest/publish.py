"""Chunks -> rows of the store, in batches that fill up whichever documents the chunks belong to.

A document counts as stored once its chunk of ordinal 0 is; that row is therefore written last and alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import numpy as np

from ingest.chunk import embedding_text
from rag.filters import And, Equals, Filter, NotEquals
from rag.types import Chunk, Document, IndexFingerprint, ParsedDocument, StoredChunk, StoredDocument

_MAX_TITLE_CHARS = 300  # a page's <title> may be a whole text; a row of the store has a limit

EmbedPassages = Callable[[list[str]], np.ndarray]  # n texts -> float32 (n, dim), rows of L2 norm 1
Analyze = Callable[[str], str]  # text -> its terms, separated by spaces


class ChunkStore(Protocol):
    """What ingestion needs of a store. Every method may raise StoreUnavailableError."""

    def ensure_collection(self, name: str, fingerprint: IndexFingerprint) -> None:
        """Makes the collection if it is not there. Raises IndexMismatchError where it was built differently."""

    def stored_documents(self, collection: str) -> Iterable[StoredDocument]:
        """One entry for each revision whose chunk of ordinal 0 is there."""

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        """Rows by chunk id, replacing; a search that starts afterwards sees them."""

    def delete(self, collection: str, where: Filter) -> None:
        """Every row that matches; a search that starts afterwards sees none of them."""


@dataclass(slots=True)
class _Unpublished:
    """A document on its way into the store: what its rows share, how many are to come, and the one kept for last."""

    parsed: ParsedDocument
    chunks: int
    updated_at: str
    replaces: bool
    to_come: int
    first: StoredChunk | None = None


@dataclass(slots=True)
class Publisher:
    """Embeds and writes what it is given, `batch` chunks at a time; `on_written` is called after each batch.

    `added` and `replaced` count the documents that are complete in the store, `chunks` the rows written.
    """

    store: ChunkStore
    collection: str
    embed: EmbedPassages
    analyze: Analyze
    batch: int
    on_written: Callable[[], None]
    added: int = 0
    replaced: int = 0
    chunks: int = 0
    _waiting: list[tuple[_Unpublished, Chunk]] = field(default_factory=list)

    def add(self, parsed: ParsedDocument, chunks: Sequence[Chunk], *, replaces: bool) -> None:
        """Takes all chunks of a document; `replaces`: another revision of it is stored. Full batches are written."""
        updated_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        unpublished = _Unpublished(parsed, len(chunks), updated_at, replaces, to_come=len(chunks))
        self._waiting.extend((unpublished, chunk) for chunk in chunks)
        while len(self._waiting) >= self.batch:
            self._write_batch()

    def finish(self) -> None:
        """Writes what still waits for its batch to be full."""
        while self._waiting:
            self._write_batch()

    def delete_other_revisions(self, document: Document) -> None:
        """Removes the document's rows of every revision but this one."""
        this = Equals("document_id", document.document_id)
        self.store.delete(self.collection, And((this, NotEquals("revision", document.revision))))

    def _write_batch(self) -> None:
        batch, self._waiting = self._waiting[: self.batch], self._waiting[self.batch :]
        vectors = self.embed([embedding_text(chunk) for _, chunk in batch])
        rows: list[StoredChunk] = []
        complete: list[_Unpublished] = []
        for (unpublished, chunk), vector in zip(batch, vectors, strict=True):
            row = self._row(unpublished, chunk, vector)
            if chunk.ordinal == 0:
                unpublished.first = row
            else:
                rows.append(row)
            unpublished.to_come -= 1
            if unpublished.to_come == 0:
                complete.append(unpublished)
        if rows:
            self.store.upsert(self.collection, rows)
        for unpublished in complete:
            self._complete(unpublished)
        self.chunks += len(batch)
        self.on_written()

    def _complete(self, unpublished: _Unpublished) -> None:
        assert unpublished.first is not None
        self.store.upsert(self.collection, [unpublished.first])
        self.delete_other_revisions(unpublished.parsed.document)
        if unpublished.replaces:
            self.replaced += 1
        else:
            self.added += 1

    def _row(self, unpublished: _Unpublished, chunk: Chunk, vector: np.ndarray) -> StoredChunk:
        parsed = unpublished.parsed
        title = parsed.title[:_MAX_TITLE_CHARS]
        return StoredChunk(
            chunk=chunk,
            vector=vector,
            analyzed=self.analyze(searched_text(title, chunk)),
            title=title,
            source=parsed.document.source,
            acl=parsed.document.acl,
            metadata=parsed.document.metadata,
            document_chunks=unpublished.chunks,
            document_pages=len(parsed.pages) if parsed.paged else None,
            updated_at=unpublished.updated_at,
        )


def searched_text(title: str, chunk: Chunk) -> str:
    """What lexical search finds a chunk by: its document's title, unless the heading path holds it, and its text."""
    text = embedding_text(chunk)
    return text if title in chunk.heading else f"{title}\n{text}"
