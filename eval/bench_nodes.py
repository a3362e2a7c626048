"""A node lost under load: `python -m eval.bench_nodes FOLDER QUESTIONS`.

A Ray of three nodes on this machine, each with resources of its own: the head has the orchestrator, the searches and
the LLM, and two others a replica of the embedder and of the reranker each, where the profile's `resources` place them.
FOLDER is ingested; while clients search and ask, every process of one of the two is killed at once. Exit status 1 when
the stages were not spread, a request failed after the node's replicas had been replaced, or they never were. The last
line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from eval.bench import work_folder
from eval.bench_cluster import Cluster, replicas, serve_config, started_cluster
from eval.bench_http import read_questions, say
from eval.bench_load import mixed, steady_load
from eval.bench_service import BenchError, ingest
from eval.bench_tables import format_table
from eval.hardware import describe_machine, git_commit
from rag.errors import RagError

FRONT, EMBED, RERANK = "front", "embed", "rerank"
MODELS = {EMBED: 1.0, RERANK: 1.0}  # of each node for models: room for two replicas of each, where the other is gone
LOST = "models-2"
REPLACED_S = 180.0


def settings(data: Path) -> dict[str, Any]:
    """The profile's stages by resource."""
    front = {"num_cpus": 0.1, "resources": {FRONT: 0.01}}
    serve = dict.fromkeys(("orchestrator", "retriever", "indexer", "generator"), front)
    serve["embedder"] = {"num_cpus": 0.1, "replicas": 2, "resources": {EMBED: 0.5}}
    serve["reranker"] = {"num_cpus": 0.1, "replicas": 2, "resources": {RERANK: 0.5}}
    return {"data_dir": str(data), "cache": {"answers": 0}, "serve": serve, "embedder": {"threads": 1}}


def placed(cluster: Cluster, names: dict[str, str]) -> dict[str, list[str]]:
    """Of each stage the nodes of its replicas, by name."""
    running = replicas(cluster.details())
    return {
        stage: sorted(names.get(one["node_id"], one["node_id"]) for one in found) for stage, found in running.items()
    }


async def measure(cluster: Cluster, questions: list[str], clients: int, names: dict[str, str]) -> dict[str, Any]:
    """The phases before, while and after a node is lost."""
    rows: list[dict[str, Any]] = []

    async def asked(when: str, work: Any) -> Any:
        say(when)
        began = time.perf_counter()
        async with steady_load(cluster.url, clients, mixed(questions)) as load:
            result = await work()
        rows.append({"when": when, "seconds": round(time.perf_counter() - began, 1), **load.summary()})
        return result

    async def lose() -> tuple[int, float | None]:
        await asyncio.sleep(5)
        killed = cluster.kill(LOST)
        began = time.perf_counter()
        while time.perf_counter() - began < REPLACED_S:
            await asyncio.sleep(0.5)
            now = await asyncio.to_thread(placed, cluster, names)
            if all(len(now[stage]) == 2 and LOST not in now[stage] for stage in ("Embedder", "Reranker")):
                return killed, round(time.perf_counter() - began, 1)
        return killed, None

    before = placed(cluster, names)
    await asked("all nodes", lambda: asyncio.sleep(30))
    killed, replaced_s = await asked("one is killed", lose)
    await asked("without it", lambda: asyncio.sleep(30))
    return {
        "phases": rows,
        "before": before,
        "after": placed(cluster, names),
        "killed_processes": killed,
        "replaced_s": replaced_s,
    }


def run(folder: Path, questions: list[str], clients: int, work: Path) -> dict[str, Any]:
    """The report. Raises BenchError."""
    data = work / "data"
    variables = {"RAG_DATA_DIR": str(data)}
    say(f"ingesting {folder}")
    ingested = ingest(variables, folder)
    say("starting three nodes and the service")
    with started_cluster(work, variables, cpus=16, resources={FRONT: 1.0}) as cluster:
        names = {cluster.alive()[0]["node_id"]: "head"}
        for name in ("models-1", LOST):
            cluster.add_node(name, 4, MODELS)
            (new,) = {one["node_id"] for one in cluster.alive()} - names.keys()
            names[new] = name
        cluster.deploy(serve_config(int(cluster.url.rpartition(":")[2]), settings(data)))
        startup_s = cluster.wait_until_running()
        found = asyncio.run(measure(cluster, questions, clients, names))
        say("stopping")
    spread = all(found["before"][stage] == ["models-1", LOST] for stage in ("Embedder", "Reranker"))
    return {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "clients": clients,
        "chunks": ingested["chunks"],
        "startup_s": startup_s,
        **found,
        "ok": spread and found["replaced_s"] is not None and not found["phases"][-1]["failed"],
    }


def main() -> int:
    """Prints the table and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="documents to ingest")
    parser.add_argument("questions", type=Path, help="a file of questions about them, one a line")
    parser.add_argument("--clients", type=int, default=4, help="how many ask at once (4)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the nodes are ended then, too
    try:
        if not (questions := read_questions(chosen.questions)):
            raise BenchError(f"{chosen.questions} has no question; write one a line")
        with work_folder() as work:
            report = run(chosen.folder, questions, chosen.clients, work)
    except (BenchError, RagError, OSError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    header = ["when", "seconds", "answered", "failed", "degraded", "p50_ms", "p99_ms"]
    print(format_table(header, [[row[name] for name in header] for row in report["phases"]]))
    for stage in report["before"]:
        print(f"{stage}: on {', '.join(report['before'][stage])}; then on {', '.join(report['after'][stage])}")
    print(f"{report['killed_processes']} processes killed, replaced after {report['replaced_s']} s")
    print(json.dumps(report, ensure_ascii=False))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
