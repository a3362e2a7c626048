"""The rerankers as deployments behind one method: late interaction, and a cross-encoder."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.errors import read_stage
from deployments.loading import load_behind
from deployments.metrics import note_batch
from deployments.watch import Watch
from rag.config import Settings
from rag.models import embedding_dimension, load_token_offsets, locate_model
from rag.rerank import CrossEncoderScorer, MaxSimReranker, ScoreRequest
from rag.types import Span, TextKind


class _Request(NamedTuple):
    wanted: ScoreRequest
    tokens: int


def _batch_tokens(requests: list[_Request]) -> int:
    return sum(request.tokens for request in requests)


class LateInteraction:
    """`score(...)` over the token vectors that the index keeps; the embedder makes a query's, and missing ones.

    It holds no model. Raises StageError when the embedder fails.
    """

    def __init__(self, settings: Settings, embedder: DeploymentHandle) -> None:
        self._embedder = embedder
        self._watching: Watch | None = None
        offsets = load_token_offsets(settings.embedder, settings.cache_dir)
        dimension = embedding_dimension(settings.embedder, settings.cache_dir)
        self._reranker = MaxSimReranker(self._embed_tokens, offsets, dimension, settings.reranker.cached_texts)

    async def _embed_tokens(self, texts: list[str], kind: TextKind) -> list[np.ndarray]:
        if self._watching is None:  # made on the event loop that serves
            self._watching = Watch({"embedder": self._embedder.ready.remote})
        async with self._watching.unless_down("embedder", "rerank"):
            return await read_stage("rerank", lambda: self._embedder.embed_tokens.remote(texts, kind))

    async def score(
        self, queries: list[str], texts: list[str], spans: list[list[Span]], token_vectors: list[bytes]
    ) -> list[np.ndarray]:
        """Per text a float32 array (queries, spans) within 0..1."""
        return await self._reranker.score(queries, texts, spans, token_vectors)

    async def ready(self) -> None:
        """Answers while the replica lives."""


class CrossEncoder:
    """`score(...)` by any model of that kind. Concurrent requests share forward passes bounded by tokens."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.reranker
        located = locate_model(settings.reranker_model, settings.cache_dir)
        self._scorer = load_behind(lambda: CrossEncoderScorer(settings.reranker, located))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rerank")
        self._batch.set_max_batch_size(self._settings.batch_tokens)
        self._batch.set_batch_wait_timeout_s(self._settings.batch_wait_s)

    async def score(
        self,
        queries: list[str],
        texts: list[str],
        spans: list[list[Span]],
        token_vectors: list[bytes],  # noqa: ARG002  # it reads the texts themselves
    ) -> list[np.ndarray]:
        """Per text a float32 array (queries, spans) within 0..1."""
        tokens = sum(await asyncio.to_thread(self._scorer.count_tokens, texts))
        wanted = ScoreRequest(queries, texts, spans)
        scores: list[np.ndarray] = await self._batch(_Request(wanted, min(tokens, self._settings.batch_tokens)))
        return scores

    async def ready(self) -> None:
        """Answers while the replica lives."""

    @serve.batch(batch_size_fn=_batch_tokens)  # type: ignore[untyped-decorator]
    async def _batch(self, requests: list[_Request]) -> list[list[np.ndarray]]:
        note_batch("rerank", sum(len(request.wanted.texts) for request in requests), _batch_tokens(requests))
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, requests)

    def _score(self, requests: list[_Request]) -> list[list[np.ndarray]]:
        return self._scorer.score([request.wanted for request in requests])
