"""The question flow's models in this process, as steps: what the service has a deployment each for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, get_args

import numpy as np

from rag.answerability import AnswerabilityScorer
from rag.batching import Joined
from rag.config import Settings
from rag.embed import SentenceEmbedder
from rag.models import hide_progress, load_token_offsets, locate_answerability, locate_model
from rag.rerank import CrossEncoderScorer, MaxSimReranker, ScoreRequest
from rag.types import Answerability, Score, Span, TextKind

T = TypeVar("T")
_By = dict[TextKind, Joined[str, np.ndarray]]


class Models:
    """The settings' embedder, reranker and answerability model; one thread owns what blocks. Raises ModelError.

    What questions that are at work at the same time ask of a model goes through it together.
    """

    def __init__(self, settings: Settings) -> None:
        embedder = locate_model(settings.embedder.model, settings.cache_dir)
        hide_progress(embedder)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="models")
        self._embedder = SentenceEmbedder(settings.embedder, embedder)
        self._vectors = self._joined(self._embedder.encode)
        self._token_vectors = self._joined(self._embedder.encode_tokens)
        late = settings.reranker.kind == "maxsim"
        self.score: Score = self._late_interaction(settings) if late else self._cross_encoder(settings)
        adapter = locate_answerability(settings)
        self.answerability: Answerability | None = None
        if adapter is not None:
            located = locate_model(adapter.base, settings.cache_dir)
            self.answerability = self._judge(AnswerabilityScorer(settings.embedder, located, adapter.path))

    async def embed(self, texts: list[str], kind: TextKind) -> np.ndarray:
        """See rag.types.Embed."""
        return np.stack(await self._vectors[kind](texts))

    async def _embed_tokens(self, texts: list[str], kind: TextKind) -> list[np.ndarray]:
        return await self._token_vectors[kind](texts)

    def _late_interaction(self, settings: Settings) -> Score:
        offsets = load_token_offsets(settings.embedder, settings.cache_dir)
        kept = settings.reranker.cached_texts
        return MaxSimReranker(self._embed_tokens, offsets, self._embedder.dimension, kept).score

    def _cross_encoder(self, settings: Settings) -> Score:
        located = locate_model(settings.reranker_model, settings.cache_dir)
        scorer = CrossEncoderScorer(settings.reranker, located)
        joined = Joined[ScoreRequest, list[np.ndarray]](partial(self._run, scorer.score))

        async def score(
            queries: list[str],
            texts: list[str],
            spans: list[list[Span]],
            token_vectors: list[bytes],  # noqa: ARG001  # it reads the texts
        ) -> list[np.ndarray]:
            return (await joined([ScoreRequest(queries, texts, spans)]))[0]

        return score

    def _judge(self, scorer: AnswerabilityScorer) -> Answerability:
        async def work(pairs: list[tuple[str, str]]) -> list[float]:
            return list(await self._run(scorer.score, scorer.encode(pairs)))

        joined = Joined(work)

        async def answerability(pairs: list[tuple[str, str]]) -> np.ndarray:
            return np.array(await joined(pairs), dtype=np.float32)

        return answerability

    def _joined(self, encode: Callable[[list[str], TextKind], Any]) -> _By:
        async def work(kind: TextKind, texts: list[str]) -> list[np.ndarray]:
            return list(await self._run(encode, texts, kind))

        return {kind: Joined(partial(work, kind)) for kind in get_args(TextKind)}

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
