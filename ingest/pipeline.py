"""Files -> a collection: load, decide what is new, prepare, embed, publish, one document after the other.

What a killed run left behind is finished, or removed, by the next one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ingest.journal import Journal, Recorded, Unfinished
from ingest.load import Failure, find_files, load_documents
from ingest.prepare import Outcome, Prepare, Work
from ingest.publish import Analyze, ChunkStore, EmbedPassages, Publisher, why_unstorable
from ingest.recover import collection_made, count_written, discard, is_gone, is_rewrite, reconcile
from rag.config import Settings
from rag.errors import DocumentError
from rag.filters import Equals
from rag.types import Document, IndexFingerprint


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is. Each number is of what is done at its stage, not of what has been handed to it.

    `documents` are those complete in the store, unchanged or failed; `chunks` the rows written. `seconds_left` goes by
    the bytes still to be read and what those took that were not skipped; None before the first such.
    """

    files: int
    files_total: int
    documents: int
    pages: int
    chunks: int
    seconds: float
    seconds_left: float | None


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
    journal: Journal,
    embed: EmbedPassages,
    analyze: Analyze,
    prepare: Prepare,
    fingerprint: IndexFingerprint,
    settings: Settings,
    say: Callable[[str], None],
    collection: str = "default",
    acl: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    prune: bool = False,
    sources: Mapping[Path, str] | None = None,
    progress: Callable[[Progress], None] | None = None,
    reconciled: bool = False,
) -> IngestReport:
    """Brings a collection up to date with files, folders and globs; `journal` is that collection's. The data directory
    is no part of a folder or a glob that leads to it from outside.

    A document whose bytes are stored already is not parsed again, unless `acl` or `metadata` are given and differ from
    what is stored. Empty ones mean "as stored": a run that does not name groups never opens a document to everyone. A
    former revision stays until all of the new one is written; where the new one cannot be read, that is reported and it
    stays. A new document with the bytes of one whose file is gone takes its place, and counts as replacing it. `prune`
    removes the stored documents whose files were in one of the folders among `paths` and are gone, and those that a
    file which was read no longer holds. `sources` maps resolved paths to the sources that their documents have instead.

    A run that is killed anywhere is made good by the next one, whatever paths that is given: it finishes what was being
    written, and removes what cannot be finished. A complete document whose groups or metadata were being changed is
    not removed: until its file can be read again, each run reports it as failed. `say` is told what was found.
    `reconciled`: the caller has called `reconcile` with the journal since it opened it, which need not list the
    collection again.

    `prepare` reads the documents; what it leaves to be embedded is given to `embed`. With `prepare_here` memory holds
    the text and chunks of three documents, or of many small ones, and the vectors of two batches. Raises
    StoreUnavailableError, IndexMismatchError, ModelError and SettingsError; what was published up to there stays, and
    the same call again goes on from it.
    """
    # Uploads wait there for their jobs, with groups of their own.
    found = find_files(paths, left_out=(settings.data_dir.resolve(), settings.uploads_dir))
    with collection_made(store, collection, fingerprint, journal):
        if not reconciled:
            reconcile(store, collection, journal, say)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="publish") as writer:
            publisher = Publisher(store, collection, journal, embed, analyze, settings.ingest.embed_batch, writer)
            run = _Run(publisher, fingerprint, settings, progress, found.files, sources or {})
            left_behind = {path: source for path, source in _unfinished_files(journal) if path not in found.files}
            with closing(prepare(run.find_works(left_behind, acl, metadata))) as prepared:
                for work, outcome in prepared:
                    run.publish(work, outcome)
            publisher.finish()
        for entry in journal.all_unfinished():
            if not is_rewrite(store, collection, journal, entry):
                why = "an earlier run was stopped while writing it, and it cannot be finished now"
                say(f"{entry.source}: {why}; removed")
                discard(store, collection, journal, entry)
        removed = run.prune(found.folders) if prune else 0
    for entry in journal.all_unfinished():
        say(f"{entry.source}: {run.report_unfinished(entry)}")
    failures = (*found.failures, *run.failures)
    return IngestReport(
        added=publisher.added,
        replaced=publisher.replaced,
        unchanged=run.unchanged,
        removed=removed,
        failed=len(failures),
        chunks=publisher.chunks,
        seconds=time.monotonic() - run.started,
        failures=failures,
    )


