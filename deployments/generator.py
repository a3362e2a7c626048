"""The LLM as a deployment: Ray Serve LLM's server behind a streaming `generate` of our own types.

vLLM takes ten seconds to import, so only the replica does (deployments.llm_server): whoever builds the graph does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from deployments.options import actor_options
from rag.config import Settings
from rag.engine import engine_environment
from rag.imports import without_collection
from rag.models import locate_model, read_format_checks
from rag.serve_settings import GeneratorServing, StageServing
from rag.step_settings import GeneratorSettings
from rag.types import GeneratedText, Message


class Generator:
    """One vLLM engine. Ready once it reproduced the model's float32 continuations; healthy while the engine answers."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        self._health_timeout_s = settings.serve.generator.health_timeout_s
        located = locate_model(settings.generator.model, settings.cache_dir)
        # After the model was found: what is wrong with its name is said before vLLM is imported.
        with without_collection():
            from deployments.llm_server import start_server

        self._server = await start_server(settings, located)
        if settings.generator.accelerator == "cpu":
            await self._server.check_number_format(read_format_checks(located))
        # The first request keeps the event loop busy for seconds: better before there is any other.
        async for _ in self.generate([Message("user", "Hello")], max_tokens=1, temperature=0.0):
            continue

    async def __del__(self) -> None:  # Serve awaits it when the replica stops
        server = getattr(self, "_server", None)
        if server is not None:
            await server.__del__()

    async def generate(
        self, messages: list[Message], *, max_tokens: int, temperature: float
    ) -> AsyncIterator[GeneratedText]:
        """Pieces of text as they are written, each with the `usage` so far; the last carries `finish_reason`.

        Closing the iterator, or cancelling its caller, aborts the request in the engine. Raises StageError.
        """
        async with aclosing(self._server.write(messages, max_tokens=max_tokens, temperature=temperature)) as pieces:
            async for piece in pieces:
                yield piece

    async def ready(self) -> None:
        """Raises when the engine was seen to die; at once, however busy it is."""
        await self._server.check_health()

    async def check_health(self) -> None:
        """Asks the engine's own process, not only whether it was seen to die. Raises when it does not answer."""
        await self._server.check_health()
        # vLLM answers this from the engine's loop, between two steps; a hung engine never does.
        await asyncio.wait_for(self._server.is_sleeping(), self._health_timeout_s)


def generator_placement(generator: GeneratorSettings, serving: GeneratorServing) -> dict[str, Any]:
    """Serve's options for the Generator's place: its environment, and the bundles that Ray Serve LLM would ask for."""
    workers = [_worker_bundle(generator, serving) for _ in range(generator.tensor_parallel)]
    # The replica shares the first worker's bundle; that one's GPU is the worker's.
    actor = actor_options(serving.model_copy(update={"num_gpus": 0.0}), replica_environment(generator, serving))
    memory = {"memory": actor["memory"]} if "memory" in actor else {}
    shared = {"CPU": workers[0].get("CPU", 0) + serving.num_cpus, **memory, **actor.get("resources", {})}
    workers[0] |= shared
    return {
        "placement_group_bundles": workers,
        "placement_group_strategy": serving.placement,
        "ray_actor_options": actor,
    }


def replica_environment(generator: GeneratorSettings, serving: StageServing) -> dict[str, str]:
    """The engine's environment in a replica."""
    environment = engine_environment(generator)
    if generator.accelerator == "gpu":
        # What the engine asks Ray for has to be what its bundle holds, or it waits for ever.
        environment["VLLM_RAY_PER_WORKER_GPUS"] = str(serving.num_gpus)
    return environment


def _worker_bundle(generator: GeneratorSettings, serving: StageServing) -> dict[str, float]:
    bundle: dict[str, float] = {"CPU": 1} if generator.accelerator == "cpu" else {"GPU": serving.num_gpus}
    if generator.accelerator_type:
        bundle[f"accelerator_type:{generator.accelerator_type}"] = 0.001
    return bundle
