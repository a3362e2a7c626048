from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.indexer import Indexer
from rag.config import load_settings
from rag.errors import StageError
from rag.types import Embedding


async def stay_healthy(indexer: Indexer, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        await indexer.check_health()
        await asyncio.sleep(0.02)


async def test_an_indexer_that_goes_begins_no_further_job(tmp_path: Path) -> None:
    indexer = Indexer.__new__(Indexer)
    handle: Any = None  # no job asks for it
    await indexer.__init__(load_settings(profile="embedded", data_dir=tmp_path), handle)  # type: ignore[misc]
    await indexer.check_health()
    indexer.__del__()
    with pytest.raises(RuntimeError, match="has ended"):
        await stay_healthy(indexer, 10.0)


def test_an_indexer_that_did_not_start_can_go() -> None:
    Indexer.__new__(Indexer).__del__()


class Silent:
    """A handle of a deployment without a replica: Serve keeps its calls."""

    @property
    def embed_passages(self) -> Silent:
        return self

    def remote(self, *_given: object) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()


async def test_a_batch_that_nobody_embeds_does_not_keep_its_job_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.indexer.EMBED_S", 0.1)
    indexer = Indexer.__new__(Indexer)
    handle: Any = Silent()
    await indexer.__init__(load_settings(profile="embedded", data_dir=tmp_path), handle)  # type: ignore[misc]
    with pytest.raises(StageError, match=r"embed: a batch was not embedded within 0\.1 s"):
        await asyncio.to_thread(indexer._embed, ["A text."])
    indexer.__del__()


class Counting:
    """A handle whose deployment gives zeros, and remembers how many texts each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    @property
    def embed_passages(self) -> Counting:
        return self

    async def remote(self, texts: list[str]) -> list[Embedding]:
        self.calls.append(len(texts))
        return [Embedding(np.zeros(384, dtype=np.float32))] * len(texts)


async def test_a_text_takes_no_more_of_a_batch_than_the_embedder_reads_of_it(tmp_path: Path) -> None:
    settings = load_settings(profile="embedded", data_dir=tmp_path, embedder={"batch_tokens": 512})
    counting = Counting()
    indexer = Indexer.__new__(Indexer)
    handle: Any = counting
    await indexer.__init__(settings, handle)  # type: ignore[misc]
    embeddings = await asyncio.to_thread(indexer._embed, ["서비스는 요청을 기다린다. " * 30] * 8)
    indexer.__del__()
    assert (len(embeddings), counting.calls) == (8, [2, 2, 2, 2])  # 256 tokens are read of each
