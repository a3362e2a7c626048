"""The models without the service, for eval.bench and eval.bench_ingest to hold beside it; each in a process of its own.

    python -m eval.raw encode|passages|generate TASK.json RESULT.json

`encode` loads SentenceEmbedder and measures the machine's limits with torch, `passages` has it encode all texts once;
`generate` starts vLLM's AsyncLLM over the same weights, number format and engine settings as the service. Settings are
read as the service reads them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from eval.load import percentile, run_load
from rag.config import Settings, load_settings
from rag.embed import SentenceEmbedder
from rag.engine import engine_environment, engine_kwargs
from rag.models import choose_dtype, locate_model

COPY_BYTES = 512 * 1024 * 1024
MATMUL_SIZE = 1024
LIMIT_MEASURE_S = 1.0
WARM_UP_PASSAGES = 16


class _Written(NamedTuple):
    """One request of the raw LLM."""

    ttft_ms: float
    total_ms: float
    tokens: int


def encode(task: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Calls of `n` texts for each n of `texts_per_call`, `limit_s` each, then `passages` in one call, and the limits.

    The passages are what a forward pass is judged by: the texts, questions, are too short to keep the cores busy.
    """
    located = locate_model(settings.embedder.model, settings.cache_dir)
    embedder = SentenceEmbedder(settings.embedder, located)
    texts, passages, limit_s = task["texts"], task["passages"], task["limit_s"]
    calls = []
    for count in task["texts_per_call"]:
        batch = [texts[index % len(texts)] for index in range(count)]
        times_s = _time_calls(lambda batch=batch: embedder.encode(batch, "query"), limit_s)  # type: ignore[misc]
        calls.append({"texts_per_call": count, **_rates(times_s, count)})
    times_s = _time_calls(lambda: embedder.encode(passages, "passage"), limit_s)
    lengths = embedder.count_tokens(passages)
    flop = encoder_flop(located, lengths) / (sum(times_s) / len(times_s))
    limits = measure_limits(settings)
    return {
        "calls": calls,
        "mean_text_tokens": round(sum(embedder.count_tokens(texts)) / len(texts), 1),
        "passages": {
            "texts_per_call": len(passages),
            "mean_text_tokens": round(sum(lengths) / len(lengths), 1),
            **_rates(times_s, len(passages)),
            "gflop_per_s": round(flop / 1e9, 1),
            "fraction_of_matmul": round(flop / 1e9 / limits["matmul_gflop_per_s"], 3),
        },
        "limits": limits,
    }


def encode_passages(task: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """All `texts` in one call, after a small one: sorted by length as a whole, nothing read, split or written.

    `load_s`: until the model could encode, imports of its libraries included. CPU seconds are the call's own, over all
    threads; the peak of the resident memory is the process's.
    """
    began = time.perf_counter()
    embedder = SentenceEmbedder(settings.embedder, locate_model(settings.embedder.model, settings.cache_dir))
    load_s = time.perf_counter() - began
    texts = task["texts"]
    embedder.encode(texts[:WARM_UP_PASSAGES], "passage")
    began, cpu_began = time.perf_counter(), time.process_time()
    embedder.encode(texts, "passage")
    encode_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    return {
        "texts": len(texts),
        "mean_text_tokens": round(sum(embedder.count_tokens(texts)) / len(texts), 1),
        "load_s": round(load_s, 2),
        "encode_s": round(encode_s, 2),
        "cpu_s": round(cpu_s, 1),
        "texts_per_s": round(len(texts) / encode_s, 2),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def measure_limits(settings: Settings) -> dict[str, Any]:
    """What the hardware gives: the best of a second of square matrix products and of large copies.

    Products are in the embedder's number format, on its device. A copy is counted as STREAM does: bytes read and
    bytes written; its array is larger than a CPU's caches.
    """
    import torch

    device = settings.embedder.device
    square = torch.rand(MATMUL_SIZE, MATMUL_SIZE, device=device, dtype=getattr(torch, settings.embedder.dtype))
    result = torch.empty_like(square)
    source = torch.ones(COPY_BYTES // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    on_gpu = torch.device(device).type == "cuda"

    def finished(work: Callable[[], object]) -> None:
        work()
        if on_gpu:
            torch.cuda.synchronize()

    matmul_s = min(_time_calls(lambda: finished(lambda: torch.matmul(square, square, out=result)), LIMIT_MEASURE_S))
    copy_s = min(_time_calls(lambda: finished(lambda: target.copy_(source)), LIMIT_MEASURE_S))
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else device,
        "threads": torch.get_num_threads(),
        "matmul_dtype": settings.embedder.dtype,
        "matmul_gflop_per_s": round(2 * MATMUL_SIZE**3 / matmul_s / 1e9, 1),
        "copy_gb_per_s": round(2 * COPY_BYTES / copy_s / 1e9, 2),
    }


def encoder_flop(located: str, lengths: list[int]) -> float:
    """Floating-point operations of encoding texts of these lengths in tokens, padding not counted.

    2 N per token, N the parameters outside embedding tables, plus 4 L d t per token for attention over t tokens with
    L layers of width d (Kaplan et al. 2020, table 1, with the whole text in view).
    """
    from torch import nn
    from transformers import AutoModel

    model = _on_meta(AutoModel, located)
    tables = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Embedding))
    matrices = sum(weight.numel() for weight in model.parameters()) - tables
    layers, width = model.config.num_hidden_layers, model.config.hidden_size
    return float(sum(2 * matrices * length + 4 * layers * width * length**2 for length in lengths))


