"""The real orchestrator in one process, without Ray and models: every stage's handle is a fake."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from deployments.ingress import Orchestrator
from rag.config import Settings
from tests.pipeline_fakes import make_settings

MODEL = "llm"


class FakeHandle:
    """A stage's handle: `answers` by the method's name, an error is raised; whatever has none waits for ever.

    `waiting` and `cancelled` are the names of the calls that do, and that were taken back.
    """

    def __init__(self, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"ready": None, **answers}
        self.waiting: list[str] = []
        self.cancelled: list[str] = []

    def options(self, **_: Any) -> FakeHandle:
        return self

    def __getattr__(self, name: str) -> Any:
        async def remote(*_: Any, **__: Any) -> Any:
            if name in self.answers:
                answer = self.answers[name]
                if isinstance(answer, Exception):
                    raise answer
                return answer
            self.waiting.append(name)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise
            finally:
                self.waiting.remove(name)

        return SimpleNamespace(remote=remote)


def settings_in(folder: Path, **overrides: Any) -> Settings:
    """Settings whose data directory and LLM's tokenizer are in the folder."""
    (folder / "config.json").write_text("{}")
    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    settings = make_settings(generator={"model": str(folder), "model_id": MODEL}, **overrides)
    return settings.model_copy(update={"data_dir": folder})


@contextmanager
def orchestrator_over(settings: Settings, **handles: FakeHandle) -> Iterator[Orchestrator]:
    """The orchestrator; stages without a handle given answer that they are ready, and nothing else."""
    stages: dict[str, Any] = {name: FakeHandle() for name in ("embedder", "retriever", "reranker", "indexer")}
    generators: Any = {MODEL: FakeHandle()}
    logger = logging.getLogger("rag")
    parent = logger.parent
    try:
        yield Orchestrator(settings, generators=generators, **stages | handles)
    finally:
        logger.parent = parent
