"""LoRA adapters of the embedded profile's LLM, on its engine in a small Ray: the same deployment as the service's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rag.config import load_settings
from rag.models import locate_model

ROOT = Path(__file__).parents[2]
RANK = 4
# In an interpreter of its own, as the service's: Serve reads the environment when it is imported.
ASK = """
import asyncio, json, sys
import ray
from ray import serve
folder, adapters, names = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
from deployments.app import build_generator
from rag.config import load_settings
from rag.types import Message
settings = load_settings(profile="embedded", generator={"adapters": adapters, "dtype": "float32"})
serve.start(proxy_location="Disabled")  # else at ports that another service of the machine may have
serve.run(build_generator(settings, settings.generator.model_id), route_prefix=None)
async def write(name):
    handle = serve.get_app_handle("default").options(stream=True)
    one = handle.options(multiplexed_model_id=name) if name in adapters else handle
    pieces = one.generate.remote([Message("user", "The capital of France is")], max_tokens=12, temperature=0.0)
    return "".join([piece.text async for piece in pieces])
async def write_all():
    return {name: await write(name) for name in names}
loop = asyncio.new_event_loop()  # which outlives Serve's router on it
print(json.dumps(loop.run_until_complete(write_all())))
serve.shutdown()
"""


def save_adapter(folder: Path, scale: float) -> Path:
    """An adapter of the attention's queries in PEFT's layout, drawn at random; with `scale` 0 it changes nothing."""
    settings = load_settings(profile="embedded")
    model = json.loads((Path(locate_model(settings.generator.model, settings.cache_dir)) / "config.json").read_text())
    hidden, layers = model["hidden_size"], model["num_hidden_layers"]
    draw = np.random.default_rng(7)
    tensors = {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = draw.standard_normal((RANK, hidden)).astype(np.float32)
        tensors[f"{name}.lora_B.weight"] = (scale * draw.standard_normal((hidden, RANK))).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each name writes to one prompt."""
    data = tmp_path_factory.mktemp("adapters")
    adapters = {name: str(save_adapter(data / name, scale)) for name, scale in (("same", 0.0), ("other", 1.0))}
    names = ["base", "same", "other", "base again"]
    command = [sys.executable, "-c", ASK, json.dumps(adapters), json.dumps(names)]
    with tempfile.TemporaryDirectory(prefix="rag-") as folder:  # a short path: Ray's sockets lie there
        command.insert(3, folder)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Ray, when it ends, prints there too.
    found: dict[str, str] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return found


def test_an_adapter_is_what_writes_where_it_is_asked_for(told: dict[str, str]) -> None:
    assert told["base"]
    assert told["same"] == told["base"]
    assert told["other"] not in ("", told["base"])


def test_the_llm_itself_is_as_before(told: dict[str, str]) -> None:
    assert told["base again"] == told["base"]
