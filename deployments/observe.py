"""What becomes of each request: counted, and for a question or search a line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.errors import problem_kind
from deployments.metrics import count, note_answer, note_request
from rag.errors import RagError, StageError
from rag.types import Answer

logger = logging.getLogger("ray.serve")
Tell = Callable[..., None]

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
def watched(what: str) -> Iterator[Tell]:
    """A question or search, `what`, is worked on inside: how it ends is counted and becomes a line of the log.

    Gives what is to be called with the outcome and the line's other fields; an error, and a client that leaves before,
    are told by themselves. Serve adds the request's id. No text that anybody wrote is in the line.
    """
    told = False

    def tell(outcome: str, **fields: Any) -> None:
        nonlocal told
        told = True
        logger.info("%s %s", what, outcome, extra={"outcome": outcome, **fields})

    try:
        yield tell
    except RagError as error:
        count("rag_questions_failed_total", reason=problem_kind(error))
        tell(problem_kind(error), **({"stage": error.stage} if isinstance(error, StageError) else {}))
        raise
    except (asyncio.CancelledError, GeneratorExit):
        if not told:
            tell("cancelled")
        raise


def tell_answer(tell: Tell, answer: Answer) -> None:
    """Counts an answer, and tells it."""
    note_answer(answer)
    tell(
        answer.status,
        answer_source=answer.answer_source,
        reason=answer.reason,
        model=answer.model,
        degraded=answer.degraded,
        cached=answer.cached,
        confidence=answer.confidence,
        collection=answer.collection,
        index_version=answer.index_version,
        usage=asdict(answer.usage),
        timings_ms=dict(answer.timings_ms),
    )
