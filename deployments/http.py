"""What every request passes before a route: its id, the size and kind of its body."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import json_problem, problem
from rag.errors import InputError, MalformedError, MediaTypeError, TooLargeError

JSON = "application/json"
MULTIPART = "multipart/form-data"

_LENGTH = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """A content type that is taken, and its bytes at most; `setting` is what raises that.

    `streamed`: the route reads the body as it arrives, else it is put together here.
    """

    media_type: str
    max_bytes: int
    setting: str
    streamed: bool = False

    @property
    def sentence(self) -> str:
        """What a larger body is told."""
        return f"a request of {self.media_type} may have {self.max_bytes} bytes here (setting {self.setting})"


class RequestGate:
    """Pure ASGI: sets `state.request_id`, and refuses a body that is too large or of another type than `limits` name.

    `own_limits` are those of the paths that have some. Both the announced length and the bytes that arrive count;
    nothing beyond the limit is kept. A JSON body is read here, since only then can too large a one still get its own
    status; for a streamed one, the route's reading raises TooLargeError.
    """

    def __init__(
        self, app: ASGIApp, limits: Sequence[BodyLimit], own_limits: Mapping[str, Sequence[BodyLimit]]
    ) -> None:
        self._app = app
        self._limits = limits
        self._own_limits = own_limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Serve gives a request without an id one, in its headers, and answers every request with it.
        request_id = headers.get("x-request-id") or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        send = body.closing(send)
        try:
            limit = _choose_limit(headers, self._own_limits.get(scope["path"], self._limits))
            _check_length(headers, limit)
            passed = body.limited(limit) if limit.streamed else await body.read(limit)
        except InputError as error:
            response = json_problem(problem(request_id, scope["path"], error))
            await response(scope, receive, send)
            return
        if passed is not None:
            await self._app(scope, passed, send)


class _Body:
    """A request's body on its way in."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False

    def limited(self, limit: BodyLimit) -> Receive:
        """`receive` that raises TooLargeError with the first message beyond the limit."""
        size = 0

        async def receive() -> Message:
            nonlocal size
            message = await self._receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                self._ended = not message.get("more_body", False)
                if size > limit.max_bytes:
                    raise TooLargeError(limit.sentence)
            return message

        return receive

    async def read(self, limit: BodyLimit) -> Receive | None:
        """`receive` that has the whole body at once; None: the client left before its end. Raises TooLargeError."""
        receive = self.limited(limit)
        parts: list[bytes] = []
        while not self._ended:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
        return _replay(b"".join(parts), self._receive)

    def closing(self, send: Send) -> Send:
        """`send` that ends the connection where the client is refused in the middle of its body.

        Without that the server would take in, and drop, whatever is still to come.
        """

        async def closed(message: Message) -> None:
            if message["type"] == "http.response.start" and not self._ended:
                MutableHeaders(scope=message)["connection"] = "close"
            await send(message)

        return closed


def _choose_limit(headers: Headers, limits: Sequence[BodyLimit]) -> BodyLimit:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    for limit in limits:
        if kind == limit.media_type:
            return limit
    wanted = " or ".join(limit.media_type for limit in limits)
    raise MediaTypeError(f"the content type is {kind or 'missing'}; send {wanted}")


def _check_length(headers: Headers, limit: BodyLimit) -> None:
    length = headers.get("content-length", "0")
    if not _LENGTH.fullmatch(length):
        raise MalformedError(f"the Content-Length {length!r} is no number of bytes")
    if int(length) > limit.max_bytes:
        raise TooLargeError(limit.sentence)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives `body` once, then whatever comes (the disconnect)."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
