"""`rag doctor`'s arithmetic: each number that does not fit is named with its remedy."""

from __future__ import annotations

from typing import Any

import pytest

from rag.check_profile import GIB, check_profile, kv_bytes, weight_bytes
from rag.config import load_settings
from rag.findings import Finding

# Qwen3-8B's own, as published; 8.19 billion parameters.
QWEN = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
SCALED = {"max_replicas": 3}


def findings(profile: str = "gpu", config: dict[str, Any] | None = None, **given: Any) -> list[Finding]:
    settings = load_settings(profile=profile, **given)
    names = list(settings.engines)
    return check_profile(settings, {names[0]: config} if config else {}, dict.fromkeys(names, "auto"))


def test_the_profiles_have_nothing_wrong() -> None:
    for profile in ("embedded", "gpu"):
        assert [one for one in findings(profile) if not one.ok] == []


def test_weights_and_cache_are_those_of_the_published_model() -> None:
    assert weight_bytes(QWEN, "auto") == pytest.approx(8.19e9 * 2, rel=0.001)
    assert weight_bytes(QWEN, "float32") == 2 * weight_bytes(QWEN, "auto")
    assert kv_bytes(QWEN, "auto") == 2 * 36 * 8 * 128 * 2  # keys and values, layers, heads, width, bytes


@pytest.mark.parametrize(
    ("generator", "ok", "told"),
    [
        # 64 sequences of 8192 tokens of 144 KiB are 72 GiB; 15.26 GiB of weights beside them.
        ({}, True, ["weights 15.26 GiB", "72.00 GiB for 64 sequences of 8192", "145.4 GiB of GPU memory"]),
        ({"accelerator_type": "H200"}, True, ["has room for 61"]),  # (140.4 * 0.6 - 15.26) / 1.125
        ({"accelerator_type": "A100-80G"}, False, ["room for 29, 32 are wanted", "generator.max_num_seqs=29"]),
        ({"accelerator_type": "A100-80G", "max_num_seqs": 29}, True, ["has room for 29"]),
        ({"accelerator_type": "A100-80G", "memory_fraction": 0.65}, True, ["has room for 32"]),
        ({"accelerator_type": "L4"}, False, ["room for 0", "smaller generator.model", "memory_fraction"]),
        ({"accelerator_type": "A100", "tensor_parallel": 4}, True, ["weights 3.81 GiB", "has room for 71"]),
    ],
)
def test_an_engine_s_memory_is_held_against_its_gpu(generator: dict[str, Any], ok: bool, told: list[str]) -> None:
    (memory,) = [
        one
        for one in findings(config=QWEN, generator=generator, serve={"generator": {"num_gpus": 1}})
        if one.subject == "memory of qwen3-8b"
    ]
    assert memory.ok == ok, memory
    for part in told:
        assert part in f"{memory.found} {memory.remedy}"


