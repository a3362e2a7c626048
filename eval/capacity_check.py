"""The capacity model held against this machine: `python -m eval.capacity_check FOLDER QUESTIONS [--route search|ask]`.

A service of its own with the embedded profile, its caches off, FOLDER ingested. What the model is fitted on: the raw
models in a process of their own at several batch sizes, what two busy cores do together, and ONE client of the service
(CPU seconds of each process a request, and its latencies), before the loads and again after them, since a machine that
others share is faster at one time than at another. From these the simulation (eval.queueing) predicts the rates for
more clients, on the cores that processes which are not the service's left to it in that time; `other_cores` says how
many they took, and with more than a tenth of one the figures are of a busy machine. Every load asks the one client's
own requests, whole rounds of a sample of the questions, each with its number: what a question needs of the LLM differs
by far more than the loads do. Exit status 1 when a predicted rate is off by more than 15 %. The last line of stdout is
one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any

from eval.bench import run_raw, work_folder
from eval.bench_http import read_questions, say
from eval.bench_load import Body, asks, searches
from eval.bench_service import BenchError, ingest, started_service
from eval.bench_tables import format_table
from eval.hardware import TreeUse, busy_s, cpu_by_group, describe_machine, git_commit, measure_speeds
from eval.load import Connection, Load, run_load
from eval.queueing import Branch, Phase, Simulated, Station, Visit, simulate_closed
from rag.errors import RagError

TOLERANCE = 0.15
BATCHES = (1, 2, 4, 8)
CLIENTS = {"search": (2, 4, 8, 16), "ask": (2, 4, 8)}
SAMPLE = {"search": 200, "ask": 40}  # questions
SIMULATED = 3000  # requests
LEAST_SPEED = 0.05  # of a core, however much others take
# Every replica of the check has one thread for its model: a second one would spin while it waits for the first.
VARIABLES = {
    "RAG_CACHE__EMBEDDINGS": "0",
    "RAG_CACHE__ANSWERS": "0",
    "RAG_EMBEDDER__THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "RAG_SERVE__MAX_INFLIGHT": "16",
}
# Which stages see a request, in which order, and how often; what is named once here works once for a request.
SEARCHING: list[list[list[str]]] = [
    [["client", "HAProxy", "Orchestrator"]],
    [["Embedder", "Retriever", "Milvus"], ["Retriever", "Milvus"]],
    [["Retriever", "Milvus", "Reranker", "Ray"]],
    [["pause"]],
    [["Orchestrator", "client"]],
]
ANSWERING = [*SEARCHING[:-1], [["Orchestrator", "Reranker", "Generator"]], [["LLM"]], *SEARCHING[-1:]]


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds of a batch of b: `fixed_s + b * each_s`."""

    fixed_s: float
    each_s: float


@dataclass(frozen=True, slots=True)
class Fit:
    """What one client saw: CPU seconds a request by group of processes, each request's latency and LLM tokens, and the
    mean seconds that it waited for the LLM: the engine's threads spin, so that its CPU time says only how many work."""

    cpu_s: dict[str, float]
    idle_cores: float
    latencies_s: list[float]
    tokens: list[int]
    generate_s: float = 0.0
    other_cores: float = 0.0  # what was busy for somebody else meanwhile


def fit_line(points: Sequence[tuple[int, float]]) -> Line:
    """Least squares through (batch, seconds), neither part below 0."""
    xs, ys = [float(size) for size, _ in points], [seconds for _, seconds in points]
    middle_x, middle_y = mean(xs), mean(ys)
    spread = sum((x - middle_x) ** 2 for x in xs)
    each = max(sum((x - middle_x) * (y - middle_y) for x, y in zip(xs, ys, strict=True)) / spread, 0.0)
    fixed = middle_y - each * middle_x
    if fixed < 0:
        return Line(0.0, sum(x * y for x, y in zip(xs, ys, strict=True)) / sum(x * x for x in xs))
    return Line(fixed, each)


