"""Files -> a collection: load, parse, chunk, embed, publish, one document after the other.

What a killed run left behind is written again, or removed, by the next one.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ingest.chunk import chunk_document
from ingest.load import Failure, find_files, load_documents
from ingest.parse import parse_document
from ingest.publish import Analyze, ChunkStore, EmbedPassages, Publisher
from rag.config import Settings
from rag.errors import DocumentError
from rag.filters import Equals
from rag.types import Chunk, CountTokens, Document, IndexFingerprint, ParsedDocument, StoredDocument

logger = logging.getLogger(__name__)

_MAX_PAGES_OF_CHUNK = 4096  # the most that a row of the store can list


class Progress(Protocol):
    """Called with running totals after each document and each batch of chunks."""

    def __call__(self, documents: int, documents_total: int, chunks: int, pages: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What a run did, in documents; `chunks` counts those written, `failures` says why for each that failed."""

    added: int
    replaced: int
    unchanged: int
    removed: int
    failed: int
    chunks: int
    seconds: float
    failures: tuple[Failure, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as `rag ingest --json` prints it."""
        counts = ("added", "replaced", "unchanged", "removed", "failed")
        return {
            "documents": {name: getattr(self, name) for name in counts},
            "chunks": self.chunks,
            "seconds": round(self.seconds, 3),
            "failures": [asdict(failure) for failure in self.failures],
        }


def ingest_documents(
    paths: Sequence[str | Path],
    *,
    store: ChunkStore,
    embed: EmbedPassages,
    analyze: Analyze,
    count_tokens: CountTokens,
    fingerprint: IndexFingerprint,
    settings: Settings,
    collection: str = "default",
    acl: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    prune: bool = False,
    sources: Mapping[Path, str] | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Brings a collection up to date with files, folders and globs.

    A file whose bytes are stored already is not parsed again, unless `acl` or `metadata` are given and differ from what
    is stored. Empty ones mean "as stored": a run that does not name groups never opens a document to everyone. A former
    revision stays until all of the new one is written; where the new one cannot be read, that is reported and it stays.
    `prune` removes the stored documents whose files were in one of the folders among `paths` and are gone. `sources`
    maps resolved paths to the sources that their documents have instead.

    Memory holds one document's text and chunks, and the vectors of one batch. Raises StoreUnavailableError,
    IndexMismatchError and ModelError; what was published up to there stays, and the same call again goes on from it.
    """
    started = time.monotonic()
    found = find_files(paths)
    store.ensure_collection(collection, fingerprint)
    stored: dict[str, list[StoredDocument]] = defaultdict(list)
    for entry in store.stored_documents(collection):
        stored[entry.document_id].append(entry)
    failures: list[Failure] = []
    unchanged = pages = 0

    def report() -> None:
        if progress is not None:
            done = publisher.added + publisher.replaced + unchanged + len(failures)
            progress(done, len(found.files), publisher.chunks, pages)

    publisher = Publisher(store, collection, embed, analyze, settings.ingest.embed_batch, on_written=report)
    for path in found.files:
        for document in load_documents(
            path,
            max_file_bytes=settings.ingest.max_file_bytes,
            acl=acl,
            metadata=metadata,
            source=sources.get(path) if sources else None,
        ):
            if isinstance(document, Failure):
                failures.append(document)
                continue
            known = stored.get(document.document_id, [])
            document = _keep_what_is_not_given(document, known)
            if any(_is_same(document, entry) for entry in known):
                if len(known) > 1:  # a run was killed after it wrote this revision
                    publisher.delete_other_revisions(document)
                unchanged += 1
                continue
            try:
                parsed = parse_document(document, settings.ingest, path)
                chunks = _chunks(parsed, settings, count_tokens)
            except DocumentError as error:
                failures.append(Failure(document.source, str(error)))
                continue
            pages += len(parsed.pages)
            publisher.add(parsed, chunks, replaces=bool(known))
        report()
    publisher.finish()
    removed = _prune(store, collection, found.folders, stored) if prune else 0
    failures = [*found.failures, *failures]
    return IngestReport(
        added=publisher.added,
        replaced=publisher.replaced,
        unchanged=unchanged,
        removed=removed,
        failed=len(failures),
        chunks=publisher.chunks,
        seconds=time.monotonic() - started,
        failures=tuple(failures),
    )


def _chunks(parsed: ParsedDocument, settings: Settings, count_tokens: CountTokens) -> list[Chunk]:
    chunks = chunk_document(parsed, settings.chunk, count_tokens)
    if not chunks:
        raise DocumentError("it holds no text beside headings and white space; write some or leave it out")
    if any(len(chunk.page_starts) > _MAX_PAGES_OF_CHUNK for chunk in chunks):
        raise DocumentError(
            f"more than {_MAX_PAGES_OF_CHUNK:,} of its pages in a row hold next to no text; "
            "add a text layer first, for example: ocrmypdf IN OUT"
        )
    if parsed.skipped_pages:
        source, count = parsed.document.source, len(parsed.pages)
        logger.warning("%s: %d of its %d pages could not be read", source, parsed.skipped_pages, count)
    return chunks


def _keep_what_is_not_given(document: Document, known: Sequence[StoredDocument]) -> Document:
    """The document with the stored access list and metadata where the caller gave none."""
    if not known:
        return document
    latest = max(known, key=lambda entry: entry.updated_at)
    return replace(document, acl=document.acl or latest.acl, metadata=document.metadata or latest.metadata)


def _is_same(document: Document, entry: StoredDocument) -> bool:
    return (
        entry.revision == document.revision
        and tuple(entry.acl) == document.acl
        and dict(entry.metadata) == dict(document.metadata)
    )


def _prune(
    store: ChunkStore, collection: str, folders: Sequence[Path], stored: Mapping[str, Sequence[StoredDocument]]
) -> int:
    """Removes the documents whose files were in one of the folders and are gone; how many."""
    removed = 0
    for document_id, entries in stored.items():
        path = Path(entries[0].source)
        if any(path.is_relative_to(folder) for folder in folders) and _is_gone(path):
            store.delete(collection, Equals("document_id", document_id))
            removed += 1
    return removed


def _is_gone(path: Path) -> bool:
    """Whether there is certainly no such file: a folder that may not be looked into says nothing."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False