def weight_bytes(located: str, dtype: str) -> int:
    """Bytes of the LLM's weights in `dtype` ("auto": the model's own), each tensor once: what one token reads."""
    import torch
    from transformers import AutoModelForCausalLM

    model = _on_meta(AutoModelForCausalLM, located)
    number_format: torch.dtype = model.config.dtype if dtype == "auto" else getattr(torch, dtype)
    count: int = sum(weight.numel() for weight in model.parameters())
    return count * number_format.itemsize


async def generate(task: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Each of `runs` {concurrency, requests} in closed loops of at most `limit_s`, over `prompts` (message lists).

    A run begins without cached prefixes. In the service two prompts have no more in common than the instructions, since
    a boundary is drawn for each (rag.prompt): where `prompts` are as many as requests, they find as much cached here.
    """
    set_engine_environment(settings)
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    located = locate_model(settings.generator.model, settings.cache_dir)
    tokenizer = AutoTokenizer.from_pretrained(located)
    prompts = [
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, enable_thinking=False
        )
        for messages in task["prompts"]
    ]
    dtype = choose_dtype(settings)
    began = time.perf_counter()
    engine = AsyncLLM.from_engine_args(engine_args(settings, located, dtype))
    start_s = time.perf_counter() - began
    asked = 0

    async def write(number: int, max_tokens: int) -> _Written:
        nonlocal asked
        asked += 1
        parameters = SamplingParams(
            temperature=settings.generator.temperature, max_tokens=max_tokens, output_kind=RequestOutputKind.DELTA
        )
        started = time.perf_counter()
        ttft_ms, tokens = 0.0, 0
        prompt = {"prompt_token_ids": prompts[number % len(prompts)]}
        async for output in engine.generate(prompt, parameters, request_id=str(asked)):
            tokens += len(output.outputs[0].token_ids)
            if tokens and not ttft_ms:
                ttft_ms = (time.perf_counter() - started) * 1000
        return _Written(ttft_ms, (time.perf_counter() - started) * 1000, tokens)

    runs = []
    try:
        for run in task["runs"]:
            concurrency = run["concurrency"]
            short = [lambda number: write(number, task["warm_up_tokens"])] * concurrency
            await run_load(short, requests=concurrency, limit_s=task["limit_s"])
            await engine.reset_prefix_cache()
            workers = [lambda number: write(number, task["max_tokens"])] * concurrency
            load = await run_load(workers, requests=run["requests"], limit_s=task["limit_s"])
            runs.append(_generate_rates(load.concurrency, load.seconds, load.results))
    finally:
        engine.shutdown()
    return {
        "runs": runs,
        "engine_start_s": round(start_s, 1),
        "dtype": dtype,
        "prompt_tokens_p50": percentile([len(prompt) for prompt in prompts], 50),
        "weight_bytes": weight_bytes(located, dtype),
    }


def set_engine_environment(settings: Settings) -> None:
    """The environment of the service's engine, for one of this process; before vLLM is imported."""
    for name, value in (engine_environment(settings.generator) | {"VLLM_LOGGING_LEVEL": "WARNING"}).items():
        os.environ.setdefault(name, value)


def engine_args(settings: Settings, located: str, dtype: str) -> Any:
    """vLLM's arguments, those of the service's engine."""
    from vllm import AsyncEngineArgs

    return AsyncEngineArgs(model=located, **engine_kwargs(settings.generator, dtype))


def _generate_rates(concurrency: int, seconds: float, written: list[_Written]) -> dict[str, Any]:
    tpot_ms = [(one.total_ms - one.ttft_ms) / (one.tokens - 1) for one in written if one.tokens > 1]
    return {
        "concurrency": concurrency,
        "requests": len(written),
        "output_tokens": sum(one.tokens for one in written),
        "output_tokens_per_s": round(sum(one.tokens for one in written) / seconds, 2),
        "ttft_p50_ms": percentile([one.ttft_ms for one in written], 50),
        "ttft_p95_ms": percentile([one.ttft_ms for one in written], 95),
        "tpot_p50_ms": percentile(tpot_ms, 50),
        "e2e_p50_ms": percentile([one.total_ms for one in written], 50),
        "e2e_p95_ms": percentile([one.total_ms for one in written], 95),
    }


def _rates(times_s: list[float], texts_per_call: int) -> dict[str, Any]:
    in_ms = [seconds * 1000 for seconds in times_s]
    return {
        "calls": len(times_s),
        "texts_per_s": round(texts_per_call * len(times_s) / sum(times_s), 2),
        "p50_ms": percentile(in_ms, 50),
        "p95_ms": percentile(in_ms, 95),
    }


def _time_calls(work: Callable[[], object], limit_s: float) -> list[float]:
    """Seconds of each call, repeated for `limit_s` and at least 3 times, after one that is not counted."""
    work()
    times_s: list[float] = []
    while len(times_s) < 3 or sum(times_s) < limit_s:
        began = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - began)
    return times_s


def _on_meta(kind: Any, located: str) -> Any:
    """The model's shapes without its weights."""
    import torch
    from transformers import AutoConfig

    with torch.device("meta"):
        return kind.from_config(AutoConfig.from_pretrained(located))


def main() -> None:
    """Runs the task that a file describes and writes its result to another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("encode", "passages", "generate"))
    parser.add_argument("task", type=Path)
    parser.add_argument("result", type=Path)
    chosen = parser.parse_args()
    task = json.loads(chosen.task.read_text(encoding="utf-8"))
    settings = load_settings()
    if chosen.kind == "generate":
        result = asyncio.run(generate(task, settings))
    else:
        result = {"encode": encode, "passages": encode_passages}[chosen.kind](task, settings)
    chosen.result.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
