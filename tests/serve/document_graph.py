"""The real orchestrator, retriever and indexer over a Milvus Lite; the models are fakes."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from ray import cloudpickle, serve

import tests.fakes
from deployments.indexer import Indexer
from deployments.ingress import Orchestrator, create_api
from deployments.retriever import Retriever
from rag.config import Settings
from rag.types import Embedding, TextKind
from tests.fakes import HashEmbedder
from tests.serve.fake_graph import FakeGenerator, FakeReranker, answerability_by_words

EMBED_S = 0.5  # of each call: a job of many chunks takes long enough to be killed in its middle


class SlowEmbedder:
    """Bag-of-words vectors of the real embedder's size, so that a collection has the settings' fingerprint."""

    def __init__(self) -> None:
        self._embedder = HashEmbedder(384)

    async def embed(self, texts: list[str], kind: TextKind) -> np.ndarray:
        return await self._embedder.embed(texts, kind)

    async def answerability(self, pairs: list[tuple[str, str]]) -> np.ndarray:
        return answerability_by_words(pairs)

    async def embed_passages(self, texts: list[str]) -> list[Embedding]:
        await asyncio.sleep(EMBED_S)
        return self._embedder.embed_passages(texts)

    async def ready(self) -> None:
        return None


def build_document_app(settings: Settings) -> Any:
    """The graph of deployments.app with fakes for the models."""
    import tests.serve.document_graph as this
    import tests.serve.fake_graph as fake_graph

    for module in (this, fake_graph, tests.fakes):
        cloudpickle.register_pickle_by_value(module)  # workers do not have the tests on their path

    def stage(target: type, *arguments: Any) -> Any:
        deployment: Any = serve.deployment(
            target, ray_actor_options={"num_cpus": 0.01}, max_ongoing_requests=64, health_check_period_s=1
        )
        return deployment.bind(*arguments)

    ingress: Any = serve.deployment(
        serve.ingress(create_api(settings.serve))(Orchestrator),
        ray_actor_options={"num_cpus": 0.01},
        max_ongoing_requests=64,
    )
    embedder = stage(SlowEmbedder)
    return ingress.bind(
        settings,
        embedder,
        stage(Retriever, settings),
        stage(FakeReranker),
        {settings.generator.model_id: stage(FakeGenerator, *(settings.data_dir / name for name in ("log", "hold")))},
        stage(Indexer, settings, embedder),
    )
