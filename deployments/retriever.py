"""The store's searches as a deployment; with the embedded Milvus it also keeps that running."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ingest.fingerprint import index_fingerprint
from rag.analyze import analyze
from rag.config import Settings
from rag.connect import connect_store
from rag.embedded_store import EmbeddedServer
from rag.errors import StoreUnavailableError
from rag.filters import Filter
from rag.listing import index_versions
from rag.store import MilvusStore
from rag.types import Groups, IndexFingerprint, SearchResult, Vector

logger = logging.getLogger("ray.serve")
T = TypeVar("T")
Connect = Callable[[Settings, IndexFingerprint], tuple[MilvusStore, EmbeddedServer | None]]


class Retriever:
    """`dense_search` and `lexical_search` over any collection, see rag.store."""

    def __init__(self, settings: Settings, connect: Connect = connect_store) -> None:
        self._settings = settings
        self._connect = connect
        self._fingerprint = index_fingerprint(settings)
        self._reviving = asyncio.Lock()
        self._store, self._server = connect(settings, self._fingerprint)
        analyze("준비")  # loads the Korean model before the first question waits for it

    async def dense_search(
        self, collection: str, vector: Vector, top_k: int, *, groups: Groups, where: Filter | None
    ) -> SearchResult:
        """Hits by cosine similarity, best first."""
        return await self._reviving_once(
            lambda: self._store.dense_search(collection, vector, top_k, groups=groups, where=where)
        )

    async def lexical_search(
        self, collection: str, query: str, top_k: int, *, groups: Groups, where: Filter | None
    ) -> SearchResult:
        """Hits by BM25 over the analysed query, best first."""
        analyzed = await asyncio.to_thread(analyze, query)
        return await self._reviving_once(
            lambda: self._store.lexical_search(collection, analyzed, top_k, groups=groups, where=where)
        )

    async def token_vectors(self, collection: str, chunk_ids: list[str]) -> list[bytes]:
        """What the index keeps of each chunk's tokens, empty where it keeps none."""
        return await self._reviving_once(lambda: self._store.token_vectors(collection, chunk_ids))

    async def index_versions(self) -> dict[str, str]:
        """The index version of each collection that can be searched."""
        found = await asyncio.to_thread(index_versions, self._store)
        return {name: version for name, version in found.items() if version is not None}

    async def ready(self) -> None:
        """Raises StoreUnavailableError when Milvus does not answer."""
        await self._store.ping()

    async def check_health(self) -> None:
        """Starts the embedded Milvus again when it is gone; a new replica would not help a store that is down."""
        try:
            await self._reviving_once(lambda: self._store.ping())
        except StoreUnavailableError as error:
            logger.warning("the store is down: %s", error)

    async def _reviving_once(self, call: Callable[[], Awaitable[T]]) -> T:
        """The result of a call of `self._store`; when the embedded server is down, after starting it again."""
        try:
            return await call()
        except StoreUnavailableError:
            if self._server is None:
                raise
            async with self._reviving:
                await self._reconnect(self._server)
            return await call()

    async def _reconnect(self, server: EmbeddedServer) -> None:
        store, self._server = await asyncio.to_thread(self._connect, self._settings, self._fingerprint)
        server.release()
        if self._server is not None and self._server.uri != server.uri:
            store, self._store = self._store, store
        await store.aclose()
