"""Pipeline events as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict
from typing import Any

from deployments.errors import bug_problem, problem
from rag.errors import RagError
from rag.pipeline import Cited, Degraded, Done, Event, Retrieved, Token

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


def encode_event(number: int, name: str, data: dict[str, Any]) -> str:
    """One event on the wire; `number` is its id within the stream, from 1."""
    text = json.dumps(data, ensure_ascii=False).translate(_LINE_ENDS)
    return f"id: {number}\nevent: {name}\ndata: {text}\n\n"


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