def within(line: Line, cpu_s: float) -> Line:
    """The line, made smaller where one call took less CPU time in the service than it has for a batch of one."""
    share = min(cpu_s / (line.fixed_s + line.each_s), 1.0) if line.fixed_s + line.each_s else 0.0
    return Line(line.fixed_s * share, line.each_s * share)


class Model:
    """Stations and a flow of this machine's service, from what one client saw and what the raw models took."""

    def __init__(self, route: str, fit: Fit, embed: Line, decode: Line, speeds: Sequence[float]) -> None:
        self._way = SEARCHING if route == "search" else ANSWERING
        self._fit = fit
        visits = Counter(name for phase in self._way for branch in phase for name in branch)
        known = {name: fit.cpu_s.get(name, 0.0) for name in visits}
        # Whatever else worked for a request worked for Ray.
        known["Ray"] += sum(spent for name, spent in fit.cpu_s.items() if name not in {*visits, "vLLM engine"})
        self._embed = within(embed, known["Embedder"])
        self._work_s = {name: spent / visits[name] for name, spent in known.items()}
        self._work_s["Embedder"] -= self._embed.fixed_s
        tokens = mean(fit.tokens)
        # What it waited for the LLM, less what others had of the cores meanwhile, and what its replica did of it.
        free = max(1 - (fit.idle_cores + fit.other_cores) / len(speeds), LEAST_SPEED)
        self._llm_s = max(fit.generate_s * free - known.get("Generator", 0.0), 0.0)
        self._decode = within(decode, self._llm_s / tokens) if tokens else Line(0.0, 0.0)
        answered = sum(count > 0 for count in fit.tokens) or 1
        decoding_s = tokens * (self._decode.fixed_s + self._decode.each_s)
        self._prefill_s = max(self._llm_s - decoding_s, 0.0) * len(fit.tokens) / answered
        engine_s = fit.cpu_s.get("vLLM engine", 0.0)
        self._llm_threads = min(max(round(engine_s / self._llm_s), 1), len(speeds)) if self._llm_s else 1
        self._speeds = speeds
        self._pause_s = 0.0
        self._pause_s = max(mean(fit.latencies_s) - mean(self.run(1, fit.other_cores).latencies_s), 0.0)

    @property
    def described(self) -> dict[str, Any]:
        """Its numbers, in ms."""
        return {
            "work_ms": {name: round(spent * 1000, 3) for name, spent in self._work_s.items()},
            "embed_batch_ms": [round(1000 * self._embed.fixed_s, 3), round(1000 * self._embed.each_s, 3)],
            "decode_step_ms": [round(1000 * self._decode.fixed_s, 3), round(1000 * self._decode.each_s, 3)],
            "llm_threads": self._llm_threads,
            "prefill_ms": round(1000 * self._prefill_s, 3),
            "pause_ms": round(1000 * self._pause_s, 3),
            "idle_cores": round(self._fit.idle_cores, 3),
        }

    def service_times(self, memory_mib: Mapping[str, float]) -> dict[str, Any]:
        """One client's figures as eval.capacity reads them (--service-times); memory by group of processes."""
        cpu_s, tokens = self._fit.cpu_s, mean(self._fit.tokens)
        outside = sum(cpu_s.get(name, 0.0) for name in ("HAProxy", "Ray", "Orchestrator"))
        embedding_s = cpu_s["Embedder"] - self._embed.fixed_s
        stages: dict[str, dict[str, Any]] = {
            "orchestrator": {"call_s": outside},
            "embedder": {"call_s": embedding_s, "fixed_s": self._embed.fixed_s, "max_batch": BATCHES[-1]},
            "retriever": {"call_s": cpu_s["Retriever"]},
            "reranker": {"call_s": cpu_s["Reranker"], "wanted": "new"},
        }
        if tokens:
            reading_s = (self._llm_s + cpu_s["Generator"]) / tokens - self._decode.fixed_s
            stages["generator"] = {"call_s": reading_s, "fixed_s": self._decode.fixed_s, "max_batch": BATCHES[-1]}
            stages["generator"] |= {"calls": tokens, "wanted": "generated", "replica_cores": self._llm_threads}
        for name, stage in stages.items():
            engine = memory_mib.get("vLLM engine", 0.0) if name == "generator" else 0.0
            stage["replica_gib"] = round((memory_mib.get(name.capitalize(), 0.0) + engine) / 1024, 2)
            stage |= {key: float(f"{one:.3g}") for key, one in stage.items() if isinstance(one, float)}
        return {"stages": stages}

    def run(self, clients: int, other_cores: float = 0.0) -> Simulated:
        """A closed loop of so many clients on what is left of the cores by others, and by what keeps Ray busy while
        nothing is asked."""
        cores = len(self._speeds)
        busy = (self._fit.idle_cores + other_cores) / cores
        speeds = [max(speed - busy * (index + 1), LEAST_SPEED) for index, speed in enumerate(self._speeds)]
        stations = [Station(name, cores if name in {"HAProxy", "Milvus", "Ray"} else 1) for name in self._work_s]
        stations = [one for one in stations if one.name not in {"Embedder", "LLM", "pause"}]
        stations += [
            Station("Embedder", 1, 64, self._embed.fixed_s),
            Station("LLM", 1, 16, self._decode.fixed_s, self._llm_threads),
            Station("pause", None),
        ]
        return simulate_closed(stations, self._flow, clients=clients, requests=SIMULATED, speeds=speeds)

    def _flow(self, random: Random) -> Sequence[Phase]:
        number = random.randrange(len(self._fit.latencies_s))
        tokens = self._fit.tokens[number]
        # Without the LLM a request that took longer worked more in every stage; with it, its tokens say how long.
        share = 1.0 if self._way is ANSWERING else self._fit.latencies_s[number] / mean(self._fit.latencies_s)

        def branch(names: list[str]) -> Branch:
            if names == ["pause"]:
                return [Visit("pause", self._pause_s)]
            if names == ["LLM"]:
                # The step that reads the prompt writes the first token.
                first, each_s = Visit("LLM", self._prefill_s + self._decode.each_s), self._decode.each_s
                return [first, *[Visit("LLM", each_s)] * (tokens - 1)]
            return [Visit(name, self._work_s[name] * share) for name in names]

        return [[branch(names) for names in phase] for phase in self._way if phase != [["LLM"]] or tokens]


