"""What an index version holds, made anew in another one: chunk by chunk, or split anew from files or stored texts."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from ingest.chunk import embedding_text
from ingest.documents import list_documents
from ingest.journal import Journal, Unfinished, open_journal
from ingest.load import Failure, hash_file
from ingest.pipeline import ingest_documents
from ingest.prepare import Prepared, chunk_parsed, prepare_here
from ingest.publish import Analyze, EmbedPassages, Publisher, searched_text
from ingest.rebuild import rebuild_document
from ingest.recover import discard, reconcile
from rag.config import Settings
from rag.errors import DocumentError
from rag.filters import And, Equals, Filter, OneOf
from rag.store import MilvusStore
from rag.types import Chunk, CountTokens, Embedding, IndexFingerprint, StoredChunk, StoredDocument

_READ_DOCUMENTS, _READ_CHUNKS = 256, 1_000  # whose chunks one call reads: it looks through the whole collection

T = TypeVar("T")
Row = tuple[Chunk, StoredDocument]


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did: chunks written, those among them whose end the embedder does not read though it understands
    their language, documents put together from their chunks, and documents that could not be made."""

    chunks: int = 0
    cut: int = 0
    rebuilt: int = 0
    failures: tuple[Failure, ...] = ()


class Copy(Protocol):
    """Makes the new version hold what the old one holds; what it holds already is not made again.

    Takes the physical names of both, and `check`, which is called before each write and raises when another run has
    taken over.
    """

    def __call__(self, old: str, new: str, check: Callable[[], None], /) -> Copied: ...


@dataclass(frozen=True, slots=True)
class StoredTexts:
    """Copies the chunks as they are stored: their vectors and terms are made anew, the files are not needed."""

    store: MilvusStore
    embed: EmbedPassages
    analyze: Analyze
    is_cut: Callable[[str], bool]  # whether the embedder leaves out the end of a text that it understands
    batch: int
    on_written: Callable[[int], None]  # with the number of chunks of each batch

    def __call__(self, old: str, new: str, check: Callable[[], None], /) -> Copied:
        chunks = cut = 0
        missing = self._missing(old, new)
        while batch := list(islice(missing, self.batch)):
            texts = [embedding_text(chunk) for chunk, _ in batch]
            rows = [self._row(row, embedding) for row, embedding in zip(batch, self.embed(texts), strict=True)]
            check()
            self.store.upsert(new, rows)
            chunks += len(rows)
            cut += sum(map(self.is_cut, texts))
            self.on_written(len(rows))
        return Copied(chunks, cut)

    def _missing(self, old: str, new: str) -> Iterator[Row]:
        """The rows that the new version lacks or has otherwise; those that only it has are removed."""
        for row, is_old in compare_rows(self.store.every_chunk(old), self.store.every_chunk(new)):
            if is_old:
                yield row
            else:
                self.store.delete(new, _this_chunk(row[0]))

    def _row(self, row: Row, embedding: Embedding) -> StoredChunk:
        chunk, document = row
        return StoredChunk(
            chunk=chunk,
            vector=embedding.vector,
            analyzed=self.analyze(searched_text(document.title, chunk)),
            title=document.title,
            source=document.source,
            acl=document.acl,
            metadata=document.metadata,
            document_chunks=document.chunks,
            document_pages=document.pages,
            updated_at=document.updated_at,
            token_vectors=embedding.token_vectors,
        )


def compare_rows(old: Iterable[Row], new: Iterable[Row]) -> Iterator[tuple[Row, bool]]:
    """The rows of two sides, each in the order of chunk ids, that differ: (row, True) of the old side where the new one
    lacks it or has it otherwise, (row, False) of the new side where the old one has no such chunk."""
    rest = iter(new)
    ours = next(rest, None)
    for row in old:
        chunk_id = row[0].chunk_id
        while ours is not None and ours[0].chunk_id < chunk_id:
            yield ours, False
            ours = next(rest, None)
        # Taken before the row is given away: a page of the new side that is read later would hold what was copied.
        same = ours == row
        if ours is not None and ours[0].chunk_id == chunk_id:
            ours = next(rest, None)
        if not same:
            yield row, True
    while ours is not None:
        yield ours, False
        ours = next(rest, None)


