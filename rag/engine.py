"""How a vLLM engine is started, the same for the service, a batch, the evaluations and the benchmarks beside them."""

from __future__ import annotations

from typing import Any

from rag.step_settings import GeneratorSettings

# Tokens of a block of vLLM's key-value cache on a CPU, which has only whole blocks in common with other questions. With
# vLLM's own 128 that is nothing: what every prompt begins with (rag.prompt.SYSTEM in SmolLM2's template) has 67.
CPU_BLOCK_TOKENS = 64


def engine_kwargs(generator: GeneratorSettings, dtype: str) -> dict[str, Any]:
    """vLLM's arguments of an engine, its model aside."""
    return {
        "dtype": dtype,
        "max_model_len": generator.max_model_len,
        "max_num_seqs": generator.max_num_seqs,
        "gpu_memory_utilization": generator.memory_fraction,
        "tensor_parallel_size": generator.tensor_parallel,
        "enforce_eager": generator.enforce_eager,
        "enable_prefix_caching": True,
        **({"block_size": CPU_BLOCK_TOKENS} if generator.accelerator == "cpu" else {}),
    }


def engine_environment(generator: GeneratorSettings) -> dict[str, str]:
    """What vLLM reads from the environment: when it is imported, and when an engine starts."""
    environment = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    if generator.accelerator == "cpu":
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(generator.kv_cache_gib)
        # Else vLLM leaves one core to others: of two that is half its speed, and the others wait for it anyway.
        environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    if generator.model.startswith(("package:", "/", ".", "~")):
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return environment
