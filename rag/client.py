"""The service as a client sees it: `Client`, and `AsyncClient`, which has the same methods to await.

What they send and give is rag.wire's and rag.document_wire's. They raise InputError for what the service refuses, and
for what it would refuse; DeadlineError when time is over; StoreUnavailableError when it is not to be had. Of these
rag.problems' carry the service's problem object.

A call is made again, at most `max_retries` times and within its `timeout_s`, where no connection could be made, or the
service answered 429 or 503 and said by Retry-After how long to wait. A deletion that is made again after such an answer
and finds nothing there is done: the attempt before may have done it. `timeout_s` holds for all attempts and the waits
between them until a response begins; then it is the longest silence within it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from rag import calls
from rag.calls import AskOptions, Call, CallOptions, SearchOptions, Upload, UploadOptions
from rag.document_wire import CollectionBody, DocumentBody, JobBody, ListedCollectionBody
from rag.retry import Attempts, Looks
from rag.wire import AnswerBody, Event, HealthBody, InfoBody, SearchBody

TIMEOUT_S = 330.0  # the longest deadline that the service gives, and a little
JOB_TIMEOUT_S = 3600.0
PAGE = 100  # documents asked for at once

logger = logging.getLogger(__name__)
T = TypeVar("T")


class Client:
    """Calls one service, from any number of threads. As a context manager it closes its connections in the end."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        max_retries: int = 2,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._sleep = sleep
        self._now = now
        self._http = httpx.Client()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def ask(self, question: str, **options: Unpack[AskOptions]) -> AnswerBody:
        """The whole answer."""
        return self._send(calls.ask(question, options))

    def stream(self, question: str, **options: Unpack[AskOptions]) -> Generator[Event, None, None]:
        """The answer as events while it is made; a DoneEvent, the whole answer, is the last.

        Closed before its end, it stops the generation. An answer that breaks off ends with an error.
        """
        call = calls.stream(question, options)
        with calls.translated_errors(self._url):
            response = self._open(call)
            try:
                if response.status_code != 200:
                    response.read()
                reader = call.read(response)
                for line in response.iter_lines():
                    event = reader.read(line)
                    if event is not None:
                        yield event
                reader.end()
            finally:
                response.close()

    def search(self, query: str, **options: Unpack[SearchOptions]) -> SearchBody:
        """Passages, best first, without an answer."""
        return self._send(calls.search(query, options))

    def upload_files(
        self, files: Sequence[Upload], *, source: str | None = None, **options: Unpack[UploadOptions]
    ) -> JobBody:
        """A job that ingests these files; `source` names the document of a single one, else its file's name does."""
        return self._send(calls.upload_files(files, source, options))

    def upload_text(self, text: str, *, title: str, source: str, **options: Unpack[UploadOptions]) -> JobBody:
        """A job that ingests this text as the document `source`, in place of the one of that source."""
        return self._send(calls.upload_text(text, title, source, options))

    def get_job(self, job_id: str, **options: Unpack[CallOptions]) -> JobBody:
        """How far a job is."""
        return self._send(calls.get_job(job_id, options))

    def wait_for_job(
        self, job_id: str, *, job_timeout_s: float = JOB_TIMEOUT_S, **options: Unpack[CallOptions]
    ) -> JobBody:
        """The job once it is finished, be it done or failed. Raises DeadlineError where that takes longer."""
        looks = Looks(f"job {job_id}", job_timeout_s, self._now)
        while (job := self.get_job(job_id, **options)).finished_at is None:
            self._sleep(looks.pause_s())
        return job

    def list_documents(self, collection: str = "default", **options: Unpack[CallOptions]) -> Iterator[DocumentBody]:
        """Every document of the collection that the caller may see, by source."""
        cursor: str | None = None
        while True:
            page = self._send(calls.list_documents(collection, cursor, PAGE, options))
            yield from page.documents
            cursor = page.next_cursor
            if cursor is None:
                return

    def get_document(
        self, document_id: str, collection: str = "default", **options: Unpack[CallOptions]
    ) -> DocumentBody:
        """One document."""
        return self._send(calls.get_document(document_id, collection, options))

    def delete_document(self, document_id: str, collection: str = "default", **options: Unpack[CallOptions]) -> None:
        """Removes a document; a search that starts afterwards finds nothing of it."""
        self._send(calls.delete_document(document_id, collection, options))

    def list_collections(self, **options: Unpack[CallOptions]) -> list[ListedCollectionBody]:
        """Every collection."""
        return self._send(calls.list_collections(options))

    def create_collection(self, name: str, **options: Unpack[CallOptions]) -> CollectionBody:
        """Makes an empty collection, unless it is there."""
        return self._send(calls.create_collection(name, options))

    def delete_collection(self, name: str, **options: Unpack[CallOptions]) -> None:
        """Removes a collection with all that is in it."""
        self._send(calls.delete_collection(name, options))

    def info(self, **options: Unpack[CallOptions]) -> InfoBody:
        """Versions, models, limits and each collection's index version."""
        return self._send(calls.info(options))

    def health(self, **options: Unpack[CallOptions]) -> HealthBody:
        """Each stage's state, also where the service is not ready."""
        return self._send(calls.health(options))

    def _send(self, call: Call[T]) -> T:
        with calls.translated_errors(self._url):
            response = self._open(call)
            try:
                response.read()
                return call.read(response)
            finally:
                response.close()

    def _open(self, call: Call[T]) -> httpx.Response:
        """The beginning of the response to the last attempt."""
        attempts = Attempts(
            self._max_retries if call.retried else 0, call.options.get("timeout_s", self._timeout_s), self._now
        )
        while True:
            try:
                with call.request(self._http, self._url, attempts.left_s(), again=attempts.answered) as request:
                    response = self._http.send(request, stream=True)
            except calls.NO_CONNECTION:
                pause_s = attempts.pause_after_no_connection_s()
                if pause_s is None:
                    raise
            else:
                pause_s = attempts.pause_after_response_s(response.status_code, response.headers)
                if pause_s is None:
                    return response
                response.close()
                logger.warning("%s answered %d; again in %.1f s", self._url, response.status_code, pause_s)
            self._sleep(pause_s)


