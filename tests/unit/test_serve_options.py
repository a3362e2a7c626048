"""What each stage's settings become: Serve's own options, as Serve itself reads them."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.build_app import build_app as build_serve_app

from deployments.app import build_app
from rag.config import Settings, load_settings
from rag.errors import ModelError, SettingsError
from rag.serve_settings import StageServing

STAGES = {"orchestrator", "embedder", "retriever", "reranker", "generator", "indexer"}
SCALING = {
    "initial_replicas": 2,
    "target_ongoing_requests": 3.0,
    "upscale_delay_s": 4.0,
    "downscale_delay_s": 50.0,
    "upscaling_factor": 0.5,
    "downscaling_factor": 0.25,
    "look_back_period_s": 20.0,
    "metrics_interval_s": 2.0,
}


def deployed(settings: Settings) -> dict[str, Any]:
    """Each deployment as Serve builds it, by its stage."""
    return {one.name.lower(): one for one in build_serve_app(build_app(settings), name="rag").deployments}


def test_the_stages_are_those_of_the_settings() -> None:
    settings = load_settings(profile="embedded")
    assert {name for name, one in settings.serve if isinstance(one, StageServing)} == STAGES
    assert deployed(settings).keys() == STAGES


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_stage_scales_between_its_bounds_by_its_settings(stage: str) -> None:
    serving = {"replicas": 1, "max_replicas": 4, "scaling": SCALING}
    built = deployed(load_settings(profile="embedded", serve={stage: serving}))
    found = built[stage]._deployment_config.autoscaling_config
    assert {name: getattr(found, name) for name in SCALING} == SCALING
    assert (found.min_replicas, found.max_replicas) == (1, 4)
    others = [one._deployment_config.autoscaling_config for name, one in built.items() if name != stage]
    assert others == [None] * 5


def test_without_a_target_an_llm_s_is_half_of_its_batch() -> None:
    settings = load_settings(profile="embedded", serve={stage: {"max_replicas": 2} for stage in STAGES})
    targets = {
        name: one._deployment_config.autoscaling_config.target_ongoing_requests
        for name, one in deployed(settings).items()
    }
    assert targets == {**dict.fromkeys(STAGES, 2.0), "generator": settings.generator.max_num_seqs / 2}


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_limits_health_and_end_are_the_settings(stage: str) -> None:
    serving = {
        "replicas": 2,
        "max_ongoing": 7,
        "max_queued": 5,
        "health_period_s": 3.0,
        "health_timeout_s": 9.0,
        "shutdown_s": 77.0,
    }
    config = deployed(load_settings(profile="embedded", serve={stage: serving}))[stage]._deployment_config
    assert config.num_replicas == 2
    assert (config.max_ongoing_requests, config.max_queued_requests) == (7, 5)
    assert (config.health_check_period_s, config.health_check_timeout_s) == (3.0, 9.0)
    assert config.graceful_shutdown_timeout_s == 77.0


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_a_replica_s_place_is_the_settings(stage: str) -> None:
    serving = {"num_cpus": 0.5, "memory_bytes": 2**30, "resources": {"rack": 0.25}}
    replica = deployed(load_settings(profile="embedded", serve={stage: serving}))[stage]._replica_config
    assert replica.ray_actor_options["num_cpus"] == 0.5
    assert replica.ray_actor_options["memory"] == 2**30
    assert replica.ray_actor_options["resources"] == {"rack": 0.25}
    if stage == "generator":  # the engine's worker is beside it
        assert replica.placement_group_bundles == [{"CPU": 1.5, "memory": 2**30, "rack": 0.25}]


def test_a_model_s_gpu_may_be_of_one_kind() -> None:
    serving = {"num_gpus": 0.5, "accelerator_type": "L4"}
    settings = load_settings(
        profile="gpu",
        evidence={"min_confidence": 0},
        generator={"tensor_parallel": 2, "accelerator_type": "A100"},
        serve={"embedder": serving, "generator": {"num_gpus": 1}},
    )
    built = deployed(settings)
    embedder = built["embedder"]._replica_config.ray_actor_options
    assert (embedder["accelerator_type"], embedder["num_gpus"]) == ("L4", 0.5)
    generator = built["generator"]._replica_config
    worker = {"GPU": 1, "accelerator_type:A100": 0.001}
    assert generator.placement_group_bundles == [{**worker, "CPU": 1.0}, worker]
    assert generator.placement_group_strategy == "STRICT_PACK"


@pytest.mark.parametrize(("profile", "most"), [("embedded", None), ("gpu", 1)])
def test_rerankers_of_the_gpu_profile_are_on_nodes_of_their_own(profile: str, most: int | None) -> None:
    found = {
        name: one._replica_config.max_replicas_per_node
        for name, one in deployed(load_settings(profile=profile)).items()
    }
    assert found == {**dict.fromkeys(STAGES, None), "reranker": most}


def test_a_model_s_replicas_on_a_node_may_be_limited_but_not_an_llm_s() -> None:
    settings = load_settings(profile="embedded", serve={"embedder": {"max_replicas_per_node": 2}})
    assert deployed(settings)["embedder"]._replica_config.max_replicas_per_node == 2
    with pytest.raises(SettingsError, match=r"no setting serve\.generator\.max_replicas_per_node"):
        load_settings(profile="embedded", serve={"generator": {"max_replicas_per_node": 2}})


@pytest.mark.parametrize("profile", ["embedded", "gpu"])
def test_a_replica_that_goes_has_longer_than_its_longest_call(profile: str) -> None:
    settings = load_settings(profile=profile)
    limits, built = settings.deadlines, deployed(settings)
    longest = {
        "orchestrator": limits.total_s,
        "embedder": max(limits.embed_s, limits.rerank_s, limits.ground_s),
        "retriever": max(limits.dense_s, limits.lexical_s),
        "reranker": max(limits.rerank_s, limits.ground_s),
        "generator": limits.generate_s,
    }
    for stage, seconds in longest.items():
        assert built[stage]._deployment_config.graceful_shutdown_timeout_s > seconds


@pytest.mark.parametrize(
    ("serving", "told"),
    [
        ({"replicas": 3, "max_replicas": 2}, ["max_replicas (2)", "replicas (3)"]),
        ({"replicas": 0}, ["serve.embedder.replicas", "greater than or equal to 1"]),
        ({"max_replicas": 2, "scaling": {"initial_replicas": 3}}, ["initial_replicas (3)", "max_replicas (2)"]),
        ({"scaling": {"metrics_interval_s": 31}}, ["metrics_interval_s (31)", "look_back_period_s (30)"]),
        ({"num_gpus": 1.5}, ["num_gpus (1.5)", "whole number"]),
        ({"scaling": {"smoothing": 1}}, ["no setting serve.embedder.scaling.smoothing", "upscaling_factor"]),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else "",
)
def test_what_cannot_be_is_refused_with_its_name(serving: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings(profile="embedded", serve={"embedder": serving})
    for part in told:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("model", "said"),
    [("/models/none", "'/models/none' is no folder here"), ("package:no_such_llm", "no Python package 'no_such_llm'")],
)
def test_a_model_that_is_not_there_is_known_before_a_replica_is_replaced(model: str, said: str) -> None:
    settings = load_settings(profile="embedded", generator={"model": model, "model_id": "none"})
    with pytest.raises(ModelError, match=said):
        build_app(settings)
    other = [{"model": model, "model_id": "none"}]
    with pytest.raises(ModelError, match=said):
        build_app(load_settings(profile="embedded", generators=other))


def test_an_adapter_that_is_not_there_is_known_as_early() -> None:
    settings = load_settings(profile="embedded", generator={"adapters": {"tuned": "/models/none"}})
    with pytest.raises(ModelError, match="the adapter's folder /models/none is not there"):
        build_app(settings)
