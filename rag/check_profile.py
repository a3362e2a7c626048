"""A profile's arithmetic, for `rag doctor`: what its numbers need of GPUs, and which of them do not fit each other."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rag.config import Settings
from rag.findings import Finding
from rag.serve_settings import StageServing, longest_calls_s, scaling_target
from rag.step_settings import GeneratorSettings

GIB = 2**30
# Of one GPU, by Ray's name of it, as its driver reports it.
GPU_GIB = {
    **{"T4": 15.0, "L4": 22.5, "A10G": 22.5, "L40S": 45.0, "A100": 40.0, "A100-40G": 40.0, "A100-80G": 80.0},
    **{"H100": 79.6, "H200": 140.4},
}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Config = Mapping[str, Any]


def check_profile(settings: Settings, configs: Mapping[str, Config], dtypes: Mapping[str, str]) -> list[Finding]:
    """A finding for each engine's memory, the GPUs' shares, each stage's limits and what it scales by.

    By model_id: each LLM's config.json where it is at hand, and its number format.
    """
    return [
        *(_engine_memory(settings, name, configs.get(name), dtypes[name]) for name in settings.engines),
        *_gpu_shares(settings),
        *(finding for name, serving in _stages(settings).items() for finding in _stage(settings, name, serving)),
    ]


def weight_bytes(config: Config, dtype: str) -> int:
    """Of a decoder with gated MLPs and grouped attention, as Llama, Qwen and SmolLM are, biases and norms left out."""
    hidden, layers, vocabulary = config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]
    heads, head = config["num_attention_heads"], _head_dim(config)
    attention = 2 * hidden * heads * head + 2 * hidden * _kv_heads(config) * head
    embeddings = vocabulary * hidden * (1 if config.get("tie_word_embeddings") else 2)
    total: int = embeddings + layers * (attention + 3 * hidden * config["intermediate_size"])
    return total * BYTES[_dtype(config, dtype)]


def kv_bytes(config: Config, dtype: str) -> int:
    """Keys and values of one token in every layer."""
    total: int = 2 * config["num_hidden_layers"] * _kv_heads(config) * _head_dim(config)
    return total * BYTES[_dtype(config, dtype)]


def _kv_heads(config: Config) -> int:
    found: int = config.get("num_key_value_heads") or config["num_attention_heads"]
    return found


def _head_dim(config: Config) -> int:
    found: int = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return found


def _dtype(config: Config, dtype: str) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "bfloat16") if dtype == "auto" else dtype


def _stages(settings: Settings) -> dict[str, StageServing]:
    """Every deployment's settings by their own name, those of the LLMs in `generators` last."""
    found = {f"serve.{name}": one for name, one in settings.serve if isinstance(one, StageServing)}
    return found | {f"generators[{llm.model_id}].serving": llm.serving for llm in settings.generators}


def _stage_of(settings: Settings, llm: str) -> str:
    return "serve.generator" if llm == settings.generator.model_id else f"generators[{llm}].serving"


def _prefix(settings: Settings, llm: str) -> str:
    """What comes before the name of a setting of this LLM."""
    return "generator" if llm == settings.generator.model_id else f"generators[{llm}]"


