"""What an index version holds, made anew in another one: from the stored texts, or from the documents' files."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from ingest.chunk import embedding_text
from ingest.journal import open_journal
from ingest.load import Failure, hash_file, unreadable
from ingest.pipeline import IngestReport, Progress, ingest_documents
from ingest.prepare import prepare_here
from ingest.publish import Analyze, EmbedPassages, searched_text
from rag.config import Settings
from rag.errors import DocumentError
from rag.filters import And, Equals, Filter
from rag.store import MilvusStore
from rag.types import Chunk, CountTokens, Embedding, IndexFingerprint, StoredChunk, StoredDocument

_INSTEAD = "delete its document, reindex, then send it or ingest its file again"
_LOST = f"the file of that name no longer gives this document; {_INSTEAD}"

Row = tuple[Chunk, StoredDocument]


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did: chunks written, those among them whose end the embedder does not read though it understands
    their language, files not read."""

    chunks: int = 0
    cut: int = 0
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
    """Reads the files of the old version's documents again; groups and metadata are kept, deleted documents go.

    A source is what a client said: only one that is the absolute path of a file is looked for, as it stands, and read
    only where that file is the one that the document was made of. Each
    document of the old version that the new one lacks afterwards is a failure.
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
        documents = self.store.stored_documents(old)
        changed = [document for document in documents if self._seen.get(document.document_id) != document]
        limit = self.settings.ingest.max_file_bytes
        problems = [(document, _without_file(document, limit)) for document in changed]
        failures = [Failure(document.source, problem) for document, problem in problems if problem is not None]
        readable = [document for document, problem in problems if problem is None]
        reports = [self._ingest(given, new, check) for given in _by_groups_and_metadata(readable)]
        failures += (failure for report in reports for failure in report.failures)
        self._seen = {document.document_id: document for document in documents}
        made = {document.document_id for document in self.store.stored_documents(new)}
        for document_id in made - self._seen.keys():
            self.store.delete(new, Equals("document_id", document_id))
        told = {failure.source for failure in failures}
        for document in documents:
            if document.document_id not in made and document.source not in told:
                failures.append(Failure(document.source, _LOST))
        return Copied(sum(report.chunks for report in reports), failures=tuple(failures))

    def _ingest(self, documents: Sequence[StoredDocument], new: str, check: Callable[[], None]) -> IngestReport:
        """Ingests the files of documents that share their groups and metadata."""
        written = 0

        def progress(so_far: Progress) -> None:
            nonlocal written
            self.on_written(so_far.chunks - written)
            written = so_far.chunks

        def embed(texts: list[str]) -> Sequence[Embedding]:
            embeddings = self.embed(texts)
            check()
            return embeddings

        with open_journal(self.settings, new, self.say) as journal:
            return ingest_documents(
                [document.source for document in documents],
                store=self.store,
                journal=journal,
                embed=embed,
                analyze=self.analyze,
                prepare=prepare_here(self.settings, self.count_tokens),
                fingerprint=self.fingerprint,
                settings=self.settings,
                collection=new,
                acl=documents[0].acl,
                metadata=documents[0].metadata,
                progress=progress,
                say=self.say,
            )


def _without_file(document: StoredDocument, max_file_bytes: int) -> str | None:
    """Why the document cannot be read again; None where there is a file that holds what it was made of.

    A file that holds something else is left alone: a client's row may name any file as its source.
    """
    if not Path(document.source).is_absolute():
        return f"its source is no absolute path: it was uploaded, or a row of a file; {_INSTEAD}"
    if not os.path.isfile(document.source):  # noqa: PTH113, Path.is_file raises where the system refuses to look
        return "there is no such file; bring it back, or delete its document"
    try:
        same = hash_file(Path(document.source), max_file_bytes) == document.revision
    except OSError as error:
        return unreadable(error)
    except DocumentError as error:
        return str(error)
    return None if same else "it is not what the document was made of; ingest it again, or delete its document"


def _by_groups_and_metadata(documents: Iterable[StoredDocument]) -> Iterable[list[StoredDocument]]:
    together: dict[str, list[StoredDocument]] = defaultdict(list)
    for document in documents:
        key = json.dumps([list(document.acl), dict(document.metadata)], sort_keys=True)
        together[key].append(document)
    return together.values()
