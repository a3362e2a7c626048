"""Ray Serve LLM's server as this service starts it. Only the LLM's replica imports this: vLLM takes ten seconds."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, get_args

from ray import serve
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.core.protocol import RawRequestInfo
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig, LLMServer
from vllm.config.lora import MaxLoRARanks
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.exceptions import VLLMError
from vllm.utils.ompmultiprocessing import OMPProcessManager

from deployments.generator import replica_environment
from deployments.traces import trace_headers, traces_url
from rag.config import Settings
from rag.engine import engine_kwargs
from rag.errors import ModelError, StageError
from rag.models import FormatCheck, adapter_rank, choose_dtype
from rag.step_settings import GeneratorSettings
from rag.types import GeneratedText, Message, Usage


class TextServer(LLMServer):  # type: ignore[misc]  # ray ships no types for it
    """One vLLM engine that speaks in our own types."""

    async def _start_engine(self) -> None:
        """As Ray's own, less the usage report: that starts an actor which stays, and makes this one wait for it."""
        await self.engine.start()

    async def write(
        self, messages: list[Message], *, max_tokens: int, temperature: float
    ) -> AsyncGenerator[GeneratedText, None]:
        """See Generator.generate. The call's multiplexed model id, where it has one, is the adapter that writes."""
        await self._maybe_resolve_lora_from_multiplex()
        request = ChatCompletionRequest(
            model=serve.get_multiplexed_model_id() or self._llm_config.model_id,
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
            headers = trace_headers()
            traced = RawRequestInfo(headers=headers) if headers else None
            async with aclosing(self.engine.chat(request, traced)) as events:
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

    async def check_number_format(self, checks: list[FormatCheck]) -> None:
        """Raises ModelError when the engine continues a prompt otherwise than float32 did."""
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


class OneProcessEngine(VLLMEngine):  # type: ignore[misc]  # ray ships no types for it
    """On one CPU node: the model runs in the engine's own process, not in another beside it.

    vLLM refuses that on a CPU since OpenMP's settings have to stand before a process begins: here they do. It saves
    800 MB and the ten seconds in which one more process would import vLLM.
    """

    def _start_async_llm_engine(self, engine_args: Any, engine_config: Any, placement_group: Any) -> Any:
        engine_config.parallel_config.distributed_executor_backend = "uni"
        with OMPProcessManager(engine_config).configure_omp_envs(rank=0, local_rank=0):
            return super()._start_async_llm_engine(engine_args, engine_config, placement_group)


class AdapterFolders:
    """In place of Ray Serve LLM's loader of adapters, which fetches them from a cloud's store: they are here."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders = folders

    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> DiskMultiplexConfig:  # noqa: ARG002
        """What Ray calls it for."""
        number = list(self._folders).index(lora_model_id) + 1
        return DiskMultiplexConfig(
            model_id=lora_model_id,
            max_total_tokens=None,
            local_path=str(self._folders[lora_model_id]),
            lora_assigned_int_id=number,
        )


async def start_server(settings: Settings, located: str) -> TextServer:
    """The engine of these settings over a located model, started."""
    config = llm_config(settings, located, choose_dtype(settings))
    if located.startswith("/"):
        # Nothing to fetch; the task that would look for it imports vLLM first, for ten seconds.
        config.get_or_create_callback().ctx.run_init_node = False
    adapters = {name: folder.expanduser() for name, folder in settings.generator.adapters.items()}
    alone = settings.generator.accelerator == "cpu" and settings.generator.tensor_parallel == 1
    server: TextServer = TextServer.sync_init(
        config,
        engine_cls=OneProcessEngine if alone else None,
        model_downloader=lambda **_: AdapterFolders(adapters),
    )
    await server.start()
    return server


def llm_config(settings: Settings, located: str, dtype: str) -> LLMConfig:
    """Ray Serve LLM's configuration of these settings' engine. Raises ModelError for an adapter that is none."""
    generator, serving = settings.generator, settings.serve.generator
    traces = {"otlp_traces_endpoint": traces_url(settings.trace)}
    return LLMConfig(
        model_loading_config={"model_id": generator.model_id, "model_source": located},
        accelerator_type=generator.accelerator_type,
        accelerator_config={"kind": generator.accelerator},
        placement_group_config=(
            None if generator.accelerator == "cpu" else {"bundle_per_worker": {"GPU": serving.num_gpus}}
        ),
        engine_kwargs={**engine_kwargs(generator, dtype), **_adapter_arguments(generator), **traces},
        lora_config={"max_num_adapters_per_replica": len(generator.adapters)} if generator.adapters else None,
        runtime_env={"env_vars": replica_environment(generator, serving)},
        deployment_config={"ray_actor_options": {"num_cpus": serving.num_cpus}},
    )


def _adapter_arguments(generator: GeneratorSettings) -> dict[str, Any]:
    if not generator.adapters:
        return {}
    rank = max(adapter_rank(folder) for folder in generator.adapters.values())
    fitting = [one for one in get_args(MaxLoRARanks) if one >= rank]
    if not fitting:
        raise ModelError(f"an adapter of {generator.model_id} has the rank {rank}; vLLM takes 512 at most")
    return {"enable_lora": True, "max_loras": len(generator.adapters), "max_lora_rank": fitting[0]}


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
