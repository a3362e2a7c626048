"""What tests of the searching half share: a search, what it found, searches and scorers by a table."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from rag.clock import RequestClock
from rag.config import Settings
from rag.retrieve import SearchSteps, retrieve
from rag.types import SearchResult, Span
from tests.pipeline_fakes import make_hit, make_settings

QUERY = "Which port does the service listen on?"


async def search(
    steps: SearchSteps,
    settings: Settings | None = None,
    query: str = QUERY,
    collection: str = "default",
    **options: Any,
) -> tuple[SearchResult, RequestClock]:
    clock = RequestClock(30)
    found = await retrieve(query, collection, steps, settings or make_settings(), clock, **options)
    return found, clock


def ids(found: SearchResult) -> list[str]:
    return [hit.chunk.chunk_id for hit in found.hits]


def finds(*chunk_ids: str) -> Any:
    """A search that finds these, best first."""

    async def step(_collection: str, _query: object, top_k: int, **_: object) -> SearchResult:
        hits = tuple(make_hit(name, f"Text {name}.", score=1 / rank) for rank, name in enumerate(chunk_ids, start=1))
        return SearchResult(hits[:top_k], "version")

    return step


class Ranking:
    """Scores texts by a table; what it was asked is kept."""

    def __init__(self, scores: dict[str, float]) -> None:
        self._scores = scores
        self.texts: list[str] = []
        self.spans: list[list[Span]] = []
        self.token_vectors: list[bytes] = []

    async def __call__(
        self, queries: list[str], texts: list[str], spans: list[list[Span]], token_vectors: list[bytes]
    ) -> list[np.ndarray]:
        self.texts, self.spans, self.token_vectors = texts, spans, token_vectors
        await asyncio.sleep(0)
        return [np.array([[self._scores.get(text, 0.0)]], dtype=np.float32) for text in texts]
