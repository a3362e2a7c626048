"""The deployments' own classes in one process, without Ray: handles that call them where they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.context import _set_internal_replica_context
from ray.serve.schema import ReplicaRank

from deployments.embedder import Embedder
from deployments.indexer import Indexer
from deployments.ingress import Orchestrator, create_api
from deployments.reranker import LateInteraction
from deployments.retriever import Retriever
from rag.config import Settings
from rag.types import GeneratedText, Message, Usage


class Stream:
    """What a streaming handle's call gives."""

    def __init__(self, pieces: AsyncGenerator[Any, None]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._pieces

    def cancel(self) -> None:
        """Its generator ends with the loop."""


class LocalHandle:
    """`handle.method.remote(...)` is the method's own coroutine."""

    def __init__(self, stage: Any, *, stream: bool = False) -> None:
        self._stage, self._stream = stage, stream

    def options(self, *, stream: bool = False, **_: Any) -> LocalHandle:
        return LocalHandle(self._stage, stream=stream)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._stage, name)
        return SimpleNamespace(remote=(lambda *a, **k: Stream(method(*a, **k))) if self._stream else method)


class Reader:
    """An LLM that repeats the first sentence of the first passage."""

    async def generate(
        self, messages: list[Message], *, max_tokens: int, temperature: float
    ) -> AsyncGenerator[GeneratedText, None]:
        yield GeneratedText(messages[-1].content.split("\n")[1].split(". ")[0] + ".")
        yield GeneratedText("", "stop", Usage(1, max_tokens))

    async def ready(self) -> None:
        return None


class LocalGraph:
    """Every stage but the LLM as it is deployed; to be made within the loop that is to serve them."""

    def __init__(self, settings: Settings, stages: dict[str, Any], orchestrator: Any, api: Any) -> None:
        self.settings, self.stages, self.orchestrator, self._api = settings, stages, orchestrator, api

    @classmethod
    async def start(cls, settings: Settings) -> LocalGraph:
        embedder = Embedder(settings)
        indexer = object.__new__(Indexer)
        await indexer.__init__(settings, LocalHandle(embedder))  # type: ignore[misc]  # as Serve does
        stages: dict[str, Any] = {
            "embedder": embedder,
            "retriever": Retriever(settings),
            "reranker": LateInteraction(settings, LocalHandle(embedder)),  # type: ignore[arg-type]
            "indexer": indexer,
        }
        handles: dict[str, Any] = {name: LocalHandle(stage) for name, stage in stages.items()}
        reader: Any = LocalHandle(Reader())
        api = create_api(settings.serve)
        serve.ingress(api)(Orchestrator)  # has the routes find their replica
        orchestrator = Orchestrator(settings, generators={settings.generator.model_id: reader}, **handles)
        # Serve's batching and the routes look there for what they belong to.
        _set_internal_replica_context(
            replica_id=ReplicaID("local", DeploymentID("Orchestrator", "rag")),
            servable_object=orchestrator,
            _deployment_config=DeploymentConfig(max_ongoing_requests=100),
            rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
            world_size=1,
        )
        return cls(settings, stages, orchestrator, api)

    async def aclose(self) -> None:
        """Ends the job that is being worked at first: its thread needs this loop and the data directory."""
        indexer, retriever = self.stages["indexer"], self.stages["retriever"]
        indexer.__del__()
        await asyncio.to_thread(indexer._thread.join)
        await retriever._store.aclose()
        retriever._server.release()

    def client(self) -> httpx.AsyncClient:
        """Over ASGI, without a socket."""
        return httpx.AsyncClient(transport=httpx.ASGITransport(self._api), base_url="http://service", timeout=60)
