"""From errors to responses: one table of HTTP statuses, and from Ray's errors to ours.

Every error is a problem object (RFC 9457); what is asked at the OpenAI door gets it in that door's own shape.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentResponseGenerator
from starlette.requests import Request
from starlette.responses import Response

from rag.errors import (
    DeadlineError,
    FilterError,
    IndexMismatchError,
    InputError,
    MalformedError,
    MediaTypeError,
    ModelError,
    OverloadedError,
    QuotaError,
    RagError,
    StageError,
    StageTimeoutError,
    StoreUnavailableError,
    TooLargeError,
    UnknownCollectionError,
    UnknownDocumentError,
    UnknownJobError,
    UnknownModelError,
)

logger = logging.getLogger("ray.serve")
T = TypeVar("T")
MEDIA_TYPE = "application/problem+json"
OPENAI_PATH = "/v1/"
# OpenAI's types of errors by status, where they are not those of any bad request or of any failure.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


@dataclass(frozen=True, slots=True)
class _Outcome:
    status: int
    type: str
    title: str
    retry_after_s: int | None = None


# The first class that fits decides; subclasses stand before their parents.
_TABLE: tuple[tuple[type[RagError], _Outcome], ...] = (
    (UnknownCollectionError, _Outcome(404, "unknown-collection", "Unknown collection")),
    (UnknownDocumentError, _Outcome(404, "unknown-document", "Unknown document")),
    (UnknownJobError, _Outcome(404, "unknown-job", "Unknown job")),
    (UnknownModelError, _Outcome(404, "unknown-model", "Unknown model")),
    (MalformedError, _Outcome(400, "malformed", "Malformed request")),
    (MediaTypeError, _Outcome(415, "unsupported-media-type", "Unsupported media type")),
    (TooLargeError, _Outcome(413, "too-large", "Body too large")),
    (InputError, _Outcome(422, "invalid-input", "Input cannot be used")),
    (IndexMismatchError, _Outcome(409, "index-mismatch", "Collection built with another embedder")),
    (QuotaError, _Outcome(429, "quota", "Quota used up", 30)),
    (OverloadedError, _Outcome(503, "overloaded", "Overloaded", 1)),
    (DeadlineError, _Outcome(504, "deadline", "Deadline passed")),
    (StageTimeoutError, _Outcome(503, "stage-timeout", "A stage did not answer in time", 5)),
    (StageError, _Outcome(503, "stage-unavailable", "A stage is not available", 5)),
    (StoreUnavailableError, _Outcome(503, "store-unavailable", "The store does not answer", 5)),
    (ModelError, _Outcome(503, "model-unavailable", "A model is not available", 30)),
    (RagError, _Outcome(500, "internal", "Internal error")),
)


def problem(request_id: str, instance: str, error: RagError) -> dict[str, Any]:
    """The RFC 9457 object for an error."""
    outcome = _outcome(error)
    body = problem_body(outcome.status, outcome.type, outcome.title, str(error), request_id, instance)
    body["retryable"] = outcome.retry_after_s is not None
    if isinstance(error, StageError):
        body["stage"] = error.stage
    if isinstance(error, FilterError):
        body["errors"] = [{"field": "filter", "message": error.reason, "column": error.column}]
    return body


def problem_kind(error: RagError) -> str:
    """What an error's problem object has as its type, without the URN's beginning."""
    return _outcome(error).type


def problem_body(status: int, kind: str, title: str, detail: str, request_id: str, instance: str) -> dict[str, Any]:
    """A problem object; `kind` becomes its type URN."""
    return {
        "type": f"urn:rag:problem:{kind}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
        "request_id": request_id,
        "retryable": False,
    }


def bug_problem(request_id: str, instance: str, error: Exception) -> dict[str, Any]:
    """The object for an error that nobody foresaw, at the process's edge: its traceback goes to the log alone."""
    logger.error("request %s failed", request_id, exc_info=error)
    detail = "an internal error; the service's log has it under this request id"
    return problem_body(500, "internal", "Internal error", detail, request_id, instance)


