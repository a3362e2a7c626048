"""What writes to the store, as a deployment: the jobs of uploads, one at a time, and the documents' own requests."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal, TypeVar

from ray.serve.handle import DeploymentHandle

from deployments.errors import call_stage
from deployments.ingest_job import ingest_job, undo_job
from deployments.job_worker import JobWorker
from deployments.jobs import Job, JobDocument, JobStore
from deployments.metrics import count, refresh_gauges, set_gauge
from ingest.documents import document_body, find_document, list_documents, next_page
from ingest.fingerprint import index_fingerprint
from ingest.journal import open_free_journal
from ingest.pipeline import IngestReport
from ingest.remove import remove_collection, remove_document
from rag.analyze import analyze
from rag.batching import token_bounded_batches
from rag.config import Settings
from rag.connect import open_store
from rag.errors import StageTimeoutError
from rag.listing import index_versions
from rag.models import load_token_counter, locate_model
from rag.store import MilvusStore
from rag.types import Embedding, Groups

logger = logging.getLogger("ray.serve")
T = TypeVar("T")

EMBED_S = 300.0  # how long one batch of a job may take, questions before it included


class Indexer:
    """Works off the jobs in the data directory in a thread; its event loop only answers.

    A replica that dies in the middle of a job leaves it to the next one.
    """

    async def __init__(self, settings: Settings, embedder: DeploymentHandle) -> None:  # type: ignore[misc]  # Serve awaits it
        self._settings = settings
        self._embedder = embedder
        self._loop = asyncio.get_running_loop()
        self._fingerprint = index_fingerprint(settings)
        self._count_tokens = load_token_counter(locate_model(settings.embedder.model, settings.cache_dir))
        jobs = JobStore(settings.data_dir)
        lock_file = settings.data_dir / "indexer.lock"
        self._jobs = jobs
        self._worker = JobWorker(
            jobs,
            lambda job: self._run_job(job, jobs),
            lambda job: self._undo_job(job, jobs),
            self._job_ended,
            lock_file,
            settings.serve.keep_jobs_days,
        )
        self._thread = threading.Thread(target=self._worker.run, name="jobs", daemon=True)
        self._thread.start()

    def __del__(self) -> None:  # Serve calls it when the replica stops: no job is begun that its end would cut off
        worker = getattr(self, "_worker", None)
        if worker is not None:
            worker.stop()

    async def list_documents(
        self, collection: str, groups: Groups, cursor: str | None, limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """A page of the documents that somebody in these groups may see, and the next page's cursor."""
        found = await self._ask(lambda store: list_documents(store, collection, groups))
        page, next_cursor = next_page(found, cursor, limit)
        return [document_body(one) for one in page], next_cursor

    async def find_document(self, collection: str, document_id: str, groups: Groups) -> dict[str, Any]:
        """Raises UnknownDocumentError, also for one that these groups may not see."""
        return document_body(await self._ask(lambda store: find_document(store, collection, document_id, groups)))

    async def delete_document(self, collection: str, document_id: str, groups: Groups) -> None:
        """Raises UnknownDocumentError, also for one that these groups may not see."""

        await self._ask(lambda store: remove_document(store, self._settings, collection, document_id, groups))

    async def list_collections(self) -> list[dict[str, Any]]:
        """Each with its index version, by name; see rag.listing."""
        found = await self._ask(index_versions)
        return [{"name": name, "index_version": version} for name, version in found.items()]

    async def create_collection(self, name: str) -> tuple[bool, dict[str, Any]]:
        """Whether it had to be made, and the collection."""

        def create(store: MilvusStore) -> tuple[bool, dict[str, Any]]:
            known = name in store.collections()
            store.ensure_collection(name, self._fingerprint)
            return not known, _collection_body(store, name)

        return await self._ask(create)

    async def delete_collection(self, name: str) -> None:
        """Raises UnknownCollectionError."""
        await self._ask(lambda store: remove_collection(store, self._settings, name))

    async def ready(self) -> None:
        """Answers while the replica lives."""

    async def check_health(self) -> None:
        """Raises when the thread has ended, so that another replica goes on."""
        if not self._thread.is_alive():
            raise RuntimeError("the thread that works off the jobs has ended; its traceback is in this replica's log")
        try:
            set_gauge("rag_ingest_jobs_unfinished", await asyncio.to_thread(self._jobs.unfinished))
        except sqlite3.Error as error:  # a disk that is full makes no replica sick
            logger.warning("the jobs were not counted: %s", error)
        try:
            disk = await asyncio.to_thread(shutil.disk_usage, self._settings.data_dir)
        except OSError as error:
            logger.warning("how full the data directory's disk is was not read: %s", error)
        else:
            if disk.total:  # some file systems of a network have no size
                set_gauge("rag_data_dir_used_ratio", disk.used / (disk.used + disk.free))
        refresh_gauges()

    async def _ask(self, question: Callable[[MilvusStore], T]) -> T:
        """Opened each time: an embedded Milvus that is gone is started again by that."""

        def ask() -> T:
            with open_store(self._settings, self._fingerprint) as store:
                return question(store)

        return await asyncio.to_thread(ask)

    def _run_job(self, job: Job, jobs: JobStore) -> Sequence[JobDocument]:
        """Called by the worker, in its thread."""
        with (
            _start_noted(job),
            open_store(self._settings, self._fingerprint) as store,
            open_free_journal(self._settings, job.collection) as journal,
        ):
            return ingest_job(
                job,
                jobs.folder(job.job_id),
                store=store,
                journal=journal,
                say=logger.info,
                embed=self._embed,
                analyze=analyze,
                count_tokens=self._count_tokens,
                fingerprint=self._fingerprint,
                settings=self._settings,
                reported=_note_report,
            )

    def _undo_job(self, job: Job, jobs: JobStore) -> None:
        """Called by the worker, in its thread."""
        with (
            open_store(self._settings, self._fingerprint) as store,
            open_free_journal(self._settings, job.collection) as journal,
        ):
            undo_job(job, jobs.folder(job.job_id), store=store, journal=journal, say=logger.info)

    def _job_ended(self, job: Job, state: Literal["done", "failed"]) -> None:
        """Called by the worker, in its thread."""
        count("rag_ingest_jobs_total", outcome=state)
        logger.info("%s is %s", job.job_id, state)

    def _embed(self, texts: list[str]) -> list[Embedding]:
        """By the embedder's deployment, no more texts at once than a forward pass takes: questions come in between."""
        embedded: dict[int, Embedding] = {}
        embedder = self._settings.embedder
        # A chunk in a language that the embedder does not understand may be longer than it reads.
        lengths = [min(self._count_tokens(text), embedder.max_tokens) for text in texts]
        for batch in token_bounded_batches(lengths, embedder.batch_tokens):
            embedded.update(zip(batch, self._call_embedder([texts[index] for index in batch]), strict=True))
        return [embedded[index] for index in range(len(texts))]

    def _call_embedder(self, texts: list[str]) -> list[Embedding]:
        async def call() -> list[Embedding]:
            # Without a limit Serve keeps the call for as long as there is no replica, and with it every other job.
            async with asyncio.timeout(EMBED_S):
                return await call_stage("embed", lambda: self._embedder.embed_passages.remote(texts))

        try:
            return asyncio.run_coroutine_threadsafe(call(), self._loop).result()
        except TimeoutError as error:
            raise StageTimeoutError("embed", f"a batch was not embedded within {EMBED_S:g} s") from error


@contextmanager
def _start_noted(job: Job) -> Iterator[None]:
    """The job runs inside, for the metrics."""
    assert job.started_at is not None
    set_gauge("rag_ingest_job_start_timestamp_seconds", datetime.fromisoformat(job.started_at).timestamp())
    try:
        yield
    finally:
        set_gauge("rag_ingest_job_start_timestamp_seconds", 0)


def _note_report(report: IngestReport) -> None:
    """What an upload's ingest did; one that is tried again tells it again, the documents then unchanged."""
    for outcome in ("added", "replaced", "unchanged", "failed"):
        count("rag_ingest_documents_total", getattr(report, outcome), outcome=outcome)
    count("rag_ingest_chunks_total", report.chunks)


def _collection_body(store: MilvusStore, name: str) -> dict[str, Any]:
    return {"name": name, "index_version": store.fingerprint(name).index_version}
