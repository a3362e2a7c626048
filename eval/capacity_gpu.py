"""Service times of the gpu profile's models by arithmetic, for as long as nobody has measured them on the GPU meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rag.check_profile import GIB, GPU_GIB, kv_bytes, weight_bytes


class Gpu(NamedTuple):
    """Of its maker's data sheet: memory bandwidth, and dense products of 16-bit numbers."""

    bytes_per_s: float
    flop_per_s: float


GPUS = {
    "L4": Gpu(300e9, 121e12),
    "A10G": Gpu(600e9, 70e12),
    "L40S": Gpu(864e9, 362e12),
    "A100-80G": Gpu(2039e9, 312e12),
    "H100": Gpu(3350e9, 989e12),
    "H200": Gpu(4800e9, 989e12),
}
# What of the data sheet's figures a model reaches: assumptions.
BANDWIDTH_SHARE, FLOP_SHARE = 0.6, 0.4

# config.json of Qwen/Qwen3-8B, as far as its memory and work hang on it.
QWEN3_8B: dict[str, Any] = {
    **{"hidden_size": 4096, "num_hidden_layers": 36, "vocab_size": 151_936, "intermediate_size": 12_288},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False},
    "torch_dtype": "bfloat16",
}
QWEN3_8B_PARAMETERS = 6_946_000_000  # Qwen's model card: 6.95 B outside the embeddings
BGE_M3_PARAMETERS = 303_000_000  # XLM-RoBERTa large without its tables: 24 layers of 12 * 1024**2; the reranker's alike


def gpu_named(name: str) -> Gpu:
    """Raises ValueError for one that is not known."""
    if name not in GPUS:
        raise ValueError(f"the GPU {name!r} is not known: choose one of {', '.join(GPUS)}")
    return GPUS[name]


def read_s(parameters: float, tokens: int, gpu: Gpu) -> float:
    """A forward pass over so many tokens: 2 operations a parameter and token (Kaplan et al. 2020, table 1, without the
    attention over the context), which is what bounds many tokens at once."""
    return 2 * parameters * tokens / (gpu.flop_per_s * FLOP_SHARE)


def pass_s(parameters: float, gpu: Gpu) -> float:
    """The least that a forward pass takes, however few its tokens: 16-bit weights read once."""
    return 2 * parameters / (gpu.bytes_per_s * BANDWIDTH_SHARE)


def decode_line(config: Mapping[str, Any], context_tokens: int, gpu: Gpu) -> tuple[float, float]:
    """Seconds of one decoding step of b sequences, as (a step's own, each sequence's): weights are read once, keys and
    values for each (Pope et al., Efficiently Scaling Transformer Inference, 2022, section 2.1)."""
    moved = gpu.bytes_per_s * BANDWIDTH_SHARE
    return weight_bytes(config, "auto") / moved, kv_bytes(config, "auto") * context_tokens / moved


def sequences(config: Mapping[str, Any], context_tokens: int, gpu: str, memory_fraction: float, most: int) -> int:
    """How many fit at once: rag.check_profile's arithmetic with the length that questions have. Raises ValueError when
    not one does."""
    room = GPU_GIB[gpu] * memory_fraction * GIB - weight_bytes(config, "auto")
    fitting = int(room // (kv_bytes(config, "auto") * context_tokens))
    if fitting < 1:
        raise ValueError(f"the LLM's weights leave no room for a sequence in {memory_fraction:g} of one {gpu}")
    return min(fitting, most)
