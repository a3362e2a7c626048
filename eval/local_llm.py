"""The settings' LLM on a vLLM engine of this process, as a step of the question flow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from eval.raw import engine_args, set_engine_environment
from rag.config import Settings
from rag.local_llm import EngineWriter
from rag.models import choose_dtype, load_chat_template, locate_model
from rag.types import Generate


@asynccontextmanager
async def open_llm(settings: Settings) -> AsyncIterator[Generate]:
    """The step `generate` (rag.types.Generate), with the weights, number format and engine settings of the service's.

    The engine ends with it.
    """
    set_engine_environment(settings)
    from vllm.v1.engine.async_llm import AsyncLLM

    located = locate_model(settings.generator.model, settings.cache_dir)
    tokenize = load_chat_template(located)
    engine = AsyncLLM.from_engine_args(engine_args(settings, located, choose_dtype(settings)))
    try:
        yield EngineWriter(engine, tokenize)
    finally:
        engine.shutdown()
