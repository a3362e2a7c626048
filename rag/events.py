"""What the question flow says while it answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rag.types import Answer, Citation, Hit


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The passages' hits are known."""

    hits: tuple[Hit, ...]


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the answer; all pieces joined are the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Cited:
    """A verified citation of what was just sent."""

    citation: Citation


@dataclass(frozen=True, slots=True)
class Degraded:
    """The stages left out so far."""

    stages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The whole answer; nothing follows."""

    answer: Answer


Event = Retrieved | Token | Cited | Degraded | Done


def replay_answer(answer: Answer, hits: tuple[Hit, ...]) -> Iterator[Event]:
    """The events of an answer from which nothing was left out; `hits` are those kept for the prompt.

    Each supported sentence with what stands before it is one piece.
    """
    yield Retrieved(hits)
    sent = 0
    for citation in answer.citations:
        end = citation.answer_end + len(f" [{citation.marker}]")
        yield Token(answer.answer[sent:end])
        yield Cited(citation)
        sent = end
    if sent < len(answer.answer):
        yield Token(answer.answer[sent:])
    yield Done(answer)
