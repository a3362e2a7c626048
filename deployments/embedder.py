"""The embedder as a deployment: concurrent requests share forward passes bounded by tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby, islice
from typing import Any, Literal, NamedTuple

import numpy as np
from ray import serve

from deployments.loading import load_behind
from deployments.metrics import note_batch
from rag.answerability import AnswerabilityScorer
from rag.config import Settings
from rag.embed import SentenceEmbedder
from rag.models import locate_answerability, locate_model
from rag.types import Embedding, TextKind

_Wanted = Literal["vectors", "token vectors", "embeddings", "answerability"]


class _Request(NamedTuple):
    texts: list[Any]  # for answerability the tokens of pairs of them
    kind: TextKind
    wanted: _Wanted
    tokens: int


def _batch_tokens(requests: list[_Request]) -> int:
    return sum(request.tokens for request in requests)


class Embedder:
    """Texts to vectors, and to their tokens', and whether texts answer questions. One thread owns the models; the event
    loop stays free."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.embedder
        located = locate_model(settings.embedder.model, settings.cache_dir)
        self._embedder = load_behind(lambda: SentenceEmbedder(settings.embedder, located))
        adapter = locate_answerability(settings)
        self._answerability: AnswerabilityScorer | None = None
        if adapter is not None:
            judge = locate_model(adapter.base, settings.cache_dir)
            self._answerability = load_behind(lambda: AnswerabilityScorer(settings.embedder, judge, adapter.path))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embed")
        self._batch.set_max_batch_size(self._settings.batch_tokens)
        self._batch.set_batch_wait_timeout_s(self._settings.batch_wait_s)

    async def embed(self, texts: list[str], kind: TextKind) -> np.ndarray:
        """n texts -> float32 (n, dim), rows of L2 norm 1."""
        found = await self._ask(texts, kind, "vectors")
        return np.stack(found) if found else np.empty((0, self._embedder.dimension), dtype=np.float32)

    async def embed_tokens(self, texts: list[str], kind: TextKind) -> list[np.ndarray]:
        """n texts -> of each its content tokens' vectors, float32 (tokens, dim), rows of L2 norm 1."""
        return await self._ask(texts, kind, "token vectors")

    async def embed_passages(self, texts: list[str]) -> list[Embedding]:
        """What an index keeps of each of n texts."""
        return await self._ask(texts, "passage", "embeddings")

    async def answerability(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        """See rag.types.Answerability; for settings with an adapter."""
        assert self._answerability is not None
        encoded = await asyncio.to_thread(self._answerability.encode, pairs)
        tokens = sum(len(one) for one in encoded)
        return np.array(await self._take_turn(encoded, "passage", "answerability", tokens), dtype=np.float32)

    async def ready(self) -> None:
        """Answers while the replica lives."""

    async def _ask(self, texts: list[str], kind: TextKind, wanted: _Wanted) -> list[Any]:
        tokens = sum(await asyncio.to_thread(self._embedder.count_tokens, texts))
        return await self._take_turn(texts, kind, wanted, tokens)

    async def _take_turn(self, texts: list[Any], kind: TextKind, wanted: _Wanted, tokens: int) -> list[Any]:
        # serve.batch refuses an item larger than a batch; the model's own methods cut such a one into passes.
        request = _Request(texts, kind, wanted, min(tokens, self._settings.batch_tokens))
        results: list[Any] = await self._batch(request)
        return results

    @serve.batch(batch_size_fn=_batch_tokens)  # type: ignore[untyped-decorator]
    async def _batch(self, requests: list[_Request]) -> list[list[Any]]:
        note_batch("embed", sum(len(request.texts) for request in requests), _batch_tokens(requests))
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._encode, requests)

    def _encode(self, requests: list[_Request]) -> list[list[Any]]:
        """Those that want the same of texts of the same kind are encoded together."""
        results: list[list[Any]] = [[] for _ in requests]

        def asked(index: int) -> tuple[str, str]:
            return requests[index].kind, requests[index].wanted

        for _, alike in groupby(sorted(range(len(requests)), key=asked), key=asked):
            mine = list(alike)
            first = requests[mine[0]]
            texts = list(chain.from_iterable(requests[index].texts for index in mine))
            found = iter(self._encode_alike(texts, first.kind, first.wanted))
            for index in mine:
                results[index] = list(islice(found, len(requests[index].texts)))
        return results

    def _encode_alike(self, texts: list[Any], kind: TextKind, wanted: _Wanted) -> Iterable[Any]:
        if wanted == "answerability":
            assert self._answerability is not None
            return self._answerability.score(texts)
        if wanted == "embeddings":
            return self._embedder.embed_passages(texts)
        return self._embedder.encode(texts, kind) if wanted == "vectors" else self._embedder.encode_tokens(texts, kind)
