"""Serve's fast path runs our code on a replica's main loop, which answers health checks too: nothing may block it.

The deployments' own classes with the real embedder and the embedded Milvus, in this process; the LLM is a fake.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from deployments.embedder import Embedder
from rag.analyze import analyze
from rag.answerability import AnswerabilityScorer
from rag.config import load_settings
from rag.embed import SentenceEmbedder
from rag.ground import ground_sentence
from rag.rerank import CrossEncoderScorer, MaxSimReranker
from rag.rewrite import rewrite_question
from rag.store import MilvusStore
from tests.local_graph import LocalGraph
from tests.loop_guard import free_loop

# What computes or waits for long, beside all that the guard knows by itself.
SLOW = (
    analyze,
    rewrite_question,
    ground_sentence,
    SentenceEmbedder.count_tokens,
    SentenceEmbedder.encode,
    SentenceEmbedder.encode_tokens,
    SentenceEmbedder.embed_passages,
    AnswerabilityScorer.encode,
    AnswerabilityScorer.score,
    CrossEncoderScorer.count_tokens,
    CrossEncoderScorer.score,
    MaxSimReranker._compare,
    MilvusStore.ensure_collection,
    MilvusStore.upsert,
    MilvusStore.delete,
    MilvusStore.stored_documents,
    MilvusStore.collections,
    MilvusStore.fingerprint,
)
PORT = "Which port does the service listen on?"


@pytest.fixture
async def graph(tmp_path: Path) -> AsyncIterator[LocalGraph]:
    settings = load_settings(profile="embedded", data_dir=tmp_path)
    graph = await LocalGraph.start(settings)
    yield graph
    await graph.aclose()


async def upload(client: httpx.AsyncClient) -> str:
    """A file, searchable when this returns; gives its document's id."""
    text = "The service listens on port 8000. Another port is chosen with the option --port."
    sent = await client.post("/documents", files=[("file", ("ports.md", text.encode(), "text/markdown"))])
    assert sent.status_code == 202, sent.text
    until = time.monotonic() + 60
    while (job := (await client.get(sent.headers["location"])).json())["state"] not in ("done", "failed"):
        assert time.monotonic() < until, job
        await asyncio.sleep(0.1)
    assert job["state"] == "done", job
    (one,) = (await client.get("/documents")).json()["documents"]
    return str(one["document_id"])


async def check_calls_at_once(embedder: Embedder) -> None:
    """What is asked of the embedder at the same time, of every kind, has its own results."""
    pairs = [(PORT, "It listens on port 8000."), (PORT, "The lamp burns."), ("Who sings?", "The thrush sings at dawn.")]
    together = await embedder.answerability(pairs)
    assert together[0] > together[1]
    *apart, vectors, tokens = await asyncio.gather(
        *(embedder.answerability([pair]) for pair in pairs),
        embedder.embed([PORT, "The lamp burns."], "passage"),
        embedder.embed_tokens([PORT], "query"),
    )
    np.testing.assert_allclose(np.concatenate(apart), together, atol=0.1)  # bfloat16, otherwise padded
    assert (vectors.shape, [one.shape[1] for one in tokens]) == ((2, 384), [384])


async def test_no_request_and_no_health_check_blocks_a_replica_s_loop(graph: LocalGraph) -> None:
    async with graph.client() as client:
        # The first request of a loop connects its Milvus client and imports what was left out at the start.
        first = await upload(client)
        assert (await client.post("/ask", json={"question": PORT})).status_code == 200
        assert (await client.delete(f"/documents/{first}")).status_code == 204
        with free_loop(*SLOW):
            document = await upload(client)
            asked = await client.post("/ask", json={"question": PORT, "explain": True})
            assert asked.json()["status"] == "answered", asked.text
            assert asked.json()["degraded"] == []
            talk = [{"role": "user", "content": PORT}, {"role": "assistant", "content": "8000."}]
            follow = {"question": "And how is another one chosen?", "conversation": talk, "stream": True}
            streamed = await client.post("/ask", json=follow)
            assert "event: done" in streamed.text
            assert (await client.post("/ask", json={"question": "서비스는 어느 포트에서 듣나요?"})).status_code == 200
            found = await client.post("/search", json={"query": "port", "filter": 'source like "%.md"'})
            assert len(found.json()["hits"]) == 1
            chat = {"model": "rag", "messages": [{"role": "user", "content": PORT}]}
            assert (await client.post("/v1/chat/completions", json=chat)).status_code == 200
            for path in ("/healthz", "/readyz", "/info", "/collections", f"/documents/{document}", "/v1/models"):
                assert (await client.get(path)).status_code == 200, path
            assert (await client.post("/collections", json={"name": "other"})).status_code == 201
            assert (await client.delete("/collections/other")).status_code == 204
            text = {"text": "The lamp burns.", "title": "Lamp", "source": "lamp", "metadata": {"year": 2026}}
            assert (await client.post("/documents", json=text)).status_code == 202
            assert (await client.delete(f"/documents/{document}")).status_code == 204
            for stage in (graph.orchestrator, graph.stages["retriever"], graph.stages["indexer"]):
                await stage.check_health()
            graph.orchestrator.reconfigure({"retrieval": {"top_k": 20}})
            await check_calls_at_once(graph.stages["embedder"])
