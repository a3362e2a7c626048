"""The service's routes as a client calls them: what is sent, and how what comes back is read. Nothing here waits.

rag.client sends the calls, one way and the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from pydantic import JsonValue, ValidationError

from rag.document_wire import (
    CollectionBody,
    CollectionRequest,
    CollectionsBody,
    DocumentBody,
    DocumentsBody,
    FileFields,
    JobBody,
    ListedCollectionBody,
    TextRequest,
)
from rag.errors import DeadlineError, InputError, StoreUnavailableError
from rag.problems import problem_error
from rag.wire import (
    EVENTS,
    AnswerBody,
    AskRequest,
    DoneEvent,
    Event,
    HealthBody,
    InfoBody,
    Problem,
    RequestModel,
    ResponseModel,
    SearchBody,
    SearchRequest,
    Turn,
)

CONNECT_TIMEOUT_S = 5.0
MAX_PORT = 65535
NO_CONNECTION = (httpx.ConnectError, httpx.ConnectTimeout)  # nothing was sent
_NOBODY = (*NO_CONNECTION, httpx.UnsupportedProtocol, httpx.ProxyError, httpx.InvalidURL)
_AGAIN = "rag.again"  # of a request, for whoever reads its response
_JSON, _PROBLEM, _EVENTS = "application/json", "application/problem+json", "text/event-stream"

T = TypeVar("T")
Sent = TypeVar("Sent", bound=RequestModel)
Answered = TypeVar("Answered", bound=ResponseModel)
Upload = Path | tuple[str, bytes]  # a file, or what it would be called and hold


class CallOptions(TypedDict, total=False):
    """What every call takes: the id that logs and the response know it by, and its seconds in place of the client's."""

    request_id: str
    timeout_s: float


class AskOptions(CallOptions, total=False):
    """The fields of AskRequest that a question may go without."""

    collection: str
    conversation: list[Turn]
    filter: str | None
    model: str | None
    top_k: int | None
    rerank_top_k: int | None
    max_tokens: int | None
    temperature: float | None
    deadline_s: float | None
    explain: bool


class SearchOptions(CallOptions, total=False):
    """The fields of SearchRequest that a search may go without."""

    collection: str
    filter: str | None
    top_k: int
    rerank: bool


class UploadOptions(CallOptions, total=False):
    """The fields of UploadFields."""

    collection: str
    acl: list[str]
    metadata: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request; `read` gives what its response says, or raises what it says is wrong."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    options: CallOptions
    params: dict[str, str] = field(default_factory=dict)
    body: RequestModel | None = None
    files: Sequence[Upload] = ()
    retried: bool = True

    @contextmanager
    def request(
        self, http: httpx.Client | httpx.AsyncClient, url: str, timeout_s: float, *, again: bool
    ) -> Iterator[httpx.Request]:
        """The request to the service at `url`, its files open; `again`: after one that was answered.

        Raises InputError for a file that cannot be read.
        """
        with ExitStack() as stack:
            sent: dict[str, Any] = {}
            headers: dict[str, str] = {}
            if self.files:
                sent = {"files": [("file", _opened(one, stack)) for one in self.files], "data": _form(self.body)}
            elif self.body is not None:
                sent = {"content": self.body.model_dump_json(exclude_unset=True)}
                headers["content-type"] = _JSON
            if "request_id" in self.options:
                headers["x-request-id"] = _header_value(self.options["request_id"])
            timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
            request = http.build_request(
                self.method,
                url + self.path,
                params=self.params,
                headers=headers,
                timeout=timeout,
                extensions={_AGAIN: again},
                **sent,
            )
            if (request.url.port or 0) > MAX_PORT:
                raise httpx.InvalidURL(f"there is no port {request.url.port}")
            yield request


def ask(question: str, options: AskOptions) -> Call[AnswerBody]:
    """`POST /ask`."""
    body = _model(AskRequest, options, question=question)
    return Call("POST", "/ask", _reader(AnswerBody), _own(options), body=body)


