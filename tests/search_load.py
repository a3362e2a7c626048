"""Searches that go on beside a test."""

from __future__ import annotations

import asyncio
import threading

import numpy as np

from rag.errors import RagError
from rag.store import MilvusStore


def unit_vectors(count: int, dimension: int) -> np.ndarray:
    return np.full((count, dimension), dimension**-0.5, dtype=np.float32)


class Asking(threading.Thread):
    """Searches until it is stopped; `versions` are those that answered, in order, each once in a row."""

    def __init__(self, store: MilvusStore) -> None:
        super().__init__()
        self.versions: list[str] = []
        self.found: list[int] = []
        self.failures: list[RagError] = []
        self._store = store
        self._done = threading.Event()

    def run(self) -> None:
        asyncio.run(self._ask())

    async def _ask(self) -> None:
        while not self._done.is_set():
            try:
                result = await self._store.dense_search("docs", unit_vectors(1, 4)[0], 100, groups=None)
            except RagError as error:
                self.failures.append(error)
                continue
            self.found.append(len(result.hits))
            if self.versions[-1:] != [result.index_version]:
                self.versions.append(result.index_version)
        await self._store.aclose()

    def stop(self) -> None:
        self._done.set()
        self.join()