def test_on_a_cpu_the_cache_is_the_one_that_is_set() -> None:
    smollm = {**QWEN, "num_hidden_layers": 30, "num_key_value_heads": 3, "head_dim": 64, "hidden_size": 576}
    (memory, *_) = findings("embedded", smollm, generator={"dtype": "float16"})
    room = int(GIB // (2 * 30 * 3 * 64 * 2 * 2048))
    assert f"kv_cache_gib 1 has room for {room}" in memory.found
    (memory, *_) = findings("embedded", smollm, generator={"max_num_seqs": 256})
    assert not memory.ok
    assert "generator.kv_cache_gib" in memory.remedy


@pytest.mark.parametrize("config", [None, {"hidden_size": 8}])
def test_a_model_that_is_not_known_is_said_to_be_not_computed(config: dict[str, Any] | None) -> None:
    assert "not computed" in findings(config=config)[0].found


GENERATOR, EMBEDDER = "serve.generator", "serve.embedder"


@pytest.mark.parametrize(
    ("given", "subject", "told"),
    [
        pytest.param(
            {"serve": {"reranker": {"num_gpus": 0.4}}},
            "shares of a GPU",
            ["0.1 (serve.embedder) + 0.4 (serve.reranker) + 0.7 (serve.generator) = 1.2", "at most 1", "num_gpus=1"],
            id="shares",
        ),
        pytest.param(
            {"generator": {"memory_fraction": 0.8}},
            "generator.memory_fraction",
            ["0.8, above serve.generator.num_gpus (0.7)", "generator.memory_fraction=0.7"],
            id="memory_above_share",
        ),
        pytest.param(
            {"embedder": {"device": "cpu"}},
            f"{EMBEDDER}.num_gpus",
            ["embedder.device is cpu", "serve.embedder.num_gpus=0, or embedder.device=cuda"],
            id="gpu_unused",
        ),
        pytest.param(
            {"serve": {"embedder": {"num_gpus": 0}}},
            f"{EMBEDDER}.num_gpus",
            ["0, but embedder.device is cuda", "serve.embedder.num_gpus=0.1"],
            id="gpu_hidden",
        ),
        pytest.param(
            {"serve": {"generator": {"num_gpus": 0}}},
            f"{GENERATOR}.num_gpus",
            ["generator.accelerator is gpu", "serve.generator.num_gpus=1"],
            id="engine_without_gpu",
        ),
        pytest.param(
            {"serve": {"generator": {"max_ongoing": 32}}},
            f"{GENERATOR}.max_ongoing",
            ["32, but a batch has room for 64", "64 or more"],
            id="batch_of_an_engine",
        ),
        pytest.param(
            {"serve": {"embedder": {"max_ongoing": 7}}},
            f"{EMBEDDER}.max_ongoing",
            ["7, but a batch has room for 8", "8 or more"],
            id="batch_of_a_model",
        ),
        pytest.param(
            {"serve": {"embedder": {**SCALED, "max_ongoing": 8, "scaling": {"target_ongoing_requests": 9}}}},
            f"{EMBEDDER}.scaling.target_ongoing_requests",
            ["9, above serve.embedder.max_ongoing (8)", "set it to 4"],
            id="target_above_limit",
        ),
        pytest.param(
            {"serve": {"embedder": {**SCALED, "scaling": {"downscale_delay_s": 30}}}},
            f"{EMBEDDER}.scaling.downscale_delay_s",
            ["30 s, not above upscale_delay_s (30 s)", "above 30"],
            id="delays_alike",
        ),
        pytest.param(
            {"serve": {"generator": {**SCALED, "scaling": {"upscale_delay_s": 1, "downscale_delay_s": 25}}}},
            f"{GENERATOR}.scaling.downscale_delay_s",
            ["25 s, not above a call's longest time (25 s)"],
            id="delay_within_a_generation",
        ),
        pytest.param(
            {"serve": {"generator": {"shutdown_s": 25}}},
            f"{GENERATOR}.shutdown_s",
            ["25 s, but a call may take 25 s", "above 25"],
            id="shutdown_within_a_generation",
        ),
        pytest.param(
            {"serve": {"orchestrator": {"shutdown_s": 10}}},
            "serve.orchestrator.shutdown_s",
            ["a call may take 30 s"],
            id="shutdown_within_a_question",
        ),
        pytest.param(
            {
                "generators": [
                    {"model": "/m/l", "model_id": "large", "accelerator": "gpu", "max_model_len": 8192}
                    | {"serving": {"num_gpus": 1, "shutdown_s": 5}}
                ]
            },
            "generators[large].serving.shutdown_s",
            ["a call may take 25 s"],
            id="another_llm",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_named_with_their_remedy(
    given: dict[str, Any], subject: str, told: list[str]
) -> None:
    (wrong,) = [one for one in findings(**given) if not one.ok]
    assert wrong.subject == subject
    for part in told:
        assert part in f"{wrong.found} {wrong.remedy}"
