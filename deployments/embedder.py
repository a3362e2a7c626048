"""The embedder as a deployment: concurrent requests share forward passes bounded by tokens."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from ray import serve

from deployments.loading import load_behind
from rag.config import Settings
from rag.embed import SentenceEmbedder
from rag.models import locate_model
from rag.types import TextKind


class _Request(NamedTuple):
    texts: list[str]
    kind: TextKind
    tokens: int


def _batch_tokens(requests: list[_Request]) -> int:
    return sum(request.tokens for request in requests)


class Embedder:
    """`embed(texts, kind)` -> float32 (n, dim). One thread owns the model; the event loop stays free."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.embedder
        located = locate_model(settings.embedder.model, settings.cache_dir)
        self._embedder = load_behind(lambda: SentenceEmbedder(settings.embedder, located))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")
        self._batch.set_max_batch_size(self._settings.batch_tokens)
        self._batch.set_batch_wait_timeout_s(self._settings.batch_wait_s)

    async def embed(self, texts: list[str], kind: TextKind) -> np.ndarray:
        """n texts -> float32 (n, dim), rows of L2 norm 1."""
        tokens = sum(await asyncio.to_thread(self._embedder.count_tokens, texts))
        # serve.batch refuses an item larger than a batch; `encode` cuts such a one into passes itself.
        vectors: np.ndarray = await self._batch(_Request(texts, kind, min(tokens, self._settings.batch_tokens)))
        return vectors

    async def ready(self) -> None:
        """Answers while the replica lives."""

    @serve.batch(batch_size_fn=_batch_tokens)  # type: ignore[untyped-decorator]
    async def _batch(self, requests: list[_Request]) -> list[np.ndarray]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, requests)

    def _encode(self, requests: list[_Request]) -> list[np.ndarray]:
        results: list[np.ndarray | None] = [None] * len(requests)
        kinds: tuple[TextKind, ...] = ("query", "passage")
        for kind in kinds:
            mine = [index for index, request in enumerate(requests) if request.kind == kind]
            if not mine:
                continue
            vectors = self._embedder.encode([text for index in mine for text in requests[index].texts], kind)
            bounds = np.cumsum([len(requests[index].texts) for index in mine])[:-1]
            for index, part in zip(mine, np.split(vectors, bounds), strict=True):
                results[index] = part
        return [result for result in results if result is not None]
