"""A job's files through the ingest pipeline, and what became of each. Knows nothing of Ray."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from deployments.jobs import Job, JobDocument
from ingest.journal import Journal
from ingest.load import Failure, load_documents
from ingest.pipeline import IngestReport, ingest_documents
from ingest.prepare import prepare_here
from ingest.publish import Analyze, ChunkStore, EmbedPassages
from ingest.recover import reconcile
from rag.config import Settings
from rag.errors import StageError
from rag.filters import OneOf
from rag.types import CountTokens, Document, IndexFingerprint, StoredDocument

MAX_FAILURES = 100  # named one by one of those within a file
HIDDEN = "a document of that source exists that you may not see; choose another source"
LOOKED_UP = 500  # documents in one query of the store
VISIBLE = "visible-"  # begins the name of a copy without the rows that would replace hidden documents


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
    its sender's groups may not see is not replaced. Done twice it changes nothing. `reported` hears what the run did.
    Raises what `ingest_documents` does, and StageError where the disk fails.
    """
    files = {folder / one.file: one for one in job.documents if one.file is not None}
    max_file_bytes = settings.ingest.max_file_bytes
    store.ensure_collection(job.collection, fingerprint)
    reconcile(store, job.collection, journal, say)  # from here on the journal knows what is stored
    hidden: set[str] = set()
    taken: dict[Path, Path | None] = {}
    for path, document in files.items():
        loaded = load_documents(path, max_file_bytes=max_file_bytes, source=document.source)
        closed = [one for one in loaded if isinstance(one, Document) and _is_hidden(one, job, folder, journal)]
        taken[path] = _without(path, closed)
        hidden.update(one.document_id for one in closed)
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
                outcome = _outcome(one, path, taken[path], hidden, journal, reasons, stored)
                if isinstance(outcome, StoredDocument):
                    done.append(outcome)
                else:
                    failed.append(JobDocument(one.source, state="failed", reason=outcome))
        outcomes.append(_sum_up(document, done, failed))
        if len(done) + len(failed) > 1:
            within += failed
    return outcomes + within[:MAX_FAILURES]


def _groups_of(loaded: Iterable[Document | Failure], size: int) -> Iterator[list[Document | Failure]]:
    """In their order, at most `size` at a time."""
    rest = iter(loaded)
    while some := list(islice(rest, size)):
        yield some


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


def _without(path: Path, closed: Sequence[Document]) -> Path | None:
    """The file without these of its documents: itself, a copy with blank lines for them, or None where nothing is left.

    Raises StageError where the copy cannot be written.
    """
    if not closed:
        return path
    parts = [one.part for one in closed if one.part is not None]
    if not parts:
        return None
    copy = path.with_name(VISIBLE + path.name)
    try:
        shutil.copyfile(path, copy)
        with copy.open("r+b") as file:
            for start, end in parts:
                file.seek(start)
                file.write(b" " * (end - start))
    except OSError as error:
        reason = f"an upload cannot be copied ({error.strerror}); free space or mend the disk"
        raise StageError("indexer", reason) from error
    return copy


def _outcome(
    one: Document | Failure,
    path: Path,
    taken: Path | None,
    hidden: Collection[str],
    journal: Journal,
    reasons: Mapping[str, list[str]],
    stored: Mapping[str, StoredDocument],
) -> StoredDocument | str:
    """What the store holds of a document of the file at `path`, of which the run was given `taken`, or why it failed.

    `reasons` are by source, in the order of the files; the one that is given is taken out.
    """
    if isinstance(one, Failure):
        return one.reason if path.exists() else "its uploaded file is gone; send it again"
    if one.document_id in hidden:
        return HIDDEN
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
