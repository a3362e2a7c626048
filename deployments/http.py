"""What every request passes before a route: its id, the size and kind of its body."""

from __future__ import annotations

import re
import uuid

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import json_problem, problem_body

_LENGTH = re.compile(r"[0-9]{1,18}")


class RequestGate:
    """Pure ASGI: sets `state.request_id`, and refuses a body that is too large or no JSON.

    Both the announced length and the bytes that arrive count; nothing beyond the limit is kept. The body is read here,
    since only then can too large a one still get its own status.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        # Serve gives a request without an id one, in its headers, and answers every request with it.
        request_id = headers.get("x-request-id") or uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["method"] in ("POST", "PUT", "PATCH"):
            body = await self._read_body(headers, receive)
            if body is None:
                return
            if not isinstance(body, bytes):
                status, kind, title, detail = body
                response = json_problem(problem_body(status, kind, title, detail, request_id, scope["path"]))
                await response(scope, receive, send)
                return
            receive = _replay(body, receive)
        await self._app(scope, receive, send)

    async def _read_body(self, headers: Headers, receive: Receive) -> bytes | tuple[int, str, str, str] | None:
        """The body, or why it is refused: status, kind, title, detail. None: the client left before its end."""
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            return (
                415,
                "unsupported-media-type",
                "Unsupported media type",
                (f"the content type is {kind or 'missing'}; send application/json"),
            )
        too_large = (
            413,
            "too-large",
            "Body too large",
            f"a request may have {self._max_body_bytes} bytes (setting serve.max_body_bytes)",
        )
        length = headers.get("content-length", "0")
        if not _LENGTH.fullmatch(length):
            return 400, "malformed", "Malformed request", f"the Content-Length {length!r} is no number of bytes"
        if int(length) > self._max_body_bytes:
            return too_large
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                return too_large
            more = message.get("more_body", False)
        return b"".join(parts)


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
