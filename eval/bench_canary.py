"""Shares between two LLMs, changed while questions are asked: `python -m eval.bench_canary FOLDER QUESTIONS`.

It starts a service of its own (free port, temporary data directory) with the profile's LLM and a second engine of the
same, `canary`, at 90/10, ingests FOLDER and lets clients ask the questions (a line each; # starts a comment) in turn.
After half of the requests `rag split` makes it 50/50, while they go on. Exit status 1 when a request failed, a process
was replaced or a share is off by more than chance gives once in ten thousand runs. The last line of stdout is one JSON
document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from eval.bench import work_folder
from eval.bench_http import degraded, read_questions, say
from eval.bench_service import RAG, BenchError, ingest, started_service, with_variables
from eval.bench_tables import format_table
from eval.hardware import describe_machine, git_commit
from eval.load import Connection, Load, percentile, run_load
from rag.config import Settings, load_settings
from rag.errors import RagError

CANARY = "canary"
SHARES = {"before": 10.0, "after": 50.0}  # the canary's, of 100
TOLERANCE = 3.9  # standard deviations of a binomial count
LIMIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Row:
    """One part of the run; `share` and `expected` are the canary's, in percent, the latter None while it changes."""

    when: str
    requests: int
    failed: dict[str, int]
    degraded: dict[str, int]
    models: dict[str, int]
    share: float
    expected: float | None
    p50_ms: float | None

    @property
    def is_off(self) -> bool:
        """Whether the share is further from what was asked for than chance explains."""
        if self.expected is None:
            return False
        chance = self.expected / 100
        deviation = 100 * math.sqrt(chance * (1 - chance) / max(self.requests, 1))
        return abs(self.share - self.expected) > TOLERANCE * deviation


def to_row(when: str, load: Load[dict[str, Any]]) -> Row:
    """What a load's answers say."""
    models = Counter(str(answer["model"]) for answer in load.results)
    return Row(
        when,
        len(load.results),
        dict(load.errors),
        degraded(load.results),
        dict(models),
        round(100 * models[CANARY] / max(len(load.results), 1), 1),
        SHARES.get(when),
        percentile(load.latencies_ms, 50),
    )


def variables_for(settings: Settings, data: Path) -> dict[str, str]:
    """The service's: a second engine of the profile's LLM, and the first shares."""
    first = settings.generator
    canary = {**first.model_dump(mode="json"), "model_id": CANARY}
    return {
        "RAG_DATA_DIR": str(data),
        "RAG_GENERATORS": json.dumps([canary]),
        "RAG_SPLIT": json.dumps({first.model_id: 100 - SHARES["before"], CANARY: SHARES["before"]}),
    }


def processes(service: int) -> set[tuple[int, float]]:
    """The replicas and the engines: each one's id and when it began."""
    found = set()
    for one in psutil.Process(service).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            title = " ".join(one.cmdline())
            if "ServeReplica:" in title or "EngineCore" in title:
                found.add((one.pid, one.create_time()))
    return found


def change_split(url: str, variables: dict[str, str], llm: str) -> None:
    """`rag split` to the second shares. Raises BenchError."""
    weights = [f"{llm}={100 - SHARES['after']:g}", f"{CANARY}={SHARES['after']:g}"]
    command = with_variables(variables, [RAG, "split", *weights, "--url", url])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"rag split ended with {done.returncode}: {done.stderr.strip()[-500:]}")


async def measure(
    url: str, questions: Sequence[str], clients: int, requests: int, change: Callable[[], Awaitable[None]]
) -> list[Row]:
    """The rows before, during and after the change."""
    connections = [Connection(url, timeout_s=300.0) for _ in range(clients)]

    def asking(connection: Connection) -> Callable[[int], Awaitable[dict[str, Any]]]:
        return lambda number: connection.post_json("/ask", {"question": questions[number % len(questions)]})

    workers = [asking(connection) for connection in connections]

    async def ask(count: int) -> Load[dict[str, Any]]:
        return await run_load(workers, requests=count, limit_s=LIMIT_S)

    try:
        say(f"{requests // 2} questions at {SHARES['before']:g} %")
        rows = [to_row("before", await ask(requests // 2))]
        say("changing the shares")
        changing = asyncio.ensure_future(change())
        meanwhile: list[Load[dict[str, Any]]] = []
        while not changing.done():
            meanwhile.append(await ask(clients))
        await changing
        rows.append(to_row("changing", _joined(meanwhile)))
        say(f"{requests // 2} questions at {SHARES['after']:g} %")
        return [*rows, to_row("after", await ask(requests // 2))]
    finally:
        for connection in connections:
            connection.close()


def _joined(loads: Sequence[Load[dict[str, Any]]]) -> Load[dict[str, Any]]:
    return Load(
        loads[0].concurrency,
        sum(load.seconds for load in loads),
        [one for load in loads for one in load.latencies_ms],
        [one for load in loads for one in load.results],
        sum((load.errors for load in loads), Counter[str]()),
    )


def run(folder: Path, questions: Sequence[str], clients: int, requests: int, work: Path) -> dict[str, Any]:
    """The report. Raises BenchError."""
    settings = load_settings()
    variables = variables_for(settings, work / "data")
    say("starting the service")
    with started_service(variables, work / "serve.txt") as service:
        say(f"ingesting {folder}")
        ingested = ingest(variables, folder)
        before = processes(service.pid)

        async def change() -> None:
            await asyncio.to_thread(change_split, service.url, variables, settings.generator.model_id)

        rows = asyncio.run(measure(service.url, questions, clients, requests, change))
        after = processes(service.pid)
        say("stopping the service")
    return {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "clients": clients,
        "questions": len(questions),
        "chunks": ingested["chunks"],
        "parts": [asdict(row) for row in rows],
        "processes": len(before),
        "replaced": len(before ^ after),
        "ok": before == after and not any(row.failed or row.is_off for row in rows),
    }


def main() -> int:
    """Prints the table and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="documents to ingest")
    parser.add_argument("questions", type=Path, help="a file of questions about them, one a line")
    parser.add_argument("--clients", type=int, default=8, help="how many ask at once (8)")
    parser.add_argument("--requests", type=int, default=1000, help="half before, half after the change (1000)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the service is stopped then, too
    try:
        if not (questions := read_questions(chosen.questions)):
            raise BenchError(f"{chosen.questions} has no question; write one a line")
        with work_folder() as work:
            report = run(chosen.folder, questions, chosen.clients, chosen.requests, work)
    except (BenchError, RagError, OSError) as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("stopped")
        return 130
    columns = ("when", "requests", "failed", "degraded", "models", "share", "expected", "p50_ms")
    table = [[one[column] for column in columns] for one in report["parts"]]
    print(format_table(["when", "answered", "failed", "degraded", "models", "canary, %", "asked for", "p50 ms"], table))
    print(f"{report['processes']} replicas and engines, {report['replaced']} replaced")
    print(json.dumps(report, ensure_ascii=False))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
