"""What the graph asks Ray for on behalf of vLLM, held against what Ray Serve LLM would ask for."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from deployments.generator import generator_placement
from rag.config import load_settings

ROOT = Path(__file__).parents[2]
CASES: dict[str, dict[str, Any]] = {
    "embedded": {"profile": "embedded"},
    "gpu": {"profile": "gpu"},
    "two-gpus": {
        "profile": "gpu",
        "generator": {"tensor_parallel": 2, "accelerator_type": "A100"},
        "serve": {"generator": {"num_cpus": 2, "num_gpus": 1}},
    },
}
# In an interpreter of its own: vLLM takes seconds to import, and Serve reads the environment when it is imported.
THEIRS = """
import json, sys
import ray
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=sys.argv[2])  # else it starts one itself
from deployments.llm_server import TextServer, llm_config
from rag.config import load_settings
options = {}
for name, overrides in json.loads(sys.argv[1]).items():
    settings = load_settings(**overrides)
    config = llm_config(settings, "/models/any", "float32")
    options[name] = TextServer.get_deployment_options(config)
print(json.dumps(options))
"""


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    command = [sys.executable, "-c", THEIRS, json.dumps(CASES)]
    with tempfile.TemporaryDirectory(prefix="rag-") as folder:  # a short path: Ray's sockets lie there
        done = subprocess.run([*command, folder], cwd=ROOT, capture_output=True, text=True, check=True)
    options: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return options


@pytest.mark.parametrize("case", CASES)
def test_placement_and_environment_are_ray_serve_llms(theirs: dict[str, Any], case: str) -> None:
    settings = load_settings(**CASES[case])
    ours, wanted = generator_placement(settings.generator, settings.serve.generator), theirs[case]
    assert _without_zeros(ours["placement_group_bundles"]) == _without_zeros(wanted["placement_group_bundles"])
    assert ours["placement_group_strategy"] == "STRICT_PACK"  # theirs spreads an engine's workers over slow links, too
    actor, their_actor = ours["ray_actor_options"], wanted["ray_actor_options"]
    assert actor["num_cpus"] == their_actor["num_cpus"]
    assert actor["runtime_env"]["env_vars"] == their_actor["runtime_env"]["env_vars"]


def _without_zeros(bundles: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{resource: amount for resource, amount in bundle.items() if amount} for bundle in bundles]