def _this_chunk(chunk: Chunk) -> Filter:
    document, revision = Equals("document_id", chunk.document_id), Equals("revision", chunk.revision)
    return And((document, revision, Equals("ordinal", chunk.ordinal)))


@dataclass(slots=True)
class Files:
    """Splits the old version's documents anew; groups and metadata are kept, deleted documents go.

    A document's file is read again where it still holds what the document was made of. A source is what a client said:
    only one that is the absolute path of a file is looked for, as it stands. Every other document (uploads, rows, files
    that changed or are gone) is put together from its chunks, see ingest.rebuild.
    """

    store: MilvusStore
    embed: EmbedPassages
    analyze: Analyze
    count_tokens: CountTokens
    fingerprint: IndexFingerprint
    settings: Settings
    on_written: Callable[[int], None]
    say: Callable[[str], None]
    _seen: dict[str, StoredDocument] = field(default_factory=dict)

    def __call__(self, old: str, new: str, check: Callable[[], None], /) -> Copied:
        documents = list_documents(self.store, old, None)
        changed = [document for document in documents if self._seen.get(document.document_id) != document]
        limit = self.settings.ingest.max_file_bytes
        readable = [document for document in changed if _has_file(document, limit)]
        chunks = sum(self._ingest(given, new, check) for given in _by_groups_and_metadata(readable))
        self._seen = {document.document_id: document for document in documents}
        with open_journal(self.settings, new, self.say) as journal:
            check()
            reconcile(self.store, new, journal, self.say)
            made = {document.document_id: document for document in self.store.stored_documents(new)}
            for document_id in made.keys() - self._seen.keys():
                self.store.delete(new, Equals("document_id", document_id))
                journal.forget(document_id)
            begun = {entry.document_id for entry in journal.all_unfinished()}
            missing = [
                document
                for document in documents
                if document.document_id in begun or not _is_made(document, made.get(document.document_id))
            ]
            copied = self._rebuild(missing, made.keys() | begun, old, new, journal, check)
            for entry in journal.all_unfinished():  # deleted since a killed run began them, or failed now
                discard(self.store, new, journal, entry)
        return replace(copied, chunks=chunks + copied.chunks)

    def _ingest(self, documents: Sequence[StoredDocument], new: str, check: Callable[[], None]) -> int:
        """Ingests the files of documents that share their groups and metadata; how many chunks. What fails is told, and
        left to `_rebuild`."""
        with open_journal(self.settings, new, self.say) as journal:
            check()
            report = ingest_documents(
                [document.source for document in documents],
                store=self.store,
                journal=journal,
                embed=self._checked(check),
                analyze=self.analyze,
                prepare=prepare_here(self.settings, self.count_tokens),
                fingerprint=self.fingerprint,
                settings=self.settings,
                collection=new,
                acl=documents[0].acl,
                metadata=documents[0].metadata,
                progress=self._counted(lambda progress: progress.chunks),
                say=self.say,
            )
        for failure in report.failures:
            self.say(f"{failure.source}: {failure.reason}")
        return report.chunks

    def _rebuild(
        self,
        documents: Sequence[StoredDocument],
        begun: Set[str],
        old: str,
        new: str,
        journal: Journal,
        check: Callable[[], None],
    ) -> Copied:
        """Makes documents from their chunks; `begun` are the ids of those that the new version has rows of."""
        if not documents:
            return Copied()
        self.say(f"{len(documents)} documents are made from their stored text")
        failures: list[Failure] = []
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish") as writer:
            batch = self.settings.ingest.embed_batch
            publisher = Publisher(self.store, new, journal, self._checked(check), self.analyze, batch, writer)
            tell = self._counted(lambda _: publisher.chunks)
            publisher.on_written = partial(tell, None)
            for document, rows in self._with_rows(documents, old):
                try:
                    parsed = rebuild_document(document, rows)
                    split = chunk_parsed(parsed, self.settings, self.count_tokens)
                except DocumentError as error:
                    # One that was deleted or replaced since it was listed: the copy after this one sees to it.
                    if document in self.store.stored_documents(old, Equals("document_id", document.document_id)):
                        failures.append(Failure(document.source, str(error)))
                    continue
                prepared = Prepared(parsed.document, document.title, len(parsed.pages), document.pages, split)
                entry = _entry(document, self.fingerprint.index_version)
                to_remove = document.document_id in begun
                publisher.add(prepared, entry, source_bytes=0, known=False, to_remove=to_remove)
            publisher.finish()
        return Copied(publisher.chunks, rebuilt=publisher.added, failures=tuple(failures))

    def _with_rows(self, documents: Sequence[StoredDocument], old: str) -> Iterator[tuple[StoredDocument, list[Chunk]]]:
        """Each with its rows, of every revision; many small documents are read by one call."""
        waiting = list(documents)
        while waiting:
            some = [waiting.pop()]
            while waiting and len(some) < _READ_DOCUMENTS and sum(one.chunks for one in some) < _READ_CHUNKS:
                some.append(waiting.pop())
            rows: dict[str, list[Chunk]] = defaultdict(list)
            for chunk, _ in self.store.every_chunk(old, OneOf("document_id", tuple(one.document_id for one in some))):
                rows[chunk.document_id].append(chunk)
            for document in some:
                yield document, rows[document.document_id]

    def _checked(self, check: Callable[[], None]) -> EmbedPassages:
        """The embedder, and `check` before what it gives is written."""

        def embed(texts: list[str]) -> Sequence[Embedding]:
            embeddings = self.embed(texts)
            check()
            return embeddings

        return embed

    def _counted(self, count: Callable[[T], int]) -> Callable[[T], None]:
        """Tells `on_written` of each change of a count of chunks."""
        told = 0

        def tell(so_far: T) -> None:
            nonlocal told
            self.on_written(count(so_far) - told)
            told = count(so_far)

        return tell


