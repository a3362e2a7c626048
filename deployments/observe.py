"""What becomes of each request: counted, and for a question or search a line in the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import problem_kind
from deployments.metrics import count, note_request
from rag.errors import RagError

CLIENT_GONE = 499


class RequestCount:
    """Pure ASGI: counts each request by its route and status once it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500  # of a bug, whose response is made outside of this
        began = time.perf_counter()

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            status = CLIENT_GONE
            raise
        finally:
            route = getattr(scope.get("route"), "path", "other")
            note_request(scope["method"], route, status, time.perf_counter() - began)


@contextmanager
def failures_counted() -> Iterator[None]:
    """Counts a question or search that ends with an error inside."""
    try:
        yield
    except RagError as error:
        count("rag_questions_failed_total", reason=problem_kind(error))
        raise
