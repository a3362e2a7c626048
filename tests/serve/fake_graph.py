"""The real orchestrator over whole small stages: what the Serve tests deploy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from ray import cloudpickle, serve

import tests.fakes
import tests.filter_fake
from deployments.app import SPARE_REQUESTS
from deployments.ingress import Orchestrator, create_api
from rag.analyze import analyze, terms
from rag.config import Settings
from rag.errors import StageError
from rag.filters import Filter
from rag.types import (
    Chunk,
    GeneratedText,
    Groups,
    IndexFingerprint,
    Message,
    SearchResult,
    Span,
    StoredChunk,
    TextKind,
    Usage,
)
from tests.fakes import HashEmbedder, InMemoryStore

DOCUMENTS = {
    "ports.md": "The service listens on port 8000. Another port is chosen with --port.",
    "limits.md": "A question may have 4000 characters. A body may have one MiB.",
    "slow.md": "The slow lamp burns for eleven hours. Its fuel is whale oil.",
    "broken.md": "The broken engine was repaired in 1931. It ran again for two years.",
}
CLOSED = {"secret.md": "The service listens on port 9999 for the staff alone."}  # to the group staff
FINGERPRINT = IndexFingerprint("hash", 64, True, "", "", "whole", "1")
SLOW_S, GENERATE_LIMIT_S = 3.0, 3.5


def answerability_by_words(pairs: list[tuple[str, str]]) -> np.ndarray:
    """Log odds by the share of the question's terms that the text holds."""
    shares = [len({*terms(asked)} & {*terms(text)}) / max(len({*terms(asked)}), 1) for asked, text in pairs]
    return np.array([8 * share - 4 for share in shares], dtype=np.float32)


class FakeEmbedder:
    def __init__(self) -> None:
        self._embedder = HashEmbedder()

    async def embed(self, texts: list[str], kind: TextKind) -> np.ndarray:
        return await self._embedder.embed(texts, kind)

    async def answerability(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        return answerability_by_words(pairs)

    async def ready(self) -> None:
        return None


class FakeRetriever:
    def __init__(self) -> None:
        self._store = InMemoryStore(FINGERPRINT)
        self._store.ensure_collection("default", FINGERPRINT)
        embedder = HashEmbedder()
        rows = []
        for source, text in {**DOCUMENTS, **CLOSED}.items():
            chunk = Chunk(f"{source}:0", source, "r1", 0, text, 0, len(text))
            vector = embedder.encode([text], "passage")[0]
            acl = ("staff",) if source in CLOSED else ()
            metadata = {"lang": "en", "tags": [source.removesuffix(".md")]}
            rows.append(StoredChunk(chunk, vector, analyze(text), source, source, acl, metadata, 1, None, "2026-01-01"))
        self._store.upsert("default", rows)

    async def dense_search(
        self, collection: str, vector: np.ndarray, top_k: int, *, groups: Groups, where: Filter | None
    ) -> SearchResult:
        return await self._store.dense_search(collection, vector, top_k, groups=groups, where=where)

    async def lexical_search(
        self, collection: str, query: str, top_k: int, *, groups: Groups, where: Filter | None
    ) -> SearchResult:
        return await self._store.lexical_search(collection, analyze(query), top_k, groups=groups, where=where)

    async def token_vectors(self, collection: str, chunk_ids: list[str]) -> list[bytes]:
        return await self._store.token_vectors(collection, chunk_ids)

    async def index_versions(self) -> dict[str, str]:
        return {"default": FINGERPRINT.index_version}

    async def ready(self) -> None:
        await self._store.ping()


class FakeIndexer:
    async def ready(self) -> None:
        return None


class FakeReranker:
    """Scores by the fraction of the query's terms that a span holds."""

    async def score(
        self, queries: list[str], texts: list[str], spans: list[list[Span]], token_vectors: list[bytes]
    ) -> list[np.ndarray]:
        wanted = [set(terms(query)) for query in queries]
        return [
            np.array(
                [[len(w & set(terms(text[a:b]))) / max(len(w), 1) for a, b in own] for w in wanted], dtype=np.float32
            )
            for text, own in zip(texts, spans, strict=True)
        ]

    async def ready(self) -> None:
        return None


class FakeGenerator:
    """Repeats the first sentence of the first passage; asked about `slow`, it takes its time; about `broken`, it fails.

    Its first request, the warm-up question, takes longer than any other may, as an engine's on a busy machine.
    What became of each request is appended to `log`. It does not start while there is a file `hold`.
    """

    def __init__(self, log: Path, hold: Path) -> None:
        while hold.exists():
            time.sleep(0.05)
        self._log = log
        self._is_first = True

    async def generate(
        self, messages: list[Message], *, max_tokens: int, temperature: float
    ) -> AsyncIterator[GeneratedText]:
        prompt = messages[-1].content
        question = prompt.rsplit("Question:", 1)[1]
        if "broken" in question:
            raise StageError("generate", "the engine is on strike")
        self._note("started")
        try:
            if "slow" in question:
                await asyncio.sleep(SLOW_S)
            if self._is_first:
                self._is_first = False
                await asyncio.sleep(GENERATE_LIMIT_S + 0.5)
            sentence = prompt.split("\n")[1].split(". ")[0] + "."
            for word in sentence.split(" "):
                await asyncio.sleep(0)
                yield GeneratedText(word + " ")
            yield GeneratedText("", "stop", Usage(len(prompt), max_tokens))
        except (asyncio.CancelledError, GeneratorExit):
            self._note("cancelled")
            raise
        self._note("finished")

    async def ready(self) -> None:
        return None

    def _note(self, what: str) -> None:
        with self._log.open("a", encoding="utf-8") as file:
            file.write(what + "\n")


def build_fake_app(settings: Settings) -> Any:
    """The graph of deployments.app with fakes behind the same handles."""
    import tests.serve.fake_graph as this

    for module in (this, tests.fakes, tests.filter_fake):
        cloudpickle.register_pickle_by_value(module)  # workers do not have the tests on their path

    def stage(target: type) -> Any:
        return serve.deployment(target, ray_actor_options={"num_cpus": 0.01}, max_ongoing_requests=64)

    ingress = serve.deployment(
        serve.ingress(create_api(settings.serve))(Orchestrator),
        ray_actor_options={"num_cpus": 0.01},
        max_ongoing_requests=settings.serve.max_inflight + settings.serve.max_queued + SPARE_REQUESTS,
    )
    return ingress.bind(
        settings,
        stage(FakeEmbedder).bind(),
        stage(FakeRetriever).bind(),
        stage(FakeReranker).bind(),
        {
            name: stage(FakeGenerator).bind(settings.data_dir / "generator.log", settings.data_dir / f"{name}.hold")
            for name in settings.engines
        },
        stage(FakeIndexer).bind(),
    )
