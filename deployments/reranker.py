"""The reranker as a deployment: MaxSim or a cross-encoder by settings, behind one method."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from ray import serve

from deployments.loading import load_behind
from rag.config import Settings
from rag.models import locate_model
from rag.rerank import ScoreRequest, load_scorer
from rag.types import Span


class _Request(NamedTuple):
    wanted: ScoreRequest
    tokens: int


def _batch_tokens(requests: list[_Request]) -> int:
    return sum(request.tokens for request in requests)


class Reranker:
    """`score(queries, texts, spans)`, see rag.rerank. Concurrent requests share forward passes bounded by tokens."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.reranker
        located = locate_model(settings.reranker.model, settings.cache_dir)
        self._scorer = load_behind(lambda: load_scorer(settings.reranker, located))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rerank")
        self._batch.set_max_batch_size(self._settings.batch_tokens)
        self._batch.set_batch_wait_timeout_s(self._settings.batch_wait_s)

    async def score(self, queries: list[str], texts: list[str], spans: list[list[Span]]) -> list[np.ndarray]:
        """Per text a float32 array (queries, spans) within 0..1."""
        tokens = sum(await asyncio.to_thread(self._scorer.count_tokens, texts))
        wanted = ScoreRequest(queries, texts, spans)
        scores: list[np.ndarray] = await self._batch(_Request(wanted, min(tokens, self._settings.batch_tokens)))
        return scores

    async def ready(self) -> None:
        """Answers while the replica lives."""

    @serve.batch(batch_size_fn=_batch_tokens)  # type: ignore[untyped-decorator]
    async def _batch(self, requests: list[_Request]) -> list[list[np.ndarray]]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, requests)

    def _score(self, requests: list[_Request]) -> list[list[np.ndarray]]:
        return self._scorer.score([request.wanted for request in requests])
