"""A job's files through the ingest pipeline, and what became of each. Knows nothing of Ray."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from deployments.jobs import Job, JobDocument
from ingest.journal import Journal
from ingest.load import Failure, load_documents
from ingest.pipeline import IngestReport, ingest_documents
from ingest.prepare import prepare_here
from ingest.publish import Analyze, ChunkStore, EmbedPassages
from ingest.recover import collection_made, discard, is_rewrite, reconcile
from ingest.rows import find_rows, read_row
from rag.config import Settings
from rag.document_wire import why_refused
from rag.errors import DocumentError, StageError
from rag.filters import OneOf
from rag.types import CountTokens, Document, IndexFingerprint, StoredDocument

MAX_FAILURES = 100  # named one by one of those within a file
HIDDEN = "a document of that source exists that you may not see; choose another source"
LOOKED_UP = 500  # documents in one query of the store
VISIBLE = "visible-"  # begins the name of a copy without the rows that are not taken


def ingest_job(
    job: Job,
    folder: Path,
    *,
    store: ChunkStore,
    journal: Journal,
    say: Callable[[str], None],
    embed: EmbedPassages,
    analyze: Analyze,
    count_tokens: CountTokens,
    fingerprint: IndexFingerprint,
    settings: Settings,
    reported: Callable[[IngestReport], None],
) -> list[JobDocument]:
    """The job's documents, done or failed; a search that starts afterwards finds those that are done.

    `journal` is held by this process alone, so that nobody else ingests into the collection meanwhile. A document that
    its sender's groups may not see is not replaced, and no row is taken whose source a client may not name. Done twice
    it changes nothing. `reported` hears what the run did. Raises what `ingest_documents` does, and StageError where the
    disk fails.
    """
    files = {folder / one.file: one for one in job.documents if one.file is not None}
    max_file_bytes = settings.ingest.max_file_bytes
    with collection_made(store, job.collection, fingerprint, journal):
        reconcile(store, job.collection, journal, say)  # from here on the journal knows what is stored
    closed: dict[str, str] = {}  # why a document is not taken, by its id
    taken: dict[Path, Path | None] = {}
    for path, document in files.items():
        left_out: list[Document] = []
        for one in load_documents(path, max_file_bytes=max_file_bytes, source=document.source):
            if isinstance(one, Document) and (reason := _why_closed(one, job, folder, journal)) is not None:
                closed[one.document_id] = reason
                left_out.append(one)
        taken[path] = _without(path, left_out, max_file_bytes)
    report = ingest_documents(
        [path for path in taken.values() if path is not None],
        store=store,
        journal=journal,
        say=say,
        embed=embed,
        analyze=analyze,
        prepare=prepare_here(settings, count_tokens),
        fingerprint=fingerprint,
        settings=settings,
        collection=job.collection,
        acl=job.acl,
        metadata=job.metadata,
        sources={path: files[original].source for original, path in taken.items() if path is not None},
        reconciled=True,
    )
    reported(report)
    reasons: defaultdict[str, list[str]] = defaultdict(list)
    for failure in report.failures:
        reasons[failure.source].append(failure.reason)
    outcomes: list[JobDocument] = []
    within: list[JobDocument] = []
    for path, document in files.items():
        done: list[StoredDocument] = []
        failed: list[JobDocument] = []
        loaded = load_documents(path, max_file_bytes=max_file_bytes, source=document.source)
        for some in _groups_of(loaded, LOOKED_UP):
            ids = tuple(one.document_id for one in some if isinstance(one, Document))
            found = store.stored_documents(job.collection, OneOf("document_id", ids)) if ids else ()
            stored = {one.document_id: one for one in found}
            for one in some:
                outcome = _outcome(one, path, taken[path], closed, journal, reasons, stored)
                if isinstance(outcome, StoredDocument):
                    done.append(outcome)
                else:
                    failed.append(JobDocument(one.source, state="failed", reason=outcome))
        outcomes.append(_sum_up(document, done, failed))
        if len(done) + len(failed) > 1:
            within += failed
    return outcomes + within[:MAX_FAILURES]


def undo_job(job: Job, folder: Path, *, store: ChunkStore, journal: Journal, say: Callable[[str], None]) -> None:
    """Removes what a job that is given up was in the middle of writing; the documents that it completed stay.

    `journal` is held by this process alone. One whose groups were being changed stays too, and every later run reports
    it. Raises StoreUnavailableError, UnknownCollectionError and SettingsError.
    """
    if not any(Path(entry.origin).is_relative_to(folder) for entry in journal.all_unfinished()):
        return
    reconcile(store, job.collection, journal, say)
    for entry in journal.all_unfinished():
        if Path(entry.origin).is_relative_to(folder) and not is_rewrite(store, job.collection, journal, entry):
            discard(store, job.collection, journal, entry)


def _groups_of(loaded: Iterable[Document | Failure], size: int) -> Iterator[list[Document | Failure]]:
    """In their order, at most `size` at a time."""
    rest = iter(loaded)
    while some := list(islice(rest, size)):
        yield some


def _why_closed(document: Document, job: Job, folder: Path, journal: Journal) -> str | None:
    """Why a document may not be taken from the job's sender; None where it may.

    The source of a whole file was looked at when it came; a row names its own.
    """
    if document.part is not None and (problem := why_refused(document.source)) is not None:
        return f"its source (or its id, without one) cannot be taken: {problem}"
    return HIDDEN if _is_hidden(document, job, folder, journal) else None


def _is_hidden(document: Document, job: Job, folder: Path, journal: Journal) -> bool:
    """Whether it would replace one, complete or not, that the job's sender may not see.

    What the job itself wrote before it was stopped is its own, whoever may see it.
    """
    found = (journal.recorded(document.document_id), journal.unfinished(document.document_id))
    return any(
        before is not None
        and bool(before.acl)
        and set(before.acl).isdisjoint(job.caller_groups)
        and not Path(before.origin).is_relative_to(folder)
        for before in found
    )


def _without(path: Path, left_out: Sequence[Document], max_row_bytes: int) -> Path | None:
    """The file without these of its documents: itself, a copy with blank lines for them, or None where nothing is left.

    Raises StageError where the copy cannot be written.
    """
    if not left_out:
        return path
    if all(one.part is None for one in left_out):
        return None
    sources = {one.source for one in left_out}
    copy = path.with_name(VISIBLE + path.name)
    try:
        shutil.copyfile(path, copy)
        with copy.open("r+b") as file:
            for _, (start, end), raw in find_rows(path, max_row_bytes):
                if _source_of(raw) in sources:  # a second row of that name too, or it would now be the first
                    file.seek(start)
                    file.write(b" " * (end - start))
    except OSError as error:
        reason = f"an upload cannot be copied ({error.strerror}); free space or mend the disk"
        raise StageError("indexer", reason) from error
    return copy


def _source_of(raw: bytes) -> str | None:
    """What a row calls its document; None where it is no row."""
    try:
        return read_row(raw).source
    except DocumentError:
        return None


def _outcome(
    one: Document | Failure,
    path: Path,
    taken: Path | None,
    closed: Mapping[str, str],
    journal: Journal,
    reasons: Mapping[str, list[str]],
    stored: Mapping[str, StoredDocument],
) -> StoredDocument | str:
    """What the store holds of a document of the file at `path`, of which the run was given `taken`, or why it failed.

    `reasons` are by source, in the order of the files; the one that is given is taken out.
    """
    if isinstance(one, Failure):
        return one.reason if path.exists() else "its uploaded file is gone; send it again"
    if one.document_id in closed:
        return closed[one.document_id]
    recorded = journal.recorded(one.document_id)
    if recorded is None or taken is None or Path(recorded.origin) != taken:
        if own := reasons.get(one.source):
            return own.pop(0)
    elif one.document_id in stored:
        return stored[one.document_id]
    return "it was deleted while its job ran; send it again if that was not meant"


def _sum_up(document: JobDocument, done: list[StoredDocument], failed: list[JobDocument]) -> JobDocument:
    reason = None
    if len(failed) == 1 and not done:
        reason = failed[0].reason
    elif failed:
        reason = f"{len(failed)} of the {len(done) + len(failed)} documents in it failed"
    elif not done:
        reason = "it holds no documents"
    if not done:
        return replace(document, state="failed", reason=reason)
    pages = [one.pages for one in done if one.pages is not None]
    return replace(
        document,
        state="done",
        reason=reason,
        pages=sum(pages) if pages else None,
        chunks=sum(one.chunks for one in done),
    )
