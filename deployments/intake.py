"""Uploads become jobs: received into the data directory, checked, and on the disk before the client hears of it."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, JsonValue, ValidationError
from starlette.requests import Request

from deployments.http import JSON
from deployments.jobs import TEXT_FILE, Job, JobDocument, JobStore
from deployments.multipart import FILE_FIELD, FormReceiver
from ingest.load import SUFFIXES
from rag.document_wire import FileFields, TextRequest, clean_name
from rag.errors import InputError, MalformedError, OverloadedError, QuotaError, StageError, TooLargeError
from rag.filters import FieldKind
from rag.metadata import check_metadata
from rag.serve_settings import ServeSettings

Model = TypeVar("Model", bound=BaseModel)

UPLOAD_SOURCE = "upload/"
# So long a client may send nothing, however long its upload takes: it holds one of `max_uploads` places. What stops for
# longer has a dead line or waits on purpose.
SILENCE_S = 30.0


class Intake:
    """`accept(request, groups)` makes a job of a `POST /documents`. A refused one leaves nothing on the disk."""

    def __init__(self, settings: ServeSettings, jobs: JobStore, metadata_fields: Mapping[str, FieldKind]) -> None:
        self._settings = settings
        self._metadata_fields = metadata_fields
        self._jobs = jobs
        self._arriving: dict[str, int] = {}  # bytes so far of each upload that is no job yet

    async def accept(self, request: Request, groups: frozenset[str]) -> Job:
        """The job of a caller in these groups, queued, on the disk with its files.

        Raises InputError and its kin for what cannot be taken, RequestValidationError for wrong fields, OverloadedError
        and QuotaError where there is no room now, StageError where the disk fails, and ClientDisconnect.
        """
        if len(self._arriving) >= self._settings.max_uploads:
            raise OverloadedError(f"{len(self._arriving)} uploads are being received; try again", retry_after_s=5)
        job_id = self._jobs.new_id()
        self._arriving[job_id] = 0
        try:
            with _disk_errors():
                job = replace(await self._receive(request, job_id), caller_groups=tuple(sorted(groups)))
                # Not undone when the client leaves meanwhile: the thread would finish it all the same.
                return await asyncio.to_thread(self._jobs.submit, job)
        finally:
            del self._arriving[job_id]

    async def _receive(self, request: Request, job_id: str) -> Job:
        async with AsyncExitStack() as unless_received:
            unless_received.push_async_callback(asyncio.to_thread, self._jobs.drop_folder, job_id)
            folder = await asyncio.to_thread(self._jobs.make_folder, job_id)
            kind = request.headers["content-type"].partition(";")[0].strip().lower()
            receive = self._receive_text if kind == JSON else self._receive_files
            job = await receive(request, job_id, folder)
            unless_received.pop_all()
        return job

    async def _receive_text(self, request: Request, job_id: str, folder: Path) -> Job:
        """One document of the JSON in the body, kept as a row that `ingest` reads."""
        body = b"".join([piece async for piece in _pieces(request)])
        self._check_room(job_id, len(body), await asyncio.to_thread(self._jobs.stored_bytes))
        given = await asyncio.to_thread(_validate, lambda: TextRequest.model_validate_json(body))
        check_metadata(given.metadata, self._metadata_fields)
        row = {"id": given.source, "source": given.source, "title": given.title, "text": given.text}
        await asyncio.to_thread(_write_file, folder / TEXT_FILE, json.dumps(row).encode("ascii"))
        document = JobDocument(given.source, TEXT_FILE)
        return Job(job_id, given.collection, (document,), tuple(given.acl), given.metadata, len(body))

    async def _receive_files(self, request: Request, job_id: str, folder: Path) -> Job:
        stored = await asyncio.to_thread(self._jobs.stored_bytes)
        receiver = FormReceiver(folder, request.headers["content-type"], self._settings.max_upload_files)
        try:
            async for piece in _pieces(request):
                self._check_room(job_id, len(piece), stored)
                await asyncio.to_thread(receiver.write, piece)
            receiver.finish()
        finally:
            receiver.close()
        given = _validate(lambda: FileFields.model_validate(_form_values(receiver.fields)))
        check_metadata(given.metadata, self._metadata_fields)
        documents = _name_documents(receiver.names, given.source)
        await asyncio.to_thread(_rename_files, folder, documents)
        size = self._arriving[job_id]
        return Job(job_id, given.collection, tuple(documents), tuple(given.acl), given.metadata, size)

    def _check_room(self, job_id: str, size: int, stored_bytes: int) -> None:
        """Counts what arrived. Raises QuotaError, and TooLargeError for what would never have room."""
        self._arriving[job_id] += size
        most = self._settings.max_stored_bytes
        if self._arriving[job_id] > most:
            raise TooLargeError(f"all uploads together may have {most} bytes (setting serve.max_stored_bytes)")
        if stored_bytes + sum(self._arriving.values()) > most:
            raise QuotaError(
                f"uploads that wait for their jobs fill the {most} bytes that they may have "
                "(setting serve.max_stored_bytes); send this one again when some jobs are done",
                retry_after_s=30,
            )


async def _pieces(request: Request) -> AsyncGenerator[bytes, None]:
    """The body as it comes. Raises MalformedError where nothing comes for SILENCE_S, and ClientDisconnect."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            raise MalformedError(
                f"nothing of the body came for {SILENCE_S:g} s; send it again without such a pause"
            ) from error
        yield piece


def _form_values(fields: dict[str, list[str]]) -> dict[str, JsonValue]:
    """A form's fields as a JSON body would have them: `acl` once for each group, `metadata` an object as JSON."""
    values: dict[str, JsonValue] = {}
    for name, texts in fields.items():
        if name == "acl":
            values[name] = [*texts]
        elif len(texts) > 1:
            raise InputError(f"the field {name[:80]!r} stands there {len(texts)} times; send it once")
        elif name == "metadata":
            try:
                values[name] = json.loads(texts[0])
            except (ValueError, RecursionError) as error:
                raise InputError(f"the field `metadata` is no JSON object: {error}") from error
        else:
            values[name] = texts[0]
    return values


def _name_documents(names: list[str], source: str | None) -> list[JobDocument]:
    """The documents of files called 0, 1, ...; a file keeps no more of its name than a suffix that tells its type."""
    if not names:
        raise InputError(f"there is no file; send one or more, each in a field called `{FILE_FIELD}`")
    if source is not None and len(names) > 1:
        raise InputError(f"`source` names one document and there are {len(names)} files; send them apart")
    documents: dict[str, JobDocument] = {}
    for number, given in enumerate(names):
        name = clean_name(given)
        if not name:
            raise InputError(
                f"file {number + 1} of {len(names)} has no name; give it one: its document is called by it"
            )
        called = source or UPLOAD_SOURCE + name
        if called in documents:
            raise InputError(f"two files are called {name!r}; rename one, or send them apart")
        suffix = PurePosixPath(name).suffix.lower()
        documents[called] = JobDocument(called, f"{number}{suffix if suffix in SUFFIXES else ''}")
    return list(documents.values())


def _rename_files(folder: Path, documents: list[JobDocument]) -> None:
    for number, document in enumerate(documents):
        assert document.file is not None
        (folder / str(number)).rename(folder / document.file)


def _write_file(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _validate(read: Callable[[], Model]) -> Model:
    try:
        return read()
    except ValidationError as error:
        details = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_url=False)]
        raise RequestValidationError(details) from error


@contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StageError("indexer", f"the upload cannot be kept ({reason}); free space or mend the disk") from error