def stream(question: str, options: AskOptions) -> Call[EventReader]:
    """`POST /ask` as events; its response is read line by line."""
    body = _model(AskRequest, options, question=question, stream=True)
    return Call("POST", "/ask", _read_events, _own(options), body=body)


def search(query: str, options: SearchOptions) -> Call[SearchBody]:
    """`POST /search`."""
    return Call("POST", "/search", _reader(SearchBody), _own(options), body=_model(SearchRequest, options, query=query))


def upload_files(files: Sequence[Upload], source: str | None, options: UploadOptions) -> Call[JobBody]:
    """`POST /documents` with files."""
    if not files:
        raise InputError("there is no file to upload; name one or more")
    fields = {} if source is None else {"source": source}
    body = _model(FileFields, options, **fields)
    return Call("POST", "/documents", _reader(JobBody, 202), _own(options), body=body, files=files)


def upload_text(text: str, title: str, source: str, options: UploadOptions) -> Call[JobBody]:
    """`POST /documents` with a text."""
    body = _model(TextRequest, options, text=text, title=title, source=source)
    return Call("POST", "/documents", _reader(JobBody, 202), _own(options), body=body)


def get_job(job_id: str, options: CallOptions) -> Call[JobBody]:
    """`GET /jobs/{id}`."""
    return Call("GET", f"/jobs/{_segment(job_id)}", _reader(JobBody), options)


def list_documents(collection: str, cursor: str | None, limit: int, options: CallOptions) -> Call[DocumentsBody]:
    """`GET /documents`: a page."""
    params = {"collection": collection, "limit": str(limit)} | ({} if cursor is None else {"cursor": cursor})
    return Call("GET", "/documents", _reader(DocumentsBody), options, params)


def get_document(document_id: str, collection: str, options: CallOptions) -> Call[DocumentBody]:
    """`GET /documents/{id}`."""
    path = f"/documents/{_segment(document_id)}"
    return Call("GET", path, _reader(DocumentBody), options, {"collection": collection})


def delete_document(document_id: str, collection: str, options: CallOptions) -> Call[None]:
    """`DELETE /documents/{id}`."""
    return Call("DELETE", f"/documents/{_segment(document_id)}", _read_deleted, options, {"collection": collection})


def list_collections(options: CallOptions) -> Call[list[ListedCollectionBody]]:
    """`GET /collections`."""
    read = _reader(CollectionsBody)
    return Call("GET", "/collections", lambda response: read(response).collections, options)


def create_collection(name: str, options: CallOptions) -> Call[CollectionBody]:
    """`POST /collections`."""
    body = _model(CollectionRequest, {}, name=name)
    return Call("POST", "/collections", _reader(CollectionBody, 200, 201), options, body=body)


def delete_collection(name: str, options: CallOptions) -> Call[None]:
    """`DELETE /collections/{name}`."""
    return Call("DELETE", f"/collections/{_segment(name)}", _read_deleted, options)


def info(options: CallOptions) -> Call[InfoBody]:
    """`GET /info`."""
    return Call("GET", "/info", _reader(InfoBody), options)


def health(options: CallOptions) -> Call[HealthBody]:
    """`GET /readyz`, whose 503 is an answer, too."""
    return Call("GET", "/readyz", _reader(HealthBody, 200, 503), options, retried=False)


