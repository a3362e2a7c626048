"""Replicas that follow the load, and changes under load: `python -m eval.bench_scaling FOLDER QUESTIONS`.

A Ray of its own with the embedded profile, deployed by `serve deploy`, every stage scaling by its settings; FOLDER is
ingested. Then, each while clients ask: searches, until the search stages have grown; questions, until the LLM has; no
load, until all are small again; another `user_config`; and, with two replicas of each stage, another version of the LLM
by `serve deploy`. Exit status 1 when a request failed or a stage did not grow and shrink. The last line of stdout is
one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from eval.bench import work_folder
from eval.bench_cluster import Cluster, replicas, serve_config, started_cluster
from eval.bench_http import read_questions, say
from eval.bench_load import Body, Steady, asks, mixed, searches, steady_load
from eval.bench_service import BenchError, ingest
from eval.bench_tables import format_table
from eval.hardware import describe_machine, git_commit
from rag.errors import RagError

SEARCHING = ("Orchestrator", "Embedder", "Retriever", "Reranker")
STAGES = (*SEARCHING, "Generator")
GROW_S, SHRINK_S, CHANGE_S = 240.0, 240.0, 600.0
NEXT_VERSION = "smollm2-next"
# Short delays show in minutes what takes an hour with those that a service should have.
SCALING = {"upscale_delay_s": 3.0, "downscale_delay_s": 20.0, "look_back_period_s": 6.0, "metrics_interval_s": 2.0}
# Calls that each replica shall have at work: so few that this machine's load is above them.
TARGETS = {"orchestrator": 4.0, "embedder": 1.0, "retriever": 0.5, "reranker": 1.0, "generator": 2.0}


@dataclass
class Watched:
    """Replicas by stage, second by second from `began`, and the phases' first seconds."""

    began: float = field(default_factory=time.perf_counter)
    samples: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    phases: list[tuple[float, str]] = field(default_factory=list)
    loads: list[tuple[float, Steady]] = field(default_factory=list)  # when it began, from `began`

    def most(self, since: float, stage: str) -> int:
        """The greatest number of replicas of a stage from a second on."""
        return max((now.get(stage, 0) for at, now in self.samples if at >= since), default=0)

    def now(self) -> dict[str, int]:
        """The last sample."""
        return self.samples[-1][1] if self.samples else {}


def stage_settings(replicas_each: int, most: int | None) -> dict[str, Any]:
    """`serve` of the settings: small logical shares, and the same scaling for every stage."""
    found: dict[str, Any] = {}
    for stage, target in TARGETS.items():
        found[stage] = {"num_cpus": 0.1, "replicas": replicas_each}
        if most is not None:
            scaled = most if stage != "generator" else 2
            found[stage] |= {"max_replicas": scaled, "scaling": {**SCALING, "target_ongoing_requests": target}}
    return found


@asynccontextmanager
async def watching(cluster: Cluster) -> AsyncIterator[Watched]:
    """Samples the replicas once a second while the block runs."""
    found = Watched()

    async def sample() -> None:
        while True:
            try:
                details = await asyncio.to_thread(cluster.details)
            except httpx.HTTPError:
                details = {}
            if details.get("deployments"):  # while an application is built it names none, and they go on
                counts = {name: len(running) for name, running in replicas(details).items()}
                found.samples.append((time.perf_counter() - found.began, counts))
            await asyncio.sleep(1.0)

    task = asyncio.create_task(sample())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until(fulfilled: Callable[[], bool], limit_s: float) -> bool:
    deadline = time.perf_counter() + limit_s
    while time.perf_counter() < deadline:
        if fulfilled():
            return True
        await asyncio.sleep(0.5)
    return False


async def phase(
    name: str, cluster: Cluster, watched: Watched, load: tuple[int, Body] | None, work: Callable[[], Any]
) -> dict[str, Any]:
    """Runs `work` (a coroutine's function) under a load, and tells what became of both."""
    say(name)
    began = time.perf_counter() - watched.began
    watched.phases.append((began, name))
    if load is None:
        result, steady = await work(), Steady()
    else:
        clients, body = load
        async with steady_load(cluster.url, clients, body) as steady:
            watched.loads.append((steady.began - watched.began, steady))
            result = await work()
    seconds = time.perf_counter() - watched.began - began
    most = {stage: watched.most(began, stage) for stage in STAGES}
    return {"phase": name, "seconds": round(seconds, 1), **steady.summary(), "most": most, "result": result}