def _engine_memory(settings: Settings, name: str, config: Config | None, dtype: str) -> Finding:
    """Weights and KV cache beside the memory that there is: the sequences for which a second engine would be started
    have to fit at full length, else the first one throws work away and does it again."""
    llm, prefix = settings.engines[name], _prefix(settings, name)
    subject = f"memory of {name}"
    if config is None:
        return Finding(subject, "its config.json is not at hand: not computed")
    try:
        weights, kv = weight_bytes(config, dtype), kv_bytes(config, dtype) * llm.max_model_len
    except KeyError as error:
        return Finding(subject, f"its config.json has no {error.args[0]}: not computed")
    share = llm.tensor_parallel
    weights, kv = weights // share, math.ceil(kv / share)
    found = (
        f"weights {weights / GIB:.2f} GiB, KV cache {kv * llm.max_num_seqs / GIB:.2f} GiB for {llm.max_num_seqs} "
        f"sequences of {llm.max_model_len} tokens"
    )
    room, place = _cache_room(llm, weights)
    if room is None:
        needed = (weights + kv * llm.max_num_seqs) / llm.memory_fraction / GIB
        return Finding(subject, f"{found}: {needed:.1f} GiB of GPU memory at memory_fraction {llm.memory_fraction:g}")
    fitting = max(int(room // kv), 0)
    found = f"{found}; {place} has room for {fitting}"
    target = scaling_target(llm, _stages(settings)[_stage_of(settings, name)])
    wanted = math.ceil(min(target, llm.max_num_seqs))
    if fitting >= wanted:
        return Finding(subject, found)
    tokens = int(room * llm.max_model_len // kv)
    lower = f"{prefix}.max_num_seqs={fitting}" if fitting else f"a smaller {prefix}.model"
    lower = f"{lower}, or {prefix}.max_model_len to at most {max(tokens // wanted, 0)}"
    more = f"{prefix}.kv_cache_gib" if llm.accelerator == "cpu" else f"{prefix}.memory_fraction or tensor_parallel"
    return Finding(subject, f"{found}, {wanted} are wanted", False, f"set {lower}; or raise {more}")


def _cache_room(llm: GeneratorSettings, weights: int) -> tuple[float | None, str]:
    """Bytes for the KV cache beside the weights, and where; None for a GPU of unknown memory."""
    if llm.accelerator == "cpu":
        return llm.kv_cache_gib * GIB, f"kv_cache_gib {llm.kv_cache_gib}"
    gib = GPU_GIB.get(llm.accelerator_type or "")
    if gib is None:
        return None, ""
    return gib * llm.memory_fraction * GIB - weights, f"{llm.memory_fraction:g} of one {llm.accelerator_type}"


def _gpu_shares(settings: Settings) -> Iterator[Finding]:
    stages = _stages(settings)
    devices = {"serve.embedder": settings.embedder.device}
    if settings.reranker.kind == "cross-encoder":
        devices["serve.reranker"] = settings.reranker.device
    for name, device in devices.items():
        gpus = stages[name].num_gpus
        if device.startswith("cuda") != bool(gpus):
            step = name.removeprefix("serve.")
            remedy = f"set {name}.num_gpus=0.1" if not gpus else f"set {name}.num_gpus=0, or {step}.device=cuda"
            yield Finding(f"{name}.num_gpus", f"{gpus:g}, but {step}.device is {device}", False, remedy)
    engines = {_stage_of(settings, name): llm for name, llm in settings.engines.items() if llm.accelerator == "gpu"}
    for name, llm in engines.items():
        gpus = stages[name].num_gpus
        prefix = _prefix(settings, llm.model_id)
        if not gpus:
            yield Finding(f"{name}.num_gpus", f"0, but {prefix}.accelerator is gpu", False, f"set {name}.num_gpus=1")
        elif gpus < 1 and llm.memory_fraction > gpus:
            yield Finding(
                f"{prefix}.memory_fraction",
                f"{llm.memory_fraction:g}, above {name}.num_gpus ({gpus:g}): it takes memory of the stages beside it",
                False,
                f"set {prefix}.memory_fraction={gpus:g}, or raise {name}.num_gpus",
            )
    shares = {name: one.num_gpus for name, one in stages.items() if 0 < one.num_gpus < 1}
    if not shares:
        return
    total = round(sum(shares.values()), 6)
    found = f"{' + '.join(f'{share:g} ({name})' for name, share in shares.items())} = {total:g}"
    remedy = "lower one of them, so that together they are at most 1, or give an LLM a GPU of its own (num_gpus=1)"
    yield Finding("shares of a GPU", found, total <= 1, "" if total <= 1 else remedy)


def _stage(settings: Settings, name: str, serving: StageServing) -> Iterator[Finding]:
    """What is wrong with a stage's limits and what it scales by; nothing where all fit."""
    llm = next((one for one in settings.engines.values() if _stage_of(settings, one.model_id) == name), None)
    longest_s = longest_calls_s(settings.deadlines)["generator" if llm else name.removeprefix("serve.")]
    if serving.shutdown_s is not None and serving.shutdown_s <= longest_s:
        yield Finding(
            f"{name}.shutdown_s",
            f"{serving.shutdown_s:g} s, but a call may take {longest_s:g} s: a replica that goes cuts it off",
            False,
            f"set {name}.shutdown_s above {longest_s:g}, or leave it out",
        )
    batch = _batch_calls(settings, name, llm)
    if serving.max_ongoing is not None and serving.max_ongoing < batch:
        yield Finding(
            f"{name}.max_ongoing",
            f"{serving.max_ongoing}, but a batch has room for {batch}: it is never full",
            False,
            f"set {name}.max_ongoing to {batch} or more, or leave it out",
        )
    if serving.max_replicas is None:
        return
    scaling, target = serving.scaling, scaling_target(llm, serving)
    if serving.max_ongoing is not None and target > serving.max_ongoing:
        yield Finding(
            f"{name}.scaling.target_ongoing_requests",
            f"{target:g}, above {name}.max_ongoing ({serving.max_ongoing}): a full replica starts no second one",
            False,
            f"set it to {serving.max_ongoing / 2:g}",
        )
    least = max(scaling.upscale_delay_s, longest_s)
    if scaling.downscale_delay_s <= least:
        what = "upscale_delay_s" if scaling.upscale_delay_s >= longest_s else "a call's longest time"
        yield Finding(
            f"{name}.scaling.downscale_delay_s",
            f"{scaling.downscale_delay_s:g} s, not above {what} ({least:g} s): replicas would come and go in turn",
            False,
            f"set it above {least:g}, better to minutes: longer than a replica takes to start",
        )


def _batch_calls(settings: Settings, name: str, llm: GeneratorSettings | None) -> int:
    """Calls that one batch of a stage takes, each as long as it may be."""
    if llm is not None:
        return llm.max_num_seqs
    if name == "serve.embedder":
        return max(1, settings.embedder.batch_tokens // settings.embedder.max_tokens)
    if name == "serve.reranker" and settings.reranker.kind == "cross-encoder":
        return max(1, settings.reranker.batch_tokens // settings.reranker.max_tokens)
    return 1
