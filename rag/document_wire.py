"""The wire models of documents, jobs and collections."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    JsonValue,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from rag.wire import MAX_COLLECTION_CHARS, RequestModel, ResponseModel

MAX_NAME_CHARS = 1000
MAX_METADATA_BYTES = 60_000  # a row of the store holds 65,535
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


def _refuse_control(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("it holds a control character; leave that out")
    return text


def _refuse_path(source: str) -> str:
    # An absolute path is the source of a file that `rag ingest` read here: no client may pass for one.
    if source.startswith("/"):
        raise ValueError("it is a path of a machine; give a name or a URL")
    return source


def _refuse_unstorable(metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
    # `allow_inf_nan` and the parser's own check of surrogates hold for neither JsonValue nor both doors.
    pending: list[JsonValue] = [metadata]
    while pending:
        match pending.pop():
            case str() as text if _SURROGATE.search(text):
                raise ValueError("it holds half a character (a lone surrogate); leave that out")
            case float() as number if not isfinite(number):
                raise ValueError(f"it holds {number}, which is no JSON; leave that out")
            case list() as entries:
                pending += entries
            case dict() as fields:
                pending += [*fields, *fields.values()]
    return metadata


def _refuse_size(metadata: dict[str, JsonValue]) -> dict[str, JsonValue]:
    size = len(json.dumps(metadata, ensure_ascii=False).encode("utf-8"))
    if size > MAX_METADATA_BYTES:
        raise ValueError(f"it has {size} bytes as JSON, at most {MAX_METADATA_BYTES} fit")
    return metadata


_Collection = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=MAX_COLLECTION_CHARS)]
_Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_NAME_CHARS, strip_whitespace=True),
    AfterValidator(_refuse_control),
]
_Source = Annotated[_Name, AfterValidator(_refuse_path)]
_SOURCE: TypeAdapter[str] = TypeAdapter(_Source)
_Group = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_refuse_control)]
_Metadata = Annotated[
    dict[str, JsonValue],
    AfterValidator(_refuse_unstorable),
    AfterValidator(_refuse_size),
    WithJsonSchema({"type": "object", "additionalProperties": True}),  # without a definition to refer to
]


class UploadFields(RequestModel):
    """What `POST /documents` says of its documents, beside them.

    Without `acl` everyone may see a new document, and one that replaces another keeps that one's groups; without
    `metadata` also that one's metadata. A document that the caller may not see is never replaced.
    """

    collection: _Collection = "default"
    acl: list[_Group] = Field([], max_length=100)
    metadata: _Metadata = Field({})


class FileFields(UploadFields):
    """The fields of a multipart `POST /documents`; `source` only with a single file."""

    source: _Source | None = None


class TextRequest(UploadFields):
    """A JSON `POST /documents`: one document of plain text."""

    text: Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]
    title: _Name
    source: _Source


class CollectionRequest(RequestModel):
    """`POST /collections`."""

    name: _Collection


class JobDocumentBody(ResponseModel):
    """What became of a document; `reason` says why it failed, or what it waits for."""

    source: str
    state: Literal["queued", "running", "done", "failed"]
    reason: str | None
    pages: int | None
    chunks: int | None


class JobBody(ResponseModel):
    """`GET /jobs/{id}`; `done` means that a search started now finds the documents that are done."""

    id: str
    state: Literal["queued", "running", "done", "failed"]
    documents: list[JobDocumentBody]
    started_at: str | None
    finished_at: str | None


class DocumentBody(ResponseModel):
    """A document as the store knows it; `pages` is null for formats without pages."""

    document_id: str
    source: str
    title: str
    revision: str
    chunks: int
    pages: int | None
    acl: list[str]
    metadata: dict[str, Any]
    updated_at: str


class DocumentsBody(ResponseModel):
    """A page of documents; `next_cursor` is null on the last one."""

    documents: list[DocumentBody]
    next_cursor: str | None


class CollectionBody(ResponseModel):
    """A collection."""

    name: str
    index_version: str


class ListedCollectionBody(ResponseModel):
    """A collection; `index_version` is null where no index of it fits the settings: reindex it, or delete it."""

    name: str
    index_version: str | None


class CollectionsBody(ResponseModel):
    """Every collection."""

    collections: list[ListedCollectionBody]


def why_refused(source: str) -> str | None:
    """Why no client may call a document so, by the rules for a request's `source`; None where one may."""
    try:
        _SOURCE.validate_python(source)
    except ValidationError as error:
        return error.errors()[0]["msg"].removeprefix("Value error, ")
    return None


def clean_name(given: str) -> str:
    """A file's name as its document's: without control characters, its last 1,000 characters, or empty."""
    return _CONTROL.sub("", given).strip()[-MAX_NAME_CHARS:].strip()
