"""Chunks -> rows of the store, in batches that fill up whichever documents the chunks belong to.

A document counts as stored once its chunk of ordinal 0 is; that row is therefore written last. The journal knows of a
revision before its first row is written, and until the rows that it replaces are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Protocol

from ingest.chunk import embedding_text
from ingest.journal import Journal, Unfinished
from ingest.prepare import Prepared
from rag.columns import document_columns
from rag.filters import And, Compare, Equals, Filter, NotEquals, Or
from rag.types import Chunk, Document, Embedding, IndexFingerprint, StoredChunk, StoredDocument

_MAX_TITLE_CHARS = 300  # a page's <title> may be a whole text; a row of the store has a limit

EmbedPassages = Callable[[list[str]], Sequence[Embedding]]  # what is kept of each text, in their order
Analyze = Callable[[str], str]  # text -> its terms, separated by spaces


class ChunkStore(Protocol):
    """What ingestion needs of a store. Every method may raise StoreUnavailableError."""

    def ensure_collection(self, name: str, fingerprint: IndexFingerprint) -> bool:
        """Makes the collection if it is not there; whether it had to.

        Raises IndexMismatchError where it was built differently.
        """

    def stored_documents(self, collection: str, where: Filter | None = None) -> Iterable[StoredDocument]:
        """An entry for each revision whose chunk of ordinal 0 is there, of those that `where` means; None: all."""

    def every_chunk(self, collection: str, where: Filter | None = None) -> Iterable[tuple[Chunk, StoredDocument]]:
        """Every row that `where` means (None: all): a chunk, and what the row says of its document."""

    def chunks(self, collection: str, document_id: str) -> Sequence[Chunk]:
        """The document's chunks of every revision."""

    def upsert(self, collection: str, rows: Sequence[StoredChunk]) -> None:
        """Rows by chunk id, replacing; a search that starts afterwards sees them."""

    def delete(self, collection: str, where: Filter, *, everywhere: bool = True) -> None:
        """Every row that matches; a search that starts afterwards sees none of them.

        Not `everywhere`: an old index version that is kept keeps its rows.
        """


def why_unstorable(facts: Document | Unfinished) -> str | None:
    """What no row could hold of what each row says of the document; None where there is nothing of the kind.

    The title is left aside: a row holds only its first _MAX_TITLE_CHARS.
    """
    try:
        document_columns("", facts.source, facts.acl, facts.metadata)
    except ValueError as error:
        return str(error)
    return None


def remove_replaced(store: ChunkStore, collection: str, entry: Unfinished, chunks: int) -> None:
    """Removes the rows that a complete revision of so many chunks takes the place of: those of other revisions, those
    that the same one had when it was split into more, and those of where it moved from.

    A version that is kept holds the document as it was, in chunks of its own: they stay.
    """
    this = Equals("document_id", entry.document_id)
    replaced = Or((NotEquals("revision", entry.revision), Compare("ordinal", ">=", chunks)))
    store.delete(collection, And((this, replaced)), everywhere=False)
    if entry.moved_from is not None:
        store.delete(collection, Equals("document_id", entry.moved_from))


@dataclass(slots=True)
class _Unpublished:
    """A document on its way into the store: what its rows share, how many are to come, and the one kept for last."""

    prepared: Prepared
    entry: Unfinished
    known: bool
    to_remove: bool
    bytes_per_chunk: float
    to_come: int
    begun: bool = False
    first: StoredChunk | None = None


