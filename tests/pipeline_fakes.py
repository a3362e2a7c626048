"""The question flow's steps as whole small objects: a store in memory, a scripted LLM, a scorer that counts words."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rag.analyze import analyze, terms
from rag.config import Settings, load_settings
from rag.filters import Filter
from rag.pipeline import Steps
from rag.retrieve import SearchSteps
from rag.step_settings import EvidenceSettings
from rag.store import MilvusStore
from rag.types import (
    Chunk,
    Generate,
    GeneratedText,
    Groups,
    Hit,
    IndexFingerprint,
    Message,
    Scores,
    SearchResult,
    Span,
    StoredChunk,
    Usage,
)
from tests.fakes import HashEmbedder, InMemoryStore

FINGERPRINT = IndexFingerprint("hash", 64, True, "", "", "paragraphs", "1")
FINISHED = GeneratedText("", "stop", Usage(100, 20))

# source -> paragraphs, each a chunk; the document's text joins them with a blank line.
DOCUMENTS: dict[str, tuple[str, ...]] = {
    "ports.md": (
        "🙂 This guide is for operators.",
        "The service listens on port 8000. Another port is chosen with the option --port.",
    ),
    "limits.md": ("A question may have 4,000 characters. A longer question is refused with status 422.",),
    "orchard.md": ("The orchard holds eleven plum trees. They bloom in April.",),
    "ko.md": ("서비스의 기본 포트는 8000번입니다. 다른 포트는 --port로 고릅니다.",),
}


def text_of(source: str) -> str:
    """A document's whole text."""
    return "\n\n".join(DOCUMENTS[source])


def make_hit(chunk_id: str, text: str = "Some text.", *, score: float = 1.0, scores: Scores | None = None) -> Hit:
    """A hit of a document of its own."""
    chunk = Chunk(chunk_id, f"doc-{chunk_id}", "r1", 0, text, 0, len(text))
    return Hit(chunk, f"Title {chunk_id}", f"{chunk_id}.md", score, scores or Scores())


def stored_documents(documents: Mapping[str, Sequence[str]], collection: str = "default") -> InMemoryStore:
    """A store that holds the documents."""
    store = InMemoryStore(FINGERPRINT)
    store.ensure_collection(collection, FINGERPRINT)
    store.upsert(collection, document_rows(documents))
    return store


def document_rows(documents: Mapping[str, Sequence[str]]) -> list[StoredChunk]:
    """A chunk for each paragraph, headed by its document's name."""
    rows = []
    for source, paragraphs in documents.items():
        start = 0
        for ordinal, text in enumerate(paragraphs):
            heading = f"Handbook > {source.removesuffix('.md')}"
            chunk = Chunk(f"{source}:{ordinal}", source, "r1", ordinal, text, start, start + len(text), heading)
            vector = HashEmbedder().encode([text], "passage")[0]
            row = StoredChunk(chunk, vector, analyze(text), source, source, (), {}, len(paragraphs), None, "2026-01-01")
            rows.append(row)
            start += len(text) + 2
    return rows


class WordScorer:
    """The fraction of a query's terms that a span holds; `calls` keeps what it was asked.

    From call number `fails_from` on (from 0) it raises `error`.
    """

    def __init__(self, error: Exception | None = None, fails_from: int = 0) -> None:
        self.calls: list[list[str]] = []
        self._error = error
        self._fails_from = fails_from

    async def __call__(
        self, queries: list[str], texts: list[str], spans: list[list[Span]], token_vectors: list[bytes]
    ) -> list[np.ndarray]:
        self.calls.append(queries)
        await asyncio.sleep(0)
        if self._error is not None and len(self.calls) > self._fails_from:
            raise self._error
        wanted = [set(terms(query)) for query in queries]
        return [
            np.array(
                [[len(words & set(terms(text[a:b]))) / max(len(words), 1) for a, b in own] for words in wanted],
                dtype=np.float32,
            )
            for text, own in zip(texts, spans, strict=True)
        ]


