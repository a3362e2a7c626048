"""The settings' LLM on a vLLM engine of this process, as a step of the question flow."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from eval.raw import engine_args
from rag.config import Settings
from rag.local_llm import EngineWriter
from rag.models import choose_dtype, load_chat_template, locate_model
from rag.types import Generate


@asynccontextmanager
async def open_llm(settings: Settings) -> AsyncIterator[Generate]:
    """The step `generate` (rag.types.Generate), with the weights, number format and engine settings of the service's.

    The engine ends with it.
    """
    # Read by vLLM when it is imported and when its engine starts; as deployments.generator sets them.
    for name, value in {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.generator.kv_cache_gib),
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    }.items():
        os.environ.setdefault(name, value)
    from vllm.v1.engine.async_llm import AsyncLLM

    located = locate_model(settings.generator.model, settings.cache_dir)
    tokenize = load_chat_template(located)
    engine = AsyncLLM.from_engine_args(engine_args(settings, located, choose_dtype(settings)))
    try:
        yield EngineWriter(engine, tokenize)
    finally:
        engine.shutdown()
