"""What clients see while parts of the service are killed: `python -m eval.bench_failures FOLDER QUESTIONS`.

It starts a service of its own (free port, temporary data directory), ingests FOLDER and lets clients ask the questions
(a line each; # starts a comment) one after the other, without pause. Then, part by part: SIGKILL, and the clients go
on until each stage reports itself well and nothing was left out of an answer for a while. `over after` is from the kill
to the last answer that lacked something, or the last failure; a part that is replaced before a question needs it costs
nothing. Exit status 1 when something does not recover. The last line of stdout is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from eval.bench import work_folder
from eval.bench_http import read_questions, say
from eval.bench_service import BenchError, ingest, started_service
from eval.bench_tables import format_table
from eval.hardware import describe_machine, git_commit
from eval.load import Connection, RequestError
from rag.errors import RagError

WHOLE = "whole"
Victims = Callable[[], list[psutil.Process]]


@dataclass(frozen=True, slots=True)
class Pace:
    """How long is asked and waited, in seconds."""

    settle_s: float = 3.0  # asked before the kill, so that it meets questions under way
    least_s: float = 15.0  # asked after it at least: a stage's state may be a few seconds old
    quiet_s: float = 10.0  # for so long nothing may be missing before a part counts as recovered
    limit_s: float = 300.0  # then it counts as lost
    pause_s: float = 0.2  # of a client that was refused, and between looks at the stages


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of one request, and when it ended: `time.perf_counter()` seconds."""

    ended_s: float
    outcome: str


@dataclass(frozen=True, slots=True)
class Row:
    """One part killed: what clients saw from then on, by outcome, and the seconds until the last that was not whole."""

    part: str
    processes: int
    requests: int
    not_whole: dict[str, int]
    over_after_s: float


def to_outcome(answer: dict[str, Any]) -> str:
    """`whole`, or which stages the answer lacks."""
    return f"without {', '.join(answer['degraded'])}" if answer["degraded"] else WHOLE


def summarize(part: str, processes: int, killed_s: float, seen: Sequence[Seen]) -> Row:
    """What was seen after the kill; requests that ended before it are left out."""
    after = [one for one in seen if one.ended_s >= killed_s]
    missed = [one for one in after if one.outcome != WHOLE]
    over_after_s = max((one.ended_s - killed_s for one in missed), default=0.0)
    return Row(part, processes, len(after), dict(Counter(one.outcome for one in missed)), round(over_after_s, 1))


async def ask_on(
    url: str, questions: Sequence[str], first: int, seen: list[Seen], enough: asyncio.Event, pace: Pace
) -> None:
    """One client: asks the questions in turn, from number `first`, until it is `enough`."""
    connection = Connection(url, timeout_s=pace.limit_s)
    number = first
    try:
        while not enough.is_set():
            try:
                outcome = to_outcome(
                    await connection.post_json("/ask", {"question": questions[number % len(questions)]})
                )
            except RequestError as error:
                outcome = str(error)
            seen.append(Seen(time.perf_counter(), outcome))
            if outcome != WHOLE:
                await asyncio.sleep(pace.pause_s)
            number += 1
    finally:
        connection.close()


async def stages_are_well(url: str, pace: Pace) -> bool:
    """Whether `/readyz` has "ok" for every stage, required or not."""
    connection = Connection(url, timeout_s=pace.limit_s)
    try:
        states = json.loads(await connection.request("GET", "/readyz"))["stages"]
    except RequestError:
        return False
    finally:
        connection.close()
    return all(state == "ok" for state in states.values())


async def wait_for_recovery(url: str, killed_s: float, seen: Sequence[Seen], pace: Pace) -> bool:
    """Whether, within `pace.limit_s` of the kill, all stages are well and the latest answers whole."""
    while (now := time.perf_counter()) < killed_s + pace.limit_s:
        await asyncio.sleep(pace.pause_s)
        latest = [one for one in seen if one.ended_s >= max(killed_s, now - pace.quiet_s)]
        quiet = bool(latest) and all(one.outcome == WHOLE for one in latest)
        if now >= killed_s + pace.least_s and quiet and await stages_are_well(url, pace):
            return True
    return False


async def kill_part(
    url: str, part: str, victims: Victims, questions: Sequence[str], clients: int, pace: Pace = Pace()
) -> Row:
    """Kills one part under clients that ask. Raises BenchError when it is not there to kill, or does not recover."""
    dying = victims()
    if not dying:
        raise BenchError(f"no process of the {part} found")
    seen: list[Seen] = []
    enough = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for client in range(clients):
            group.create_task(ask_on(url, questions, client * len(questions) // clients, seen, enough, pace))
        await asyncio.sleep(pace.settle_s)
        killed_s = time.perf_counter()
        for process in dying:
            with suppress(psutil.NoSuchProcess):  # ended with the one before it
                process.kill()
        recovered = await wait_for_recovery(url, killed_s, seen, pace)
        enough.set()
    if not recovered:
        raise BenchError(f"{part}: not recovered within {pace.limit_s:g} s; last seen: {seen[-1].outcome}")
    return summarize(part, len(dying), killed_s, seen)


def parts(service: int, data: Path) -> dict[str, Victims]:
    """Each part that is killed, and what finds its processes. Milvus is no child of the service."""

    def titled(title: str) -> list[psutil.Process]:
        found = []
        for one in psutil.Process(service).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if title in " ".join(one.cmdline()):
                    found.append(one)
        return found

    def replica(deployment: str) -> Victims:
        return lambda: titled(f"ServeReplica:rag:{deployment}")

    def milvus(*pids: str) -> Victims:
        record = data / "milvus" / "server.json"
        return lambda: [psutil.Process(json.loads(record.read_text(encoding="ascii"))[pid]) for pid in pids]

    return {
        "LLM's replica": replica("Generator"),
        "vLLM's engine": lambda: titled("EngineCore"),
        "reranker's replica": replica("Reranker"),
        "embedder's replica": replica("Embedder"),
        "retriever's replica": replica("Retriever"),
        "Milvus": milvus("pid"),
        "Milvus and its keeper": milvus("keeper_pid", "pid"),
        "orchestrator's replica": replica("Orchestrator"),
    }


def run(folder: Path, questions: Sequence[str], clients: int, work: Path) -> dict[str, Any]:
    """The report. Raises BenchError."""
    data = work / "data"
    # The questions come again and again: an answer that is remembered would hide what is down.
    variables = {"RAG_DATA_DIR": str(data), "RAG_CACHE__EMBEDDINGS": "0", "RAG_CACHE__ANSWERS": "0"}
    rows = []
    say("starting the service")
    with started_service(variables, work / "serve.txt") as service:
        say(f"ingesting {folder}")
        ingested = ingest(variables, folder)
        for part, victims in parts(service.pid, data).items():
            say(f"killing: {part}")
            rows.append(asyncio.run(kill_part(service.url, part, victims, questions, clients)))
        say("stopping the service")
    return {
        "commit": git_commit(),
        "hardware": describe_machine(),
        "clients": clients,
        "questions": len(questions),
        "chunks": ingested["chunks"],
        "parts": [asdict(row) for row in rows],
    }


def main() -> int:
    """Prints the table and the JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="documents to ingest")
    parser.add_argument("questions", type=Path, help="a file of questions about them, one a line")
    parser.add_argument("--clients", type=int, default=2, help="how many ask at once (2)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the service is stopped then, too
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
    table = [[one["part"], one["requests"], one["not_whole"], one["over_after_s"]] for one in report["parts"]]
    print(format_table(["killed", "requests", "not whole", "over after, s"], table))
    print(json.dumps(report, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
