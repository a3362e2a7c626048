"""The settings' LLM on a vLLM engine of this process, as a step of the question flow."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import count
from typing import Any

from eval.raw import engine_args
from rag.config import Settings
from rag.models import choose_dtype, load_chat_template, locate_model
from rag.types import Generate, GeneratedText, Message, Usage


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
        yield _Writer(engine, tokenize)
    finally:
        engine.shutdown()


class _Writer:
    """See rag.types.Generate."""

    def __init__(self, engine: Any, tokenize: Callable[[list[Message]], list[int]]) -> None:
        self._engine, self._tokenize, self._numbers = engine, tokenize, count()

    async def __call__(
        self,
        messages: list[Message],
        *,
        model: str | None,  # noqa: ARG002  # there is one
        max_tokens: int,
        temperature: float,
    ) -> AsyncGenerator[GeneratedText, None]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        tokens = self._tokenize(messages)
        parameters = SamplingParams(temperature=temperature, max_tokens=max_tokens, output_kind=RequestOutputKind.DELTA)
        written = 0
        outputs = self._engine.generate({"prompt_token_ids": tokens}, parameters, request_id=str(next(self._numbers)))
        async with aclosing(outputs) as pieces:
            async for output in pieces:
                (piece,) = output.outputs
                written += len(piece.token_ids)
                yield GeneratedText(piece.text, piece.finish_reason, Usage(len(tokens), written))