class AnswerabilityOf:
    """The log odds of those texts that are known, -4 of others; `pairs` keeps what it was asked."""

    def __init__(self, log_odds: Mapping[str, float]) -> None:
        self.pairs: list[tuple[str, str]] = []
        self._log_odds = log_odds

    async def __call__(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        self.pairs += pairs
        await asyncio.sleep(0)
        return np.array([self._log_odds.get(text, -4.0) for _, text in pairs], dtype=np.float32)


@dataclass(frozen=True)
class GenerateCall:
    """What the LLM was asked."""

    messages: list[Message]
    model: str | None
    max_tokens: int
    temperature: float


@dataclass
class ScriptedLLM:
    """Plays its script: text is sent, a number is a pause in seconds, an error is raised.

    `closed` counts the generations that ended, whichever way.
    """

    script: Sequence[str | float | Exception | GeneratedText] = ()
    calls: list[GenerateCall] = field(default_factory=list)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    sent: int = 0
    closed: int = 0

    async def __call__(
        self, messages: list[Message], *, model: str | None, max_tokens: int, temperature: float
    ) -> AsyncIterator[GeneratedText]:
        self.calls.append(GenerateCall(messages, model, max_tokens, temperature))
        self.started.set()
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                    continue
                await asyncio.sleep(0)
                self.sent += 1
                yield GeneratedText(step) if isinstance(step, str) else step
        finally:
            self.closed += 1


class ReadingLLM:
    """Repeats the first sentence of the first passage; counts its answers, and calls `meanwhile` before each."""

    def __init__(self, meanwhile: Callable[[], None] = lambda: None) -> None:
        self.answers = 0
        self.meanwhile = meanwhile

    async def __call__(
        self, messages: list[Message], *, model: str | None, max_tokens: int, temperature: float
    ) -> AsyncIterator[GeneratedText]:
        self.answers += 1
        self.meanwhile()
        await asyncio.sleep(0)
        yield GeneratedText(messages[-1].content.split("\n")[1].split(". ")[0].rstrip(".") + ".")
        yield FINISHED


def says(*texts: str) -> ScriptedLLM:
    """An LLM that writes the texts word by word and finishes."""
    words = [f"{word} " for text in texts for word in text.split(" ")]
    return ScriptedLLM([*words, FINISHED])


def raising(error: Exception) -> Callable[..., Awaitable[Any]]:
    """A step that fails."""

    async def step(*_args: object, **_kwargs: object) -> Any:
        await asyncio.sleep(0)
        raise error

    return step


def late(seconds: float) -> Callable[..., Awaitable[Any]]:
    """A step that answers too late."""

    async def step(*_args: object, **_kwargs: object) -> Any:
        await asyncio.sleep(seconds)
        raise AssertionError("this step was to be given up before")

    return step


def make_search(documents: Mapping[str, Sequence[str]] = DOCUMENTS, **steps: Any) -> SearchSteps:
    """The searching side over `documents`; `steps` stand in for single ones."""
    return search_over(stored_documents(documents), **steps)


def search_over(store: InMemoryStore | MilvusStore, **steps: Any) -> SearchSteps:
    """The searching side over a store; `steps` stand in for single ones."""

    async def lexical_search(
        collection: str, query: str, top_k: int, *, groups: Groups, where: Filter | None
    ) -> SearchResult:
        return await store.lexical_search(collection, analyze(query), top_k, groups=groups, where=where)

    search = SearchSteps(HashEmbedder().embed, store.dense_search, lexical_search, WordScorer(), terms)
    return replace(search, **steps)


def make_steps(generate: Generate, search: SearchSteps | None = None) -> Steps:
    """All steps of the flow; tokens are counted as words."""
    return Steps(search or make_search(), generate, lambda text: len(text.split()))


def make_settings(reader: str = "strong", **overrides: Any) -> Settings:
    """The embedded profile with scores as they are: no calibration, no blend, models that read every language."""
    groups: dict[str, Any] = {
        "embedder": {"languages": None},
        "reranker": {"languages": None, "calibration": None, "blend": 1.0},
        "generator": {"languages": None},
        # On the rerank scale the confidence is the score itself.
        "evidence": {"min_confidence": 0.4, "scales": {"rerank": {"intercept": 0.0, "weights": {"rerank": 1.0}}}},
        "grounding": {"reader": reader, "max_score_gap": 0.3 if reader == "weak" else None, "max_sentences": None},
    }
    for name, given in overrides.items():
        groups[name] = {**groups.get(name, {}), **given}
    settings = load_settings(profile="embedded", **groups)
    # The profile's own gate, which would fill in the other scales, is fitted to its models and not to the fakes.
    return settings.model_copy(update={"evidence": EvidenceSettings.model_validate(groups["evidence"])})