def _has_file(document: StoredDocument, max_file_bytes: int) -> bool:
    """Whether there is a file of its name that holds what the document was made of.

    One that holds something else is left alone: a client's row may name any file as its source.
    """
    if not Path(document.source).is_absolute():
        return False
    try:
        if not os.path.isfile(document.source):  # noqa: PTH113, Path.is_file raises where the system refuses to look
            return False
        return hash_file(Path(document.source), max_file_bytes) == document.revision
    except (OSError, DocumentError):  # it cannot be read now; its stored text can
        return False


def _is_made(document: StoredDocument, made: StoredDocument | None) -> bool:
    """Whether the new version has the document as the old one does, in chunks of its own."""
    if made is None:
        return False
    facts = ("revision", "source", "acl", "metadata")
    return all(getattr(made, name) == getattr(document, name) for name in facts)


def _entry(document: StoredDocument, index_version: str) -> Unfinished:
    """What the journal knows of it while it is written: as the old version's rows have it, and no file, which a later
    run would read to finish what this one began."""
    return Unfinished(
        document.document_id,
        document.revision,
        document.source,
        "",
        document.acl,
        document.metadata,
        index_version,
        document.updated_at,
    )


def _by_groups_and_metadata(documents: Iterable[StoredDocument]) -> Iterable[list[StoredDocument]]:
    together: dict[str, list[StoredDocument]] = defaultdict(list)
    for document in documents:
        key = json.dumps([list(document.acl), dict(document.metadata)], sort_keys=True)
        together[key].append(document)
    return together.values()