def raw_lines(questions: list[str], route: str, work: Path) -> tuple[Line, Line, dict[str, Any]]:
    """Of the embedder and of the LLM's decoding, by batch, each in a process of its own."""
    environment = {"RAG_EMBEDDER__THREADS": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    task = {"texts": questions[:64], "passages": questions[:8], "texts_per_call": BATCHES, "limit_s": 3}
    calls = run_raw("encode", task, environment, work)["calls"]
    embed = fit_line([(one["texts_per_call"], one["texts_per_call"] / one["texts_per_s"]) for one in calls])
    if route == "search":
        return embed, Line(0.0, 0.0), {"embed": calls}
    prompts = [[{"role": "user", "content": f"Answer in a few words. {question}"}] for question in questions[:32]]
    runs = [{"concurrency": size, "requests": 4 * size} for size in BATCHES]
    asked = {"prompts": prompts, "runs": runs, "limit_s": 40, "max_tokens": 32, "warm_up_tokens": 4}
    written = run_raw("generate", asked, environment, work)["runs"]
    # The time between two tokens: their rate has the prompts' reading in it, which here is a service time of its own.
    decode = fit_line([(one["concurrency"], one["tpot_p50_ms"] / 1000) for one in written])
    return embed, decode, {"embed": calls, "decode": written}


async def load(url: str, clients: int, body: Body, requests: int) -> Load[dict[str, Any]]:
    """A closed loop of so many requests, always the same ones. Raises BenchError when one fails or lacks a stage:
    what was left out was not paid for."""
    connections = [Connection(url, timeout_s=120.0) for _ in range(clients)]

    def worker(connection: Connection) -> Any:
        async def call(number: int) -> dict[str, Any]:
            path, asked = body(number)
            return await connection.post_json(path, asked)

        return call

    try:
        found = await run_load([worker(one) for one in connections], requests=requests, limit_s=math.inf)
    finally:
        for one in connections:
            one.close()
    lacking = Counter(stage for answer in found.results for stage in answer["degraded"])
    if found.errors or lacking:
        raise BenchError(f"at {clients} clients {dict(found.errors)} failed and {dict(lacking)} were left out")
    return found


async def fit_one_client(url: str, pid: int, body: Body, requests: int, seconds: float) -> Fit:
    """CPU time by group of processes: half of the seconds while nothing is asked, and while one client asks."""
    idle = cpu_by_group(pid)
    await asyncio.sleep(seconds / 2)
    idle_rate = {name: 2 * (spent - idle.get(name, 0.0)) / seconds for name, spent in cpu_by_group(pid).items()}
    found, spent, other = await watched_load(url, pid, 1, body, requests)
    cpu_s = {name: (one - idle_rate.get(name, 0.0) * found.seconds) / len(found.results) for name, one in spent.items()}
    return Fit(
        {name: max(one, 0.0) for name, one in cpu_s.items()},
        sum(idle_rate.values()),
        [latency / 1000 for latency in found.latencies_ms],
        [one.get("usage", {}).get("completion_tokens", 0) for one in found.results],
        sum(one["timings_ms"].get("generate", 0.0) for one in found.results) / 1000 / len(found.results),
        other,
    )


def both(first: Fit, last: Fit) -> Fit:
    """The mean of two over the same requests; latencies and tokens of both."""
    names = {**first.cpu_s, **last.cpu_s}
    return Fit(
        {name: (first.cpu_s.get(name, 0.0) + last.cpu_s.get(name, 0.0)) / 2 for name in names},
        (first.idle_cores + last.idle_cores) / 2,
        first.latencies_s + last.latencies_s,
        first.tokens + last.tokens,
        (first.generate_s + last.generate_s) / 2,
        (first.other_cores + last.other_cores) / 2,
    )


async def watched_load(
    url: str, pid: int, clients: int, body: Body, requests: int
) -> tuple[Load[dict[str, Any]], dict[str, float], float]:
    """A load, the CPU seconds that each group of processes and the client had in it, and the cores that were busy for
    somebody else: a machine that is not alone is another machine."""
    before, own, busy = cpu_by_group(pid), time.process_time(), busy_s()
    found = await load(url, clients, body, requests)
    after = cpu_by_group(pid)
    spent = {"client": time.process_time() - own, **{name: after[name] - before.get(name, 0.0) for name in after}}
    return found, spent, max(busy_s() - busy - sum(spent.values()), 0.0) / found.seconds


def run(folder: Path, questions: list[str], route: str, seconds: float, work: Path) -> dict[str, Any]:
    """The report. Raises BenchError."""
    variables = {**VARIABLES, "RAG_DATA_DIR": str(work / "data")}
    body = searches(questions) if route == "search" else asks(questions)
    say("the raw models, and what the cores do together")
    speeds = measure_speeds()
    embed, decode, raw = raw_lines(questions, route, work)
    say("starting the service")
    with started_service(variables, work / "serve.txt") as service:
        ingested = ingest(variables, folder)
        say("one client")
        warm_up = asyncio.run(load(service.url, 1, body, math.ceil(len(questions) / 4)))
        requests = whole_rounds(len(questions), warm_up.per_s, seconds)
        first = asyncio.run(fit_one_client(service.url, service.pid, body, requests, seconds))
        loads = []
        for clients in CLIENTS[route]:
            say(f"{clients} clients")
            loads.append(asyncio.run(watched_load(service.url, service.pid, clients, body, requests)))
        say("one client again")
        last = asyncio.run(fit_one_client(service.url, service.pid, body, requests, seconds))
        with TreeUse(service.pid) as memory:
            time.sleep(1)
        say("stopping")
    fit = both(first, last)
    model = Model(route, fit, embed, decode, speeds)
    rows = []
    for clients, (found, spent, other) in zip(CLIENTS[route], loads, strict=True):
        cpu_ms = {name: round(1000 * one / len(found.results), 2) for name, one in spent.items()}
        # Of this load the prediction knows what others took of the cores, and nothing of the service.
        row = compare(clients, model.run(clients, other), found)
        rows.append({**row, "other_cores": round(other, 3), "cpu_ms_a_request": cpu_ms})
    return {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "route": route,
        "chunks": ingested["chunks"],
        "raw": raw,
        "core_speeds": [round(speed, 3) for speed in speeds],
        "one_client": {
            "requests": len(fit.latencies_s),
            "mean_ms_before_and_after": [round(1000 * mean(one.latencies_s), 2) for one in (first, last)],
            "mean_ms": round(1000 * mean(fit.latencies_s), 2),
            "tokens": round(mean(fit.tokens), 2),
            "generate_ms": round(1000 * fit.generate_s, 2),
            "other_cores": round(fit.other_cores, 3),
            "cpu_ms_a_request": {name: round(1000 * one, 3) for name, one in fit.cpu_s.items()},
        },
        "model": model.described,
        "service_times": {
            "source": f"one client of /{route}, {describe_machine()['cpu_model']}",
            **model.service_times(memory.summary()["pss_at_peak_by_group_mib"]),
        },
        "curve": rows,
        "ok": all(abs(row["ratio"] - 1) <= TOLERANCE for row in rows),
    }


def whole_rounds(questions: int, per_s: float, seconds: float) -> int:
    """Requests that ask every question equally often, as many as take so many seconds at least at such a rate."""
    return math.ceil(seconds * per_s / questions) * questions


def compare(clients: int, predicted: Simulated, found: Load[Any]) -> dict[str, Any]:
    """Predicted beside measured; `ratio` is of the rates."""
    measured = found.summary()
    return {
        "clients": clients,
        "predicted_per_s": round(predicted.per_s, 2),
        "measured_per_s": round(found.per_s, 2),
        "ratio": round(predicted.per_s / found.per_s, 3),
        "predicted_p50_ms": predicted.quantile_ms(50),
        "measured_p50_ms": measured["p50_ms"],
        "predicted_p95_ms": predicted.quantile_ms(95),
        "measured_p95_ms": measured["p95_ms"],
        "requests": len(found.results),
    }


def table(report: dict[str, Any]) -> str:
    """A line for each number of clients."""
    header = ["clients", "predicted/s", "measured/s", "ratio", "p50 ms", "measured", "p95 ms", "measured", "requests"]
    rows = [[*list(row.values())[: len(header)], row["other_cores"]] for row in report["curve"]]
    return format_table([*header, "others' cores"], rows)


def main() -> int:
    """Prints the table and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="documents to ingest")
    parser.add_argument("questions", type=Path, help="a file of questions about them, one a line")
    parser.add_argument("--route", choices=sorted(CLIENTS), default="search", help="what is asked (search)")
    parser.add_argument("--sample", type=int, help="so many of the questions, by chance (search 200, ask 40)")
    parser.add_argument("--seconds", type=float, default=20.0, help="that one client has at least (20)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the service is ended then, too
    try:
        if chosen.seconds <= 0 or (chosen.sample is not None and chosen.sample < 1):
            raise BenchError("--seconds has to be more than 0, and --sample 1 or more")
        if not (questions := read_questions(chosen.questions)):
            raise BenchError(f"{chosen.questions} has no question; write one a line")
        sample = Random(0).sample(questions, min(chosen.sample or SAMPLE[chosen.route], len(questions)))
        with work_folder() as work:
            report = run(chosen.folder, sample, chosen.route, chosen.seconds, work)
    except (BenchError, RagError, OSError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    print(table(report))
    print(json.dumps(report, ensure_ascii=False))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
