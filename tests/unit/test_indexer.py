from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from deployments.indexer import Indexer
from rag.config import load_settings


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
