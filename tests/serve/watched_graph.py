"""The real orchestrator, embedder, retriever and indexer over a Milvus Lite; the models are fakes, one LLM strikes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray import cloudpickle, serve

import tests.fakes
from deployments.embedder import Embedder
from deployments.indexer import Indexer
from deployments.ingress import Orchestrator, create_api
from deployments.options import JSON_LOGS
from deployments.retriever import Retriever
from rag.config import Settings
from rag.errors import StageError
from rag.types import GeneratedText, Message
from tests.fakes import HashEmbedder
from tests.serve.fake_graph import FakeGenerator, FakeReranker

STRIKER = "striker"


class WordEmbedder(Embedder):
    """The deployment itself, with its batches; its model are bag-of-words vectors of the real one's size."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.embedder
        self._embedder: Any = WordModel(384)
        self._answerability: Any = WordJudge()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._batch.set_max_batch_size(self._settings.batch_tokens)
        self._batch.set_batch_wait_timeout_s(self._settings.batch_wait_s)


class WordModel(HashEmbedder):
    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def encode_tokens(self, texts: Sequence[str], kind: Any) -> list[np.ndarray]:
        return [self.encode(text.split(), kind) for text in texts]


class WordJudge:
    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[list[str]]:
        """What stands for a pair's tokens: the words that question and passage share."""
        return [sorted({*question.split()} & {*passage.split()}) for question, passage in pairs]

    def score(self, encoded: Sequence[Sequence[str]]) -> np.ndarray:
        return np.array([4.0 if shared else -4.0 for shared in encoded], dtype=np.float32)


class Striker(FakeGenerator):
    """An LLM that answers nobody but the warm-up question."""

    async def generate(
        self, messages: list[Message], *, max_tokens: int, temperature: float
    ) -> AsyncIterator[GeneratedText]:
        if not self._is_first:
            raise StageError("generate", "on strike")
        async for piece in super().generate(messages, max_tokens=max_tokens, temperature=temperature):
            yield piece


def build_watched_app(settings: Settings) -> Any:
    """The graph of deployments.app with fakes for the models."""
    import tests.serve.fake_graph as fake_graph
    import tests.serve.watched_graph as this

    for module in (this, fake_graph, tests.fakes):
        cloudpickle.register_pickle_by_value(module)  # workers do not have the tests on their path

    def stage(target: type, *arguments: Any, name: str | None = None) -> Any:
        deployment: Any = serve.deployment(
            target,
            name=name or target.__name__,
            ray_actor_options={"num_cpus": 0.01},
            max_ongoing_requests=64,
            health_check_period_s=1,
            logging_config=JSON_LOGS,
        )
        return deployment.bind(*arguments)

    ingress: Any = serve.deployment(
        serve.ingress(create_api(settings.serve))(Orchestrator),
        ray_actor_options={"num_cpus": 0.01},
        max_ongoing_requests=64,
        health_check_period_s=1,
        logging_config=JSON_LOGS,
    )
    embedder = stage(WordEmbedder, settings, name="Embedder")
    logs = [settings.data_dir / name for name in ("generator.log", "hold")]
    llms = {name: Striker if name == STRIKER else FakeGenerator for name in settings.engines}
    return ingress.bind(
        settings,
        embedder,
        stage(Retriever, settings),
        stage(FakeReranker),
        {name: stage(llm, *logs, name=f"Generator-{name}") for name, llm in llms.items()},
        stage(Indexer, settings, embedder),
    )