@dataclass(slots=True)
class _Run:
    """The documents of one run, one after the other, and what became of them."""

    publisher: Publisher
    fingerprint: IndexFingerprint
    settings: Settings
    progress: Callable[[Progress], None] | None
    given: Sequence[Path]
    sources: Mapping[Path, str]
    started: float = field(default_factory=time.monotonic)
    bytes_total: int = field(init=False)
    places: dict[Path, int] = field(init=False)
    files: int = 0
    decided: int = 0
    to_come: int = 0
    pages: int = 0
    unchanged: int = 0
    skipped_bytes: int = 0
    failures: list[Failure] = field(default_factory=list)
    read_whole: set[Path] = field(default_factory=set)
    places_taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.bytes_total = sum(map(_size, self.given))
        self.places = {path: place for place, path in enumerate(self.given)}
        self.publisher.on_written = self.show

    @property
    def journal(self) -> Journal:
        return self.publisher.journal

    def find_works(
        self, left_behind: Mapping[Path, str], acl: Sequence[str], metadata: Mapping[str, Any] | None
    ) -> Iterator[Work]:
        """What is to be read of the given files, then of those `left_behind`, which were not asked for: the documents
        that a killed run was writing, by their files, each with its source."""
        for path in self.given:
            yield from self._works_of(path, acl, metadata)
            self.decided += 1
            if not self.to_come:
                self.files = self.decided
            self.show()
        for path in sorted(left_behind):
            yield from self._works_left_behind(path, left_behind[path])

    def publish(self, work: Work, outcome: Outcome) -> None:
        """Hands on what was read of a document."""
        self.to_come -= 1
        # Those before the document's own; all that were looked at, where nothing of them is to come.
        self.files = self.places.get(work.path, self.decided) if self.to_come else self.decided
        if isinstance(outcome, DocumentError):
            self._fail(work.document, str(outcome), work.source_bytes)
            return
        document, pending = work.document, work.pending
        self.pages += outcome.pages_read
        version = self.fingerprint.index_version
        if pending is not None and _is_same(document, pending) and pending.index_version == version:
            written = count_written(self.publisher.store, self.publisher.collection, pending, outcome.chunks)
            entry = replace(pending, origin=work.path.as_posix(), written=written)
        else:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            origin = work.path.as_posix()
            facts = (document.document_id, document.revision, document.source, origin, document.acl, document.metadata)
            entry = Unfinished(*facts, version, now)
        self.publisher.add(
            outcome,
            replace(entry, moved_from=_place_of(work.moved) if work.moved else None),
            source_bytes=work.source_bytes,
            known=bool(work.known or work.moved),
            to_remove=bool(work.known or work.moved or pending),
        )

    def _works_of(self, path: Path, acl: Sequence[str], metadata: Mapping[str, Any] | None) -> Iterator[Work]:
        whole = True
        limit = self.settings.ingest.max_file_bytes
        source = self.sources.get(path)
        for document in load_documents(path, max_file_bytes=limit, acl=acl, metadata=metadata, source=source):
            if isinstance(document, Failure):
                self.failures.append(document)
                whole = False
            elif (other := self.journal.mark_seen(document.document_id, path.as_posix())) is not None:
                taken_from = self.sources.get(Path(other), other)
                reason = f"this run took a document of that name from {taken_from}; rename or remove one"
                self._fail(document, reason, _bytes_of(document, path))
            elif (work := self._work_of(document, path, keep_metadata=not metadata)) is not None:
                self.to_come += 1
                yield work
        if whole:
            self.read_whole.add(path)

    def _works_left_behind(self, path: Path, source: str) -> Iterator[Work]:
        for document in load_documents(path, max_file_bytes=self.settings.ingest.max_file_bytes, source=source):
            if isinstance(document, Failure) or self.journal.unfinished(document.document_id) is None:
                continue
            if self.journal.mark_seen(document.document_id, path.as_posix()) is None:
                work = self._work_of(document, path, keep_metadata=True)
                if work is not None:
                    self.to_come += 1
                    yield work

    def _work_of(self, document: Document, path: Path, *, keep_metadata: bool) -> Work | None:
        """None where the store holds the document as it is, and where it could not hold it."""
        origin, size = path.as_posix(), _bytes_of(document, path)
        known = self.journal.recorded(document.document_id)
        pending = self.journal.unfinished(document.document_id)
        moved = self._former_place(document, origin, known, pending)
        document = _keep_what_is_not_given(document, pending or known or moved, keep_metadata)
        if (problem := why_unstorable(document)) is not None:
            self._fail(document, problem, size)
            return None
        if known and _is_same(document, known) and (pending is None or pending.revision != document.revision):
            if pending is not None:  # the file is again what it was before the run that was killed
                discard(self.publisher.store, self.publisher.collection, self.journal, pending)
            if known.origin != origin:
                self.journal.note_origin(document.document_id, origin)
            self.unchanged += 1
            self.skipped_bytes += size
            return None
        return Work(document, path, size, known, pending, moved)

    def prune(self, folders: Sequence[Path]) -> int:
        """Removes the documents whose place in a file, or whose file in one of the folders, is gone; how many."""
        removed = 0
        for document in self.journal.unseen():
            path = Path(document.origin)
            if path.is_relative_to(self.settings.uploads_dir):
                continue  # an uploaded file goes when it was read, its document stays
            gone = any(path.is_relative_to(folder) for folder in folders) and is_gone(path)
            if gone or path in self.read_whole:
                self.publisher.store.delete(self.publisher.collection, Equals("document_id", document.document_id))
                self.journal.forget(document.document_id)
                removed += 1
        return removed

    def report_unfinished(self, entry: Unfinished) -> str:
        """Why a document could not be given its groups and metadata; a failure, unless its file is one already."""
        reason = (
            "an earlier run was stopped while it changed the document's groups or metadata, and it cannot be read now: "
            "some of its parts have the new ones, others the former; make the file readable and ingest again (send an "
            f"upload again), or delete it: rag documents delete {entry.document_id} "
            f"--collection {self.publisher.collection}"
        )
        if all(failure.source != entry.source for failure in self.failures):
            self.failures.append(Failure(entry.source, reason))
        return reason

    def show(self) -> None:
        if self.progress is None:
            return
        publisher, seconds = self.publisher, time.monotonic() - self.started
        left = self.bytes_total - self.skipped_bytes - publisher.source_bytes
        self.progress(
            Progress(
                files=self.files,
                files_total=len(self.given),
                documents=publisher.added + publisher.replaced + self.unchanged + len(self.failures),
                pages=self.pages,
                chunks=publisher.chunks,
                seconds=seconds,
                seconds_left=max(left, 0) * seconds / publisher.source_bytes if publisher.source_bytes else None,
            )
        )

    def _former_place(
        self, document: Document, origin: str, known: Recorded | None, pending: Unfinished | None
    ) -> Recorded | Unfinished | None:
        """The document of the same bytes whose file is gone and whose place this one takes; both are whole files."""
        if pending is not None:
            chosen = self.journal.latest(pending.moved_from) if pending.moved_from is not None else None
            return chosen if chosen is not None and is_gone(chosen.origin) else None
        if known is not None or document.source != origin:
            return None
        for candidate in self.journal.find_moved(document.revision):
            whole = candidate.source == candidate.origin
            if whole and candidate.document_id not in self.places_taken and is_gone(candidate.origin):
                self.places_taken.add(candidate.document_id)
                return candidate
        return None

    def _fail(self, document: Document, reason: str, size: int) -> None:
        self.failures.append(Failure(document.source, reason))
        self.skipped_bytes += size