@dataclass(slots=True)
class Publisher:
    """Embeds what it is given, `batch` chunks at a time, and has `writer` write one batch while it embeds the next.

    `writer` runs one task at a time. What fails there is raised by the next call here, and nothing is written after it.
    `on_written` is called after each batch. `added` and `replaced` count the documents that are complete in the store,
    `chunks` the rows written, `source_bytes` the share of the files that they stand for.
    """

    store: ChunkStore
    collection: str
    journal: Journal
    embed: EmbedPassages
    analyze: Analyze
    batch: int
    writer: Executor
    on_written: Callable[[], None] | None = None
    added: int = 0
    replaced: int = 0
    chunks: int = 0
    source_bytes: float = 0
    _waiting: list[tuple[_Unpublished, Chunk]] = field(default_factory=list)
    _being_written: Future[None] | None = None

    def add(
        self,
        prepared: Prepared,
        entry: Unfinished,
        *,
        source_bytes: int,
        known: bool,
        to_remove: bool,
    ) -> None:
        """Takes all chunks of a document, and writes those that `entry` does not count as written; in full batches.

        `known`: it replaces a stored document. `to_remove`: rows of another revision or document may be there.
        """
        left = [chunk for chunk in prepared.chunks if not 1 <= chunk.ordinal <= entry.written]
        each = source_bytes / len(prepared.chunks)
        self.source_bytes += each * (len(prepared.chunks) - len(left))
        unpublished = _Unpublished(prepared, entry, known, to_remove, each, to_come=len(left))
        self._waiting.extend((unpublished, chunk) for chunk in left)
        while len(self._waiting) >= self.batch:
            self._write_batch()

    def finish(self) -> None:
        """Writes what still waits for its batch to be full, and waits until it is written."""
        while self._waiting:
            self._write_batch()
        self._wait()

    def _write_batch(self) -> None:
        batch, self._waiting = self._waiting[: self.batch], self._waiting[self.batch :]
        embeddings = self._embeddings(batch)
        self._wait()
        self._being_written = self.writer.submit(self._publish, batch, embeddings)

    def _embeddings(self, batch: Sequence[tuple[_Unpublished, Chunk]]) -> list[Embedding]:
        """Those that the documents came with, the others embedded together."""
        missing = [embedding_text(chunk) for unpublished, chunk in batch if unpublished.prepared.embeddings is None]
        embedded = iter(self.embed(missing)) if missing else iter(())
        return [
            next(embedded) if (given := unpublished.prepared.embeddings) is None else given[chunk.ordinal]
            for unpublished, chunk in batch
        ]

    def _wait(self) -> None:
        if self._being_written is not None:
            future, self._being_written = self._being_written, None
            future.result()
            if self.on_written is not None:
                self.on_written()

    def _publish(self, batch: Sequence[tuple[_Unpublished, Chunk]], embeddings: Sequence[Embedding]) -> None:
        documents = list({id(unpublished): unpublished for unpublished, _ in batch}.values())
        if starting := [unpublished for unpublished in documents if not unpublished.begun]:
            self.journal.begin([unpublished.entry for unpublished in starting])
        rows: list[StoredChunk] = []
        written: dict[str, int] = {}
        for (unpublished, chunk), embedding in zip(batch, embeddings, strict=True):
            row = self._row(unpublished, chunk, embedding)
            if chunk.ordinal == 0:
                unpublished.first = row
            else:
                rows.append(row)
                written[chunk.document_id] = chunk.ordinal
            unpublished.begun = True
            unpublished.to_come -= 1
        if rows:
            self.store.upsert(self.collection, rows)
            self.journal.advance(written)
        self._complete([unpublished for unpublished in documents if unpublished.to_come == 0])
        self.chunks += len(batch)
        self.source_bytes += sum(unpublished.bytes_per_chunk for unpublished, _ in batch)

    def _complete(self, documents: Sequence[_Unpublished]) -> None:
        if not documents:
            return
        self.store.upsert(self.collection, [unpublished.first for unpublished in documents if unpublished.first])
        for unpublished in documents:
            if unpublished.to_remove:
                remove_replaced(self.store, self.collection, unpublished.entry, len(unpublished.prepared.chunks))
        self.journal.finish([(unpublished.entry, len(unpublished.prepared.chunks)) for unpublished in documents])
        replaced = sum(unpublished.known for unpublished in documents)
        self.replaced += replaced
        self.added += len(documents) - replaced

    def _row(self, unpublished: _Unpublished, chunk: Chunk, embedding: Embedding) -> StoredChunk:
        prepared = unpublished.prepared
        title = prepared.title[:_MAX_TITLE_CHARS]
        return StoredChunk(
            chunk=chunk,
            vector=embedding.vector,
            analyzed=self.analyze(searched_text(title, chunk)),
            title=title,
            source=prepared.document.source,
            acl=prepared.document.acl,
            metadata=prepared.document.metadata,
            document_chunks=len(prepared.chunks),
            document_pages=prepared.pages,
            updated_at=unpublished.entry.updated_at,
            token_vectors=embedding.token_vectors,
        )


def searched_text(title: str, chunk: Chunk) -> str:
    """What lexical search finds a chunk by: its document's title, unless the heading path holds it, and its text."""
    text = embedding_text(chunk)
    return text if title in chunk.heading else f"{title}\n{text}"
