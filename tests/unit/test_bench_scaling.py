"""What the benchmarks of replicas deploy is what Serve and the settings take; what they count is what happened."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray.serve.schema import ServeDeploySchema

from eval import bench_nodes
from eval.bench_cluster import Cluster, replicas, serve_config
from eval.bench_load import mixed, searches, steady_load
from eval.bench_scaling import STAGES, Watched, config, save_plot, table
from rag.config import Settings, load_settings

CLUSTER = Cluster(Path("/none"), {}, "http://127.0.0.1:8123", "", "")


def settings_of(deployed: dict[str, Any]) -> Settings:
    """As build_app gets them."""
    schema = ServeDeploySchema.model_validate(deployed)
    assert schema.http_options.port == 8123
    return load_settings(**schema.applications[0].args)


def test_every_stage_scales_in_what_is_deployed() -> None:
    settings = settings_of(config(CLUSTER, 1, 3, {"retrieval": {"top_k": 10}}))
    stages = {stage.lower(): getattr(settings.serve, stage.lower()) for stage in STAGES}
    assert {name: (one.replicas, one.max_replicas) for name, one in stages.items()} == {
        **dict.fromkeys(stages, (1, 3)),
        "generator": (1, 2),
    }
    fixed = settings_of(config(CLUSTER, 2, None, generator={"model_id": "next"}))
    assert fixed.generator.model_id == "next"
    assert [getattr(fixed.serve, name).max_replicas for name in stages] == [None] * 5


def test_the_live_part_is_one_that_the_orchestrator_takes() -> None:
    deployed = config(CLUSTER, 1, 3, {"retrieval": {"top_k": 10}})
    (orchestrator,) = deployed["applications"][0]["deployments"]
    assert settings_of(deployed).with_live(orchestrator["user_config"]).retrieval.top_k == 10


def test_two_nodes_have_room_for_the_models_and_one_for_both() -> None:
    serve = settings_of(serve_config(8123, bench_nodes.settings(Path("/none")))).serve
    for stage in (serve.embedder, serve.reranker):
        ((resource, amount),) = stage.resources.items()
        assert bench_nodes.MODELS[resource] == amount * stage.replicas


def test_only_replicas_that_run_count() -> None:
    found = replicas({"deployments": {"A": {"replicas": [{"state": "RUNNING"}, {"state": "STARTING"}]}}})
    assert {name: len(running) for name, running in found.items()} == {"A": 1}


def test_searches_are_never_the_same_and_a_sixth_are_questions() -> None:
    body = searches(["a", "b"])
    assert len({body(number)[1]["query"] for number in range(100)}) == 100
    paths = [mixed(["a"])(number)[0] for number in range(12)]
    assert paths.count("/ask") == 2


async def test_a_load_goes_on_until_its_block_ends_and_counts_what_failed() -> None:
    asked, enough = 0, asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            asked += 1
            if asked > 5:
                enough.set()
            status = b"503 Service Unavailable" if asked == 3 else b"200 OK"
            body = b'{"degraded": ["rerank"], "model": "m", "detail": "its queue is full"}'
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = "http://{}:{}".format(*server.sockets[0].getsockname())
    async with server, steady_load(url, 1, searches(["a"])) as found:
        await enough.wait()
    summary = found.summary()
    assert summary["failed"] == {"HTTP 503 its queue is full": 1}
    assert summary["answered"] == asked - 1 == summary["degraded"]["rerank"] == summary["models"]["m"]


def test_the_table_and_the_plot_have_every_phase(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    watched = Watched()
    watched.samples = [
        (0.0, dict.fromkeys(STAGES, 1)),
        (7.0, dict.fromkeys(STAGES, 2)),
        (9.0, dict.fromkeys(STAGES, 1)),
    ]
    watched.phases = [(0.0, "searches")]
    assert watched.most(0, "Embedder") == 2
    assert watched.most(8, "Embedder") == 1
    save_plot(watched, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    row = {"phase": "searches", "seconds": 1.0, "answered": 3, "failed": {"HTTP 503": 2}, "degraded": {}}
    shown = table([{**row, "p50_ms": 1.0, "p99_ms": 2.0, "most": dict.fromkeys(STAGES, 2), "result": False}])
    assert shown.splitlines()[-1].split() == ["searches", "1", "3", "2", "0", "1", "2", *"22222", "no"]
