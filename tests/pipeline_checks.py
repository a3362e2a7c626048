"""An answer's events, checked for what holds of every answer."""

from __future__ import annotations

from contextlib import aclosing
from itertools import pairwise
from typing import Any

from rag.config import Settings
from rag.events import Cited, Degraded, Done, Event, Retrieved, Token
from rag.pipeline import Steps, stream_answer
from rag.types import Question
from tests.pipeline_fakes import (
    text_of,
)


async def events_of(question: Question, steps: Steps, settings: Settings, **options: Any) -> list[Event]:
    """All events of an answer, checked for what holds of every answer."""
    async with aclosing(stream_answer(question, steps, settings, **options)) as stream:
        events = [event async for event in stream]
    check_stream(events)
    return events


def check_stream(events: list[Event]) -> None:
    assert isinstance(events[0], Retrieved)
    done = events[-1]
    assert isinstance(done, Done)
    given = done.answer
    assert [kind for kind in map(type, events) if kind in (Retrieved, Done)] == [Retrieved, Done]
    assert "".join(event.text for event in events if isinstance(event, Token)) == given.answer
    assert tuple(event.citation for event in events if isinstance(event, Cited)) == given.citations
    for before, event in pairwise(events):
        if isinstance(event, Cited):
            start, end = event.citation.answer_start, event.citation.answer_end
            assert isinstance(before, Token)
            assert given.answer[start:end] in before.text
    warnings = [event.stages for event in events if isinstance(event, Degraded)]
    assert warnings == ([given.degraded] if given.degraded else [])
    for citation in given.citations:
        assert citation.verified
        assert citation.quote
        assert citation.quote == text_of(citation.source)[citation.char_start : citation.char_end]
        assert given.answer[citation.answer_end :].startswith(f" [{citation.marker}]")
    for span in given.unsupported:
        assert given.answer[span.start : span.end] == span.text
    if given.status == "abstained":
        assert (given.citations, given.unsupported, given.answer_source) == ((), (), None)
        assert given.reason is not None
    else:
        assert given.reason is None


async def answer_of(question: Question, steps: Steps, settings: Settings, **options: Any) -> Any:
    done = (await events_of(question, steps, settings, **options))[-1]
    assert isinstance(done, Done)
    return done.answer
