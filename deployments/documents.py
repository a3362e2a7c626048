"""The HTTP routes of documents, jobs and collections.

Plain functions beside the orchestrator's methods: what they work with, they get from the replica that serves them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from deployments.http import JSON, MULTIPART, BodyLimit
from deployments.intake import Intake
from deployments.jobs import Job, JobStore
from deployments.responses import problems
from deployments.watch import Watch
from rag.document_wire import (
    CollectionBody,
    CollectionRequest,
    CollectionsBody,
    DocumentBody,
    DocumentsBody,
    FileFields,
    JobBody,
    TextRequest,
)
from rag.serve_settings import ServeSettings
from rag.wire import MAX_COLLECTION_CHARS

T = TypeVar("T")

UPLOAD_PATH = "/documents"
# A listing reads a row of every document, and an embedded Milvus that is gone is started again before. That there is no
# replica is seen well before, by the watch.
INDEXER_S = 60.0

router = APIRouter()


@dataclass(frozen=True, slots=True)
class DocumentDoors:
    """What the routes work with: uploads become jobs here, everything about the store is asked of the indexer."""

    intake: Intake
    jobs: JobStore
    indexer: DeploymentHandle
    watch: Callable[[], Watch]
    anonymous_groups: frozenset[str]

    async def ask_indexer(self, call: Callable[[], Awaitable[T]]) -> T:
        """What the indexer answers. Raises StageError while it is down, StageTimeoutError when it takes too long."""
        return await self.watch().call("indexer", call, INDEXER_S)


async def current_doors() -> DocumentDoors:
    """The doors of the replica that this process is."""
    doors: DocumentDoors = serve.get_replica_context().servable_object.documents
    return doors


def upload_limits(settings: ServeSettings) -> dict[str, list[BodyLimit]]:
    """The bodies that these routes take beyond the others' limits, by path. The intake reads them, within its own."""
    text_setting = "serve.max_text_bytes; a larger text can be sent as a file"
    return {
        UPLOAD_PATH: [
            BodyLimit(MULTIPART, settings.max_upload_bytes, "serve.max_upload_bytes", streamed=True),
            BodyLimit(JSON, settings.max_text_bytes, text_setting, streamed=True),
        ]
    }


Doors = Annotated[DocumentDoors, Depends(current_doors)]


async def caller_groups(doors: Doors) -> frozenset[str]:
    """The groups that the caller belongs to: until there are keys, every caller is anonymous."""
    return doors.anonymous_groups


Groups = Annotated[frozenset[str], Depends(caller_groups)]
Collection = Annotated[str, Query(min_length=1, max_length=MAX_COLLECTION_CHARS)]
Name = Annotated[str, Path(max_length=MAX_COLLECTION_CHARS)]

_FILES = {"file": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}}
_FORM = FileFields.model_json_schema()
_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            MULTIPART: {
                "schema": {**_FORM, "properties": {**_FILES, **_FORM["properties"]}, "required": ["file"]},
                "encoding": {"metadata": {"contentType": JSON}},
            },
            JSON: {"schema": TextRequest.model_json_schema()},
        },
    }
}


@router.post(
    UPLOAD_PATH,
    status_code=202,
    response_model=JobBody,
    openapi_extra=_UPLOAD_BODY,
    responses={
        202: {"headers": {"Location": {"description": "/jobs/{id}", "schema": {"type": "string"}}}},
        **problems(400, 413, 415, 422, 429, 503),
    },
)
async def add_documents(request: Request, doors: Doors, groups: Groups) -> Response:
    """Takes files, or one text, and ingests them afterwards: GET the job to see how far that is."""
    try:
        job = await doors.intake.accept(request, groups)
    except ClientDisconnect:
        return Response(status_code=499)  # nobody reads this
    return JSONResponse(job_body(job), 202, headers={"Location": f"/jobs/{job.job_id}"})


@router.get("/jobs/{job_id}", response_model=JobBody, responses=problems(404, 422))
async def get_job(job_id: Name, doors: Doors) -> dict[str, Any]:
    """How far a job is."""
    return job_body(await asyncio.to_thread(doors.jobs.find, job_id))


@router.get("/documents", response_model=DocumentsBody, responses=problems(404, 422, 503))
async def list_documents(
    doors: Doors,
    groups: Groups,
    collection: Collection = "default",
    cursor: Annotated[str | None, Query(max_length=8000, pattern="^[A-Za-z0-9_-]*$")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """The documents that the caller may see, by source, page by page."""
    remote = doors.indexer.list_documents.remote
    page, next_cursor = await doors.ask_indexer(lambda: remote(collection, groups, cursor, limit))
    return {"documents": page, "next_cursor": next_cursor}


@router.get("/documents/{document_id}", response_model=DocumentBody, responses=problems(404, 422, 503))
async def get_document(
    document_id: Name, doors: Doors, groups: Groups, collection: Collection = "default"
) -> dict[str, Any]:
    """One document."""
    remote = doors.indexer.find_document.remote
    return await doors.ask_indexer(lambda: remote(collection, document_id, groups))


@router.delete("/documents/{document_id}", status_code=204, responses=problems(404, 422, 503))
async def delete_document(
    document_id: Name, doors: Doors, groups: Groups, collection: Collection = "default"
) -> Response:
    """Removes a document; a search that starts afterwards finds nothing of it."""
    remote = doors.indexer.delete_document.remote
    await doors.ask_indexer(lambda: remote(collection, document_id, groups))
    return Response(status_code=204)


@router.get("/collections", response_model=CollectionsBody, responses=problems(503))
async def list_collections(doors: Doors) -> dict[str, Any]:
    """Every collection."""
    return {"collections": await doors.ask_indexer(doors.indexer.list_collections.remote)}


@router.post(
    "/collections",
    status_code=201,
    response_model=CollectionBody,
    responses={200: {"model": CollectionBody, "description": "It was there"}, **problems(400, 409, 413, 415, 422, 503)},
)
async def create_collection(body: CollectionRequest, doors: Doors) -> Response:
    """Makes an empty collection, unless it is there."""
    created, content = await doors.ask_indexer(lambda: doors.indexer.create_collection.remote(body.name))
    return JSONResponse(content, 201 if created else 200)


@router.delete("/collections/{name}", status_code=204, responses=problems(404, 422, 503))
async def delete_collection(name: Name, doors: Doors) -> Response:
    """Removes a collection with all that is in it."""
    await doors.ask_indexer(lambda: doors.indexer.delete_collection.remote(name))
    return Response(status_code=204)


def job_body(job: Job) -> dict[str, Any]:
    """The response object of `GET /jobs/{id}`."""
    names = ("source", "state", "reason", "pages", "chunks")
    return {
        "id": job.job_id,
        "state": job.state,
        "documents": [{name: getattr(one, name) for name in names} for one in job.documents],
        "started_at": job.started_at,
        "finished_at": job.finished_at,
    }