def _place_of(moved: Recorded | Unfinished) -> str:
    """The document to be removed. One that was itself on its way to a new place has no complete revision: it goes with
    all that cannot be finished."""
    former = moved.moved_from if isinstance(moved, Unfinished) else None
    return former or moved.document_id


def _unfinished_files(journal: Journal) -> Iterator[tuple[Path, str]]:
    """The files of the documents that a killed run was writing, where they are there, and those documents' sources.

    An uploaded file is not called as its document is. Rows have sources of their own, whatever is given here.
    """
    for entry in journal.all_unfinished():
        path = Path(entry.origin)
        # Not Path.is_file, which raises where the system refuses to look.
        if path.is_absolute() and os.path.isfile(path):  # noqa: PTH113
            yield path, entry.source


def _size(path: Path) -> int:
    """In bytes; 0 where it cannot be told, which costs only the estimate of the time left."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _bytes_of(document: Document, path: Path) -> int:
    return _size(path) if document.part is None else document.part[1] - document.part[0]


def _keep_what_is_not_given(document: Document, before: Recorded | Unfinished | None, keep_metadata: bool) -> Document:
    """The document with the former access list where the caller gave none, and the former metadata with
    `keep_metadata`, unless it is a row that changed: a row has metadata of its own."""
    if before is None:
        return document
    keep_metadata = keep_metadata and (document.part is None or document.revision == before.revision)
    metadata = before.metadata if keep_metadata else document.metadata
    return replace(document, acl=document.acl or before.acl, metadata=metadata)


def _is_same(document: Document, before: Recorded | Unfinished) -> bool:
    return (
        before.revision == document.revision
        and before.acl == document.acl
        and dict(before.metadata) == dict(document.metadata)
    )
