"""A vLLM engine of this process as a step of the question flow."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from itertools import count
from typing import Any

from rag.types import GeneratedText, Message, Usage


class EngineWriter:
    """The step `generate` (rag.types.Generate) over an AsyncLLM; `tokenize` is the LLM's chat template.

    Closing its iterator ends the generation in the engine. Raises what vLLM raises.
    """

    def __init__(self, engine: Any, tokenize: Callable[[list[Message]], list[int]]) -> None:
        self._engine, self._tokenize, self._numbers = engine, tokenize, count()

    async def __call__(
        self,
        messages: list[Message],
        *,
        model: str,  # noqa: ARG002  # there is one
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