def problem_response(request: Request, error: RagError) -> Response:
    """The HTTP response for an error, with Retry-After where trying again helps."""
    outcome = _outcome(error)
    retry_after_s = error.retry_after_s if isinstance(error, OverloadedError) else outcome.retry_after_s
    headers = {"Retry-After": str(retry_after_s)} if retry_after_s is not None else {}
    body = problem(request.state.request_id, request.url.path, error)
    return json_problem(body, headers)


def json_problem(body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    """A problem object as a response of its own status, in the shape of the door that it was asked at."""
    status, content, media_type = body["status"], body, MEDIA_TYPE
    if body["instance"].startswith(OPENAI_PATH):
        # There a request that does not fit the schema is a bad one, as any other.
        status, content, media_type = 400 if status == 422 else status, openai_error(body), "application/json"
    # Lone surrogates, which a client may send and no encoder takes, become JSON's own escapes.
    encoded = json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace")
    return Response(encoded, status_code=status, headers=headers, media_type=media_type)


def openai_error(body: dict[str, Any]) -> dict[str, Any]:
    """A problem object as OpenAI's clients read it. Source: OpenAI's API reference, "Error codes"."""
    status = body["status"]
    kind = body["type"].rpartition(":")[2].replace("-", "_")
    fields = [one["field"] for one in body.get("errors", ())]
    error = {
        "message": body["detail"],
        "type": _OPENAI_TYPES.get(status, "invalid_request_error" if status < 500 else "server_error"),
        "param": fields[0] if fields else None,
        "code": "model_not_found" if kind in ("unknown_model", "unknown_collection") else kind,
    }
    return {"error": error}


async def call_stage(stage: str, call: Callable[[], Awaitable[T]]) -> T:
    """Awaits a handle's call; what goes wrong on the way becomes one of ours."""
    with _translated(stage):
        return await call()


async def read_stage(stage: str, call: Callable[[], Awaitable[T]]) -> T:
    """As `call_stage`, and once more where the replica's end cut it off, as in a rolling update: another may answer.

    So the call must change nothing.
    """
    with _translated(stage):
        try:
            return await call()
        except RayTaskError:  # a replica's answer, whatever else it is an instance of
            raise
        except (RayActorError, AioRpcError) as error:
            logger.info("%s is asked again: its replica is gone (%s)", stage, type(error).__name__)
            return await call()


async def iterate_stage(stage: str, call: Callable[[], DeploymentResponseGenerator]) -> AsyncGenerator[Any, None]:
    """Iterates a handle's stream; what goes wrong on the way becomes one of ours.

    The call is made when the first value is asked for: one that was made and is never iterated nobody would cancel.
    Closed before its end, it cancels the request in the replica, which a mere drop of the stream would not.
    """
    with _translated(stage):
        response = call()
    ended = False
    try:
        with _translated(stage):
            async for value in response:
                yield value
        ended = True
    finally:
        if not ended:
            response.cancel()


@contextmanager
def _translated(stage: str) -> Iterator[None]:
    try:
        yield
    except RayTaskError as error:  # first: Ray's own is of the cause's class too, and its text is a traceback
        if isinstance(error.cause, RagError):
            raise error.cause from error
        raise StageError(stage, f"{type(error.cause).__name__}: {error.cause}") from error
    except RagError:
        raise
    except BackPressureError as error:
        raise OverloadedError(f"{stage}: its queue is full") from error
    except (RayError, RayServeException) as error:
        raise StageError(stage, f"its replica is gone or starting ({type(error).__name__})") from error
    except Exception as error:
        # Another process's edge: over gRPC a replica's bug arrives as whatever class it was raised with.
        raise StageError(stage, f"{type(error).__name__}: {error}") from error


def _outcome(error: RagError) -> _Outcome:
    return next(outcome for kind, outcome in _TABLE if isinstance(error, kind))
