"""What the question flow tells while it answers, in this order: Retrieved, Token and Cited, Degraded, Done."""

from __future__ import annotations

from dataclasses import dataclass

from rag.types import Answer, Citation, Hit, Stage


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

    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Done:
    """The whole answer; nothing follows."""

    answer: Answer


Event = Retrieved | Token | Cited | Degraded | Done
