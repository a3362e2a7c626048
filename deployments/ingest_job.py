"""A job's files through the ingest pipeline, and what became of each. Knows nothing of Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from deployments.jobs import Job, JobDocument
from ingest.journal import Journal
from ingest.load import Failure, load_documents
from ingest.pipeline import ingest_documents
from ingest.prepare import prepare_here
from ingest.publish import Analyze, ChunkStore, EmbedPassages
from rag.config import Settings
from rag.types import CountTokens, IndexFingerprint, StoredDocument

MAX_FAILURES = 100  # named one by one of those within a file


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
) -> list[JobDocument]:
    """The job's documents, done or failed; a search that starts afterwards finds those that are done.

    Waits while another process ingests into the collection. Done twice it changes nothing. Raises what
    `ingest_documents` does.
    """
    files = {folder / one.file: one for one in job.documents if one.file is not None}
    report = ingest_documents(
        list(files),
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
        sources={path: one.source for path, one in files.items()},
    )
    reasons = {failure.source: failure.reason for failure in report.failures}
    stored = {one.document_id: one for one in store.stored_documents(job.collection)}
    outcomes: list[JobDocument] = []
    within: list[JobDocument] = []
    for path, document in files.items():
        done, failed = _sort(path, document.source, settings.ingest.max_file_bytes, reasons, stored)
        outcomes.append(_sum_up(document, done, failed))
        if len(done) + len(failed) > 1:
            within += failed
    return outcomes + within[:MAX_FAILURES]


def _sort(
    path: Path, source: str, max_file_bytes: int, reasons: Mapping[str, str], stored: Mapping[str, StoredDocument]
) -> tuple[list[StoredDocument], list[JobDocument]]:
    """The documents of a file: those that are in the store, and those that failed."""
    if not path.exists():
        return [], [JobDocument(source, state="failed", reason="its uploaded file is gone; send it again")]
    done: list[StoredDocument] = []
    failed: list[JobDocument] = []
    for one in load_documents(path, max_file_bytes=max_file_bytes, source=source):
        if isinstance(one, Failure):
            failed.append(JobDocument(one.source, state="failed", reason=one.reason))
        elif one.source in reasons:
            failed.append(JobDocument(one.source, state="failed", reason=reasons[one.source]))
        elif one.document_id in stored:
            done.append(stored[one.document_id])
        else:
            reason = "it was deleted while its job ran; send it again if that was not meant"
            failed.append(JobDocument(one.source, state="failed", reason=reason))
    return done, failed


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
