"""The deployments' handles as the question flow's callables."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing

import numpy as np
from ray.serve.handle import DeploymentHandle

from deployments.errors import iterate_stage, read_stage
from deployments.metrics import note_embeddings, note_generation
from deployments.traces import stage_tracer
from deployments.watch import Watch
from rag.analyze import terms
from rag.answer_cache import AnswerCache
from rag.cache import QueryEmbeddings
from rag.config import Settings
from rag.filters import Filter
from rag.models import load_prompt_counter, locate_answerability
from rag.pipeline import Steps
from rag.retrieve import SearchSteps
from rag.types import GeneratedText, Groups, Message, SearchResult, Span, TextKind, Usage, Vector


def generator_stage(model_id: str, settings: Settings) -> str:
    """What an LLM's deployment is called where stages are named: `generator`, the others with their name."""
    return "generator" if model_id == settings.generator.model_id else f"generator:{model_id}"


def build_steps(
    settings: Settings,
    watch: Callable[[], Watch],
    embedder: DeploymentHandle,
    retriever: DeploymentHandle,
    reranker: DeploymentHandle,
    generators: dict[str, DeploymentHandle],
) -> Steps:
    """The handles as the flow's callables; Ray's errors become ours on the way."""
    streaming = {name: generators[llm.model_id].options(stream=True) for name, llm in settings.llms.items()}
    for name in (name for llm in settings.engines.values() for name in llm.adapters):
        streaming[name] = streaming[name].options(multiplexed_model_id=name)
    # Late interaction has the query embedded.
    scoring = ("reranker", "embedder") if settings.reranker.kind == "maxsim" else ("reranker",)

    async def embed(texts: list[str], kind: TextKind) -> np.ndarray:
        return await read_stage("embed", lambda: embedder.embed.remote(texts, kind))

    async def dense_search(
        collection: str, vector: Vector, top_k: int, *, groups: Groups, where: Filter | None
    ) -> SearchResult:
        remote = retriever.dense_search.remote
        return await read_stage("dense", lambda: remote(collection, vector, top_k, groups=groups, where=where))

    async def lexical_search(
        collection: str, query: str, top_k: int, *, groups: Groups, where: Filter | None
    ) -> SearchResult:
        remote = retriever.lexical_search.remote
        return await read_stage("lexical", lambda: remote(collection, query, top_k, groups=groups, where=where))

    async def score(
        queries: list[str], texts: list[str], spans: list[list[Span]], token_vectors: list[bytes]
    ) -> list[np.ndarray]:
        async with AsyncExitStack() as needed:
            for stage in scoring:
                await needed.enter_async_context(watch().unless_down(stage, "rerank"))
            return await read_stage("rerank", lambda: reranker.score.remote(queries, texts, spans, token_vectors))

    async def answerability(pairs: list[tuple[str, str]]) -> np.ndarray:
        async with watch().unless_down("embedder", "rerank"):
            return await read_stage("rerank", lambda: embedder.answerability.remote(pairs))

    async def stored_token_vectors(collection: str, chunk_ids: list[str]) -> list[bytes]:
        return await read_stage("rerank", lambda: retriever.token_vectors.remote(collection, chunk_ids))

    async def generate(
        messages: list[Message], *, model: str, max_tokens: int, temperature: float
    ) -> AsyncIterator[GeneratedText]:
        remote = streaming[model].generate.remote
        stream = iterate_stage("generate", lambda: remote(messages, max_tokens=max_tokens, temperature=temperature))
        async with aclosing(_measured(model, stream)) as pieces:
            # Only the first piece can wait for a replica; once it came, a death ends the stream with an error.
            async with watch().unless_down(generator_stage(settings.llms[model].model_id, settings), "generate"):
                first = await anext(pieces)
            yield first
            async for piece in pieces:
                yield piece

    embed_once = QueryEmbeddings(embed, settings.cache.embeddings, note_embeddings)
    judge = answerability if locate_answerability(settings) else None
    search = SearchSteps(embed_once, dense_search, lexical_search, score, terms, stored_token_vectors, judge)
    answers = AnswerCache(settings.cache.answers) if settings.cache.answers else None
    return Steps(search, generate, load_prompt_counter(settings), answers, trace=stage_tracer(settings.trace))


async def _measured(model: str, pieces: AsyncGenerator[GeneratedText, None]) -> AsyncGenerator[GeneratedText, None]:
    """The same pieces; what was written of them, when they end or are closed, is counted."""
    began = time.perf_counter()
    first_s = last_s = 0.0
    usage = Usage()
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                last_s = time.perf_counter() - began
                first_s = first_s or last_s
                usage = piece.usage or usage
                yield piece
    finally:
        if first_s:
            note_generation(model, usage, first_s, last_s)
