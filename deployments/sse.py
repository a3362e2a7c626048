"""Pipeline events as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from typing import Any

from fastapi.responses import StreamingResponse

from deployments.errors import bug_problem, problem
from rag.errors import RagError
from rag.events import Cited, Degraded, Done, Event, Retrieved, Token

SILENCE_S = 10.0  # after which a comment keeps proxies and clients from giving up
# JSON leaves these in strings as they are, and many clients take them for the end of a line.
_LINE_ENDS = {ord(sign): f"\\u{ord(sign):04x}" for sign in "\x85\u2028\u2029"}


def event_name_and_data(event: Event) -> tuple[str, dict[str, Any]]:
    """Name and JSON of every event but Done, whose data the ingress makes."""
    match event:
        case Retrieved(hits):
            passages = [
                {"chunk_id": hit.chunk.chunk_id, "title": hit.title, "source": hit.source, "scores": asdict(hit.scores)}
                for hit in hits
            ]
            return "retrieval", {"passages": passages}
        case Token(text):
            return "token", {"text": text}
        case Cited(citation):
            return "citation", asdict(citation)
        case Degraded(stages):
            return "warning", {"degraded": list(stages)}
        case Done():
            raise ValueError("Done carries the response object, which the ingress makes")


async def begin(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The same events, once the first piece of the answer is there: only then is the HTTP status decided.

    Raises what they raise before, so that it can still be a response of its own.
    """
    first: list[Event] = []
    async with AsyncExitStack() as unless_answered:
        unless_answered.push_async_callback(events.aclose)
        async for event in events:
            first.append(event)
            if len(first) > 1:  # Retrieved, then the first Token
                break
        unless_answered.pop_all()  # from here on the response closes them
    return _chain(first, events)


async def _chain(first: list[Event], rest: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    async with aclosing(rest):
        for event in first:
            yield event
        async for event in rest:
            yield event


def event_stream(encoded: AsyncGenerator[str, None]) -> StreamingResponse:
    """The response that carries what was encoded, with a comment for every silence."""
    return StreamingResponse(
        with_comments(encoded), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
    )


def encode_data(content: dict[str, Any], before: str = "") -> str:
    """An event on the wire that carries JSON; `before` are its other lines."""
    text = json.dumps(content, ensure_ascii=False).translate(_LINE_ENDS)
    return f"{before}data: {text}\n\n"


def encode_event(number: int, name: str, data: dict[str, Any]) -> str:
    """One event on the wire; `number` is its id within the stream, from 1."""
    return encode_data(data, f"id: {number}\nevent: {name}\n")


async def encode_events(
    events: AsyncGenerator[Event, None], done_body: Callable[[Done], dict[str, Any]], request_id: str, instance: str
) -> AsyncGenerator[str, None]:
    """The events on the wire; what is raised on the way becomes a last event, `error`. Closing it closes `events`."""
    number = 0
    async with aclosing(events):
        try:
            async for event in events:
                number += 1
                if isinstance(event, Done):
                    yield encode_event(number, "done", done_body(event))
                else:
                    yield encode_event(number, *event_name_and_data(event))
        except RagError as error:
            yield encode_event(number + 1, "error", problem(request_id, instance, error))
        except Exception as error:  # noqa: BLE001  # the process's edge: a stream merely cut off tells its client nothing
            yield encode_event(number + 1, "error", bug_problem(request_id, instance, error))


async def with_comments(events: AsyncGenerator[str, None], silence_s: float = SILENCE_S) -> AsyncGenerator[str, None]:
    """The events, and a comment for every `silence_s` seconds without one. Closing it closes `events`."""
    pending: asyncio.Task[str] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({pending}, timeout=silence_s)
            if not done:
                yield ": still working\n\n"
                continue
            try:
                text = pending.result()
            except StopAsyncIteration:
                return
            pending = None
            yield text
    finally:
        if pending is not None and not pending.done():
            pending.cancel()
            await asyncio.wait({pending})
        await events.aclose()