class EventReader:
    """Server-sent events, line by line. Source: the HTML standard, "Server-sent events"."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = ""
        self._data: list[str] = []
        self._done = False

    def read(self, line: str) -> Event | None:
        """The event that ends with this line; None where none does, or one of a name that is not known here.

        Raises what an `error` event says.
        """
        if line:
            name, _, value = line.partition(":")
            if name == "event":
                self._name = value.removeprefix(" ")
            elif name == "data":
                self._data.append(value.removeprefix(" "))
            return None
        name, data = self._name, "\n".join(self._data)
        self._name, self._data = "", []
        if name == "error":
            raise problem_error(_parsed(Problem, data, self._url))
        if name not in EVENTS:
            return None
        event = _parsed(EVENTS[name], data, self._url)
        self._done = isinstance(event, DoneEvent)
        return event

    def end(self) -> None:
        """After the last line. Raises StoreUnavailableError where the answer is not whole."""
        if not self._done:
            raise StoreUnavailableError(f"the service at {self._url} broke off its answer; ask again")


@contextmanager
def translated_errors(url: str) -> Iterator[None]:
    """Turns a connection's failure into a sentence that says what to do."""
    try:
        yield
    except _NOBODY as error:
        raise StoreUnavailableError(
            f"no service answers at {url} ({error or type(error).__name__}); start one with `rag serve`, or set --url"
        ) from error
    except httpx.TimeoutException as error:
        kind = type(error).__name__
        raise DeadlineError(f"{url} did not answer in time ({kind}); give the call a longer timeout_s") from error
    except httpx.HTTPError as error:
        raise StoreUnavailableError(
            f"the connection to {url} broke ({error or type(error).__name__}); ask again"
        ) from error


def _model(kind: type[Sent], options: Mapping[str, Any], **fields: Any) -> Sent:
    given = {name: value for name, value in options.items() if name not in CallOptions.__annotations__}
    try:
        return kind.model_validate({**given, **fields})
    except ValidationError as error:
        raise InputError(_sentence(error)) from error


def _own(options: AskOptions | SearchOptions | UploadOptions) -> CallOptions:
    own = CallOptions()
    if "request_id" in options:
        own["request_id"] = options["request_id"]
    if "timeout_s" in options:
        own["timeout_s"] = options["timeout_s"]
    return own


def _header_value(request_id: str) -> str:
    if not (request_id.isascii() and request_id.isprintable()):
        raise InputError(f"the request id {request_id!r} cannot stand in a header; give it ASCII characters alone")
    return request_id


def _segment(name: str) -> str:
    """A path's segment; `.` and `..` would be taken for steps through the path."""
    if name in ("", ".", ".."):
        raise InputError(f"{name!r} is no name of anything there; see what is there by listing it")
    return quote(name, safe="")


def _opened(file: Upload, stack: ExitStack) -> tuple[str, Any]:
    if not isinstance(file, Path):
        return file
    try:
        return file.name, stack.enter_context(file.open("rb"))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); name a readable file") from error


def _form(fields: RequestModel | None) -> dict[str, Any]:
    form = {} if fields is None else fields.model_dump(exclude_unset=True)
    if "metadata" in form:
        form["metadata"] = json.dumps(form["metadata"])
    return form


def _reader(kind: type[Answered], *statuses: int) -> Callable[[httpx.Response], Answered]:
    def read(response: httpx.Response) -> Answered:
        _check(response, statuses or (200,), _JSON)
        return _parsed(kind, response.content, str(response.url))

    return read


def _read_events(response: httpx.Response) -> EventReader:
    _check(response, (200,), _EVENTS)
    return EventReader(str(response.url))


def _read_deleted(response: httpx.Response) -> None:
    """Raises what the response says is wrong.

    That nothing is there is not, once an attempt was answered before: a 503 also tells of a deletion whose end the
    service did not hear of in time.
    """
    gone = response.status_code == 404 and response.request.extensions[_AGAIN]
    if response.status_code != 204:
        _check(response, (404,) if gone else (), _PROBLEM)


def _check(response: httpx.Response, statuses: Sequence[int], media_type: str) -> None:
    """Raises what a response says that is none of these."""
    kind = response.headers.get("content-type", "no content").partition(";")[0]
    if response.status_code in statuses and kind == media_type:
        return
    if kind == _PROBLEM:
        raise problem_error(_parsed(Problem, response.content, str(response.url)))
    raise StoreUnavailableError(
        f"{response.url} answered {response.status_code} with {kind} and is no rag service; check --url"
    )


def _parsed(kind: type[Answered], content: str | bytes, url: str) -> Answered:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise StoreUnavailableError(
            f"{url} answered what cannot be read here ({_sentence(error)}); it is no rag service, or one of another "
            "version; check --url"
        ) from error


def _sentence(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in error.errors(include_url=False)
    )