def config(
    cluster: Cluster, each: int, most: int | None, user_config: Mapping[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """What is deployed: so many replicas of each stage, up to `most`, and what else is set."""
    settings = {"cache": {"answers": 0}, "reranker": {"threads": 1}, "embedder": {"threads": 1}, **more}
    settings["serve"] = stage_settings(each, most)
    return serve_config(int(cluster.url.rpartition(":")[2]), settings, user_config)


async def measure(cluster: Cluster, questions: list[str], clients: int) -> tuple[list[dict[str, Any]], Watched]:
    """Every phase in turn."""

    async def grown(stages: tuple[str, ...]) -> bool:
        return await _until(lambda: all(watched.now().get(stage, 0) > 1 for stage in stages), GROW_S)

    async def shrunk() -> bool:
        return await _until(lambda: all(watched.now().get(stage, 0) == 1 for stage in STAGES), SHRINK_S)

    async def change_live() -> bool:
        before = _ids(cluster.details())
        await asyncio.sleep(5)
        await asyncio.to_thread(cluster.deploy, config(cluster, 1, 3, {"retrieval": {"top_k": 10}}))
        await asyncio.to_thread(cluster.wait_until_running)
        await asyncio.sleep(10)
        after = _ids(cluster.details())
        return all(before[stage] & after[stage] for stage in STAGES)  # what was there is there still

    async def change_version() -> bool:
        before = _ids(cluster.details())
        await asyncio.sleep(5)
        await asyncio.to_thread(cluster.deploy, config(cluster, 2, None, generator={"model_id": NEXT_VERSION}))
        await asyncio.sleep(3)
        await asyncio.to_thread(cluster.wait_until_running, CHANGE_S)
        await asyncio.sleep(10)
        return not any(before[stage] & _ids(cluster.details())[stage] for stage in STAGES)

    async def two_of_each() -> bool:
        await asyncio.to_thread(cluster.deploy, config(cluster, 2, None))
        await asyncio.sleep(3)
        await asyncio.to_thread(cluster.wait_until_running, CHANGE_S)
        return True

    async with watching(cluster) as watched:
        rows = [
            await phase("searches", cluster, watched, (clients, searches(questions)), lambda: grown(SEARCHING)),
            await phase("questions", cluster, watched, (clients, asks(questions)), lambda: grown(("Generator",))),
            await phase("idle", cluster, watched, None, shrunk),
            await phase("user_config", cluster, watched, (4, mixed(questions)), change_live),
            await phase("two of each", cluster, watched, None, two_of_each),
            await phase("new version", cluster, watched, (4, mixed(questions)), change_version),
        ]
        return rows, watched


def _ids(details: Mapping[str, Any]) -> dict[str, set[str]]:
    return {name: {one["replica_id"] for one in running} for name, running in replicas(details).items()}


def save_plot(watched: Watched, path: Path) -> None:
    """Replicas and answered requests over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for number, stage in enumerate(STAGES):
        points = [(at, now.get(stage, 0) + 0.05 * (number - 2)) for at, now in watched.samples]
        upper.step(*zip(*points, strict=True), where="post", label=stage)
    upper.set_ylabel("replicas that run")
    upper.legend(ncols=len(STAGES), loc="upper center")
    ended = sorted(start + at for start, steady in watched.loads for at, _ in steady.ended)
    last = int(watched.samples[-1][0]) + 1
    rates = [sum(at <= one < at + 5 for one in ended) / 5 for at in range(0, last, 5)]
    lower.plot(range(0, last, 5), rates, drawstyle="steps-post")
    lower.set(xlabel="seconds", ylabel="answered requests/s")
    for at, name in watched.phases:
        for axes in (upper, lower):
            axes.axvline(at, color="grey", linewidth=0.7)
        lower.annotate(name, (at, lower.get_ylim()[1]), rotation=90, fontsize=8, va="top")
    figure.savefig(path, dpi=120)


def run(folder: Path, questions: list[str], clients: int, work: Path, plot: Path) -> dict[str, Any]:
    """The report. Raises BenchError."""
    variables = {"RAG_DATA_DIR": str(work / "data")}
    say(f"ingesting {folder}")
    ingested = ingest(variables, folder)
    say("starting Ray and the service")
    with started_cluster(work, variables, cpus=16) as cluster:
        cluster.deploy(config(cluster, 1, 3))
        startup_s = cluster.wait_until_running()
        rows, watched = asyncio.run(measure(cluster, questions, clients))
        say("stopping")
    save_plot(watched, plot)
    grew = {stage: watched.most(0, stage) for stage in STAGES}
    return {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "clients": clients,
        "chunks": ingested["chunks"],
        "startup_s": startup_s,
        "phases": rows,
        "samples": [[round(at, 1), counts] for at, counts in watched.samples],
        "most": grew,
        "ok": not any(row["failed"] for row in rows) and all(row["result"] for row in rows),
    }


def main() -> int:
    """Prints the table and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="documents to ingest")
    parser.add_argument("questions", type=Path, help="a file of questions about them, one a line")
    parser.add_argument("--clients", type=int, default=16, help="how many ask at once (16)")
    parser.add_argument("--plot", type=Path, default=Path("build/scaling.png"), help="the plot (build/scaling.png)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the nodes are ended then, too
    chosen.plot.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not (questions := read_questions(chosen.questions)):
            raise BenchError(f"{chosen.questions} has no question; write one a line")
        with work_folder() as work:
            report = run(chosen.folder, questions, chosen.clients, work, chosen.plot)
    except (BenchError, RagError, OSError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    print(table(report["phases"]))
    print(json.dumps(report, ensure_ascii=False))
    return 0 if report["ok"] else 1


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each phase; the stages' columns are the most replicas that ran."""
    header = ["phase", "s", "answered", "failed", "degraded", "p50 ms", "p99 ms", *STAGES, "as meant"]
    cells = []
    for row in rows:
        counts = [row["answered"], sum(row["failed"].values()), sum(row["degraded"].values())]
        meant = "yes" if row["result"] else "no"
        cells.append(
            [row["phase"], row["seconds"], *counts, row["p50_ms"], row["p99_ms"], *row["most"].values(), meant]
        )
    return format_table(header, cells)


if __name__ == "__main__":
    sys.exit(main())
