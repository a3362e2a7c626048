"""What the routes answer, for their OpenAPI description: each status with its shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from deployments.errors import MEDIA_TYPE
from deployments.http import JSON
from deployments.openai_schemas import ErrorDetail
from rag.wire import EVENTS, Problem

Responses = dict[int | str, dict[str, Any]]

EVENT_STREAM = "text/event-stream"
EVENT_NAMES = (*EVENTS, "error")
_WAITING = ("429", "503")  # answered with Retry-After
_RETRY_AFTER = {"Retry-After": {"description": "Seconds", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}


def problems(*statuses: int) -> Responses:
    """The refusals of a route."""
    return _refusals(statuses, "Problem", MEDIA_TYPE, Problem.model_json_schema())


def openai_errors(*statuses: int | str) -> Responses:
    """Those of a route of the OpenAI door. Its `4XX` keeps FastAPI from adding a 422, which that door has none of."""
    schema = {"type": "object", "properties": {"error": ErrorDetail.model_json_schema()}, "required": ["error"]}
    return _refusals(statuses, "Error", JSON, schema)


def streamed(names: Iterable[str] = ()) -> dict[str, Any]:
    """The other content of a route whose answer may be asked for as server-sent events; each has one of these names.

    The schema is an event's, as OpenAPI 3.2 has it for streams; older versions have nothing for them.
    """
    event: dict[str, Any] = {"data": {"type": "string", "description": "JSON"}}
    if names:
        event |= {"event": {"enum": sorted(names)}, "id": {"type": "string", "pattern": "^[0-9]+$"}}
    return {EVENT_STREAM: {"schema": {"type": "object", "properties": event, "required": sorted(event)}}}


def _refusals(statuses: tuple[int | str, ...], title: str, media_type: str, schema: dict[str, Any]) -> Responses:
    refusal = {"description": title, "content": {media_type: {"schema": schema}}}
    return {status: {**refusal, "headers": _RETRY_AFTER} if str(status) in _WAITING else refusal for status in statuses}