class AsyncClient:
    """Calls one service from one event loop. As a context manager it closes its connections in the end."""

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = TIMEOUT_S,
        max_retries: int = 2,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._sleep = sleep
        self._now = now
        self._http = httpx.AsyncClient()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._http.aclose()

    async def ask(self, question: str, **options: Unpack[AskOptions]) -> AnswerBody:
        """The whole answer."""
        return await self._send(calls.ask(question, options))

    async def stream(self, question: str, **options: Unpack[AskOptions]) -> AsyncGenerator[Event, None]:
        """The answer as events while it is made; a DoneEvent, the whole answer, is the last.

        Closed before its end, it stops the generation. An answer that breaks off ends with an error.
        """
        call = calls.stream(question, options)
        with calls.translated_errors(self._url):
            response = await self._open(call)
            try:
                if response.status_code != 200:
                    await response.aread()
                reader = call.read(response)
                async for line in response.aiter_lines():
                    event = reader.read(line)
                    if event is not None:
                        yield event
                reader.end()
            finally:
                await response.aclose()

    async def search(self, query: str, **options: Unpack[SearchOptions]) -> SearchBody:
        """Passages, best first, without an answer."""
        return await self._send(calls.search(query, options))

    async def upload_files(
        self, files: Sequence[Upload], *, source: str | None = None, **options: Unpack[UploadOptions]
    ) -> JobBody:
        """A job that ingests these files; `source` names the document of a single one, else its file's name does."""
        return await self._send(calls.upload_files(files, source, options))

    async def upload_text(self, text: str, *, title: str, source: str, **options: Unpack[UploadOptions]) -> JobBody:
        """A job that ingests this text as the document `source`, in place of the one of that source."""
        return await self._send(calls.upload_text(text, title, source, options))

    async def get_job(self, job_id: str, **options: Unpack[CallOptions]) -> JobBody:
        """How far a job is."""
        return await self._send(calls.get_job(job_id, options))

    async def wait_for_job(
        self, job_id: str, *, job_timeout_s: float = JOB_TIMEOUT_S, **options: Unpack[CallOptions]
    ) -> JobBody:
        """The job once it is finished, be it done or failed. Raises DeadlineError where that takes longer."""
        looks = Looks(f"job {job_id}", job_timeout_s, self._now)
        while (job := await self.get_job(job_id, **options)).finished_at is None:
            await self._sleep(looks.pause_s())
        return job

    async def list_documents(
        self, collection: str = "default", **options: Unpack[CallOptions]
    ) -> AsyncIterator[DocumentBody]:
        """Every document of the collection that the caller may see, by source."""
        cursor: str | None = None
        while True:
            page = await self._send(calls.list_documents(collection, cursor, PAGE, options))
            for document in page.documents:
                yield document
            cursor = page.next_cursor
            if cursor is None:
                return

    async def get_document(
        self, document_id: str, collection: str = "default", **options: Unpack[CallOptions]
    ) -> DocumentBody:
        """One document."""
        return await self._send(calls.get_document(document_id, collection, options))

    async def delete_document(
        self, document_id: str, collection: str = "default", **options: Unpack[CallOptions]
    ) -> None:
        """Removes a document; a search that starts afterwards finds nothing of it."""
        await self._send(calls.delete_document(document_id, collection, options))

    async def list_collections(self, **options: Unpack[CallOptions]) -> list[ListedCollectionBody]:
        """Every collection."""
        return await self._send(calls.list_collections(options))

    async def create_collection(self, name: str, **options: Unpack[CallOptions]) -> CollectionBody:
        """Makes an empty collection, unless it is there."""
        return await self._send(calls.create_collection(name, options))

    async def delete_collection(self, name: str, **options: Unpack[CallOptions]) -> None:
        """Removes a collection with all that is in it."""
        await self._send(calls.delete_collection(name, options))

    async def info(self, **options: Unpack[CallOptions]) -> InfoBody:
        """Versions, models, limits and each collection's index version."""
        return await self._send(calls.info(options))

    async def health(self, **options: Unpack[CallOptions]) -> HealthBody:
        """Each stage's state, also where the service is not ready."""
        return await self._send(calls.health(options))

    async def _send(self, call: Call[T]) -> T:
        with calls.translated_errors(self._url):
            response = await self._open(call)
            try:
                await response.aread()
                return call.read(response)
            finally:
                await response.aclose()

    async def _open(self, call: Call[T]) -> httpx.Response:
        """The beginning of the response to the last attempt."""
        attempts = Attempts(
            self._max_retries if call.retried else 0, call.options.get("timeout_s", self._timeout_s), self._now
        )
        while True:
            try:
                with call.request(self._http, self._url, attempts.left_s(), again=attempts.answered) as request:
                    response = await self._http.send(request, stream=True)
            except calls.NO_CONNECTION:
                pause_s = attempts.pause_after_no_connection_s()
                if pause_s is None:
                    raise
            else:
                pause_s = attempts.pause_after_response_s(response.status_code, response.headers)
                if pause_s is None:
                    return response
                await response.aclose()
                logger.warning("%s answered %d; again in %.1f s", self._url, response.status_code, pause_s)
            await self._sleep(pause_s)
