"""The LLM as a deployment: Ray Serve LLM's server with a streaming `generate` of our own types."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from ray.serve.llm import LLMConfig, LLMServer, build_llm_deployment
from vllm.exceptions import VLLMError

from rag.config import Settings
from rag.errors import ModelError, StageError
from rag.models import FormatCheck, choose_dtype, locate_model, read_format_checks
from rag.step_settings import GeneratorSettings, StageServing
from rag.types import GeneratedText, Message, Usage


class Generator(LLMServer):  # type: ignore[misc]  # ray ships no types for it
    """One vLLM engine. Ready once it reproduced the model's float32 continuations; healthy while the engine answers."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, llm_config: LLMConfig, *, checks: list[FormatCheck], health_timeout_s: float
    ) -> None:
        if llm_config.model_loading_config.model_source.startswith("/"):
            # Nothing to fetch; the task that would look for it imports vLLM first, for ten seconds.
            llm_config.get_or_create_callback().ctx.run_init_node = False
        await super().__init__(llm_config)
        self._health_timeout_s = health_timeout_s
        await self._check_number_format(checks)
        # The first request imports vLLM's protocol for seconds, on the event loop: better before there is any other.
        async for _ in self.generate([Message("user", "Hello")], max_tokens=1, temperature=0.0):
            continue

    async def _start_engine(self) -> None:
        """As Ray's own, less the usage report: that starts an actor which stays, and makes this one wait for it."""
        await self.engine.start()

    async def generate(
        self, messages: list[Message], *, max_tokens: int, temperature: float
    ) -> AsyncIterator[GeneratedText]:
        """Pieces of text as they are written, each with the `usage` so far; the last carries `finish_reason`.

        Closing the iterator, or cancelling its caller, aborts the request in the engine.
        """
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request = ChatCompletionRequest(
            model=self._llm_config.model_id,
            messages=[{"role": message.role, "content": message.content} for message in messages],
            max_completion_tokens=max_tokens,
            temperature=temperature,
            stream=True,
            # With every piece, since whoever has enough closes the stream before its end.
            stream_options={"include_usage": True, "continuous_usage_stats": True},
            # A reasoning model's thoughts would take the answer's tokens; templates without this switch ignore it.
            chat_template_kwargs={"enable_thinking": False},
        )
        finish_reason: str | None = None
        try:
            async with aclosing(self.engine.chat(request)) as events:
                async for event in events:
                    chunk = _event_json(event)
                    if chunk is None:
                        continue
                    text = ""
                    for choice in chunk["choices"]:
                        finish_reason = choice.get("finish_reason") or finish_reason
                        text += choice["delta"].get("content") or ""
                    usage = chunk["usage"]
                    yield GeneratedText(
                        text, finish_reason, Usage(usage["prompt_tokens"], usage.get("completion_tokens") or 0)
                    )
        except VLLMError as error:
            # vLLM's own classes stay here: a caller would import vLLM, for seconds, to unpickle one.
            raise StageError("generate", f"{type(error).__name__}: {error}") from None

    async def ready(self) -> None:
        """Raises when the engine was seen to die; at once, however busy it is."""
        await super().check_health()

    async def check_health(self) -> None:
        """Asks the engine's own process, not only whether it was seen to die. Raises when it does not answer."""
        await super().check_health()
        # vLLM answers this from the engine's loop, between two steps; a hung engine never does.
        await asyncio.wait_for(self.is_sleeping(), self._health_timeout_s)

    async def _check_number_format(self, checks: list[FormatCheck]) -> None:
        """Raises ModelError when the engine continues a prompt otherwise than float32 did."""
        from vllm.entrypoints.openai.completion.protocol import CompletionRequest

        for check in checks:
            if not check.token_ids:
                continue
            request = CompletionRequest(
                model=self._llm_config.model_id,
                prompt=list(check.prompt_token_ids),
                max_tokens=len(check.token_ids),
                temperature=0.0,
                return_token_ids=True,
            )
            async for response in self.engine.completions(request):
                got = tuple(response.choices[0].token_ids)
                if got != check.token_ids:
                    dtype = self._llm_config.engine_kwargs.get("dtype")
                    raise ModelError(
                        f"the LLM computed in {dtype} writes tokens {list(got)} where float32 writes "
                        f"{list(check.token_ids)}; set RAG_GENERATOR__DTYPE=float32"
                    )


def bind_generator(settings: Settings, options: dict[str, Any]) -> Any:
    """The Generator as an application to bind into the graph; `options` are Serve's deployment options."""
    generator, serving = settings.generator, settings.serve.generator
    located = locate_model(generator.model, settings.cache_dir)
    return build_llm_deployment(
        _llm_config(generator, serving, located, choose_dtype(settings)),
        deployment_cls=Generator,
        name_prefix="",
        bind_kwargs={
            "checks": read_format_checks(located) if generator.accelerator == "cpu" else [],
            "health_timeout_s": options["health_check_timeout_s"],
        },
        override_serve_options={**options, "name": "Generator", "autoscaling_config": None},
    )


def _llm_config(generator: GeneratorSettings, serving: StageServing, located: str, dtype: str) -> LLMConfig:
    on_cpu = generator.accelerator == "cpu"
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    if on_cpu:
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(generator.kv_cache_gib)
        # Else vLLM leaves one core to others: of two that is half its speed, and the others wait for it anyway.
        environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    else:
        # What the engine asks Ray for has to be what its bundle holds, or it waits for ever.
        environment["VLLM_RAY_PER_WORKER_GPUS"] = str(serving.num_gpus)
    if located.startswith("/"):
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return LLMConfig(
        model_loading_config={"model_id": generator.model_id, "model_source": located},
        accelerator_type=generator.accelerator_type,
        accelerator_config={"kind": generator.accelerator},
        placement_group_config=None if on_cpu else {"bundle_per_worker": {"GPU": serving.num_gpus}},
        engine_kwargs={
            "dtype": dtype,
            "max_model_len": generator.max_model_len,
            "max_num_seqs": generator.max_num_seqs,
            "gpu_memory_utilization": generator.memory_fraction,
            "tensor_parallel_size": generator.tensor_parallel,
            "enforce_eager": generator.enforce_eager,
            "enable_prefix_caching": True,
        },
        runtime_env={"env_vars": environment},
        deployment_config={"num_replicas": serving.replicas, "ray_actor_options": {"num_cpus": serving.num_cpus}},
    )


def _event_json(event: Any) -> dict[str, Any] | None:
    """One server-sent event of the engine as JSON; None for the end mark. Raises for an error response."""
    if not isinstance(event, str):
        raise StageError("generate", event.error.message)
    payload = event.removeprefix("data: ").strip()
    if payload == "[DONE]":
        return None
    chunk: dict[str, Any] = json.loads(payload)
    if "error" in chunk:
        raise StageError("generate", chunk["error"].get("message", "the engine failed"))
    return chunk
