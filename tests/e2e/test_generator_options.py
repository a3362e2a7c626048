"""What the graph asks Ray for on behalf of vLLM, held against what Ray Serve LLM would ask for. Imports vLLM."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.generator import generator_options
from rag.config import Settings, load_settings

LARGE: dict[str, Any] = {
    "generator": {"tensor_parallel": 2, "accelerator_type": "A100"},
    "serve": {"generator": {"num_cpus": 2, "num_gpus": 1}},
}


@pytest.mark.parametrize(
    ("profile", "overrides"), [("embedded", {}), ("gpu", {}), ("gpu", LARGE)], ids=["embedded", "gpu", "two-gpus"]
)
def test_placement_and_environment_are_ray_serve_llms(profile: str, overrides: dict[str, Any]) -> None:
    from deployments.llm_server import TextServer, llm_config

    settings: Settings = load_settings(profile=profile, **overrides)
    generator, serving = settings.generator, settings.serve.generator

    ours = generator_options(generator, serving)
    theirs = TextServer.get_deployment_options(llm_config(generator, serving, "/models/any", "float32"))

    assert [_without_zeros(bundle) for bundle in ours["placement_group_bundles"]] == [
        _without_zeros(bundle) for bundle in theirs["placement_group_bundles"]
    ]
    assert ours["placement_group_strategy"] == theirs["placement_group_strategy"]
    wanted = ours["ray_actor_options"]
    assert wanted["num_cpus"] == theirs["ray_actor_options"]["num_cpus"]
    assert wanted["runtime_env"]["env_vars"] == theirs["ray_actor_options"]["runtime_env"]["env_vars"]


def _without_zeros(bundle: dict[str, float]) -> dict[str, float]:
    return {resource: amount for resource, amount in bundle.items() if amount}
