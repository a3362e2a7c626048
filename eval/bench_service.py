"""A service of the benchmark's own: `rag serve` on a free port with an own data directory, and the other commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from eval.ports import free_ports

HOST = "127.0.0.1"
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
RAG = str(Path(sys.executable).with_name("rag"))


class BenchError(Exception):
    """The benchmark cannot go on; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Started:
    """A running service; `startup_s` has the seconds of each step and their total."""

    url: str
    pid: int
    startup_s: dict[str, float]


def with_variables(variables: dict[str, str], command: list[str]) -> list[str]:
    """The command with environment variables set besides those that this process has."""
    return ["env", *(f"{name}={value}" for name, value in variables.items()), *command]


@contextmanager
def started_service(variables: dict[str, str], log: Path) -> Iterator[Started]:
    """Starts `rag serve`, yields when it is ready, stops it with SIGINT. Raises BenchError when it does not start."""
    (port,) = free_ports(1)
    command = with_variables(variables, [RAG, "serve", "--host", HOST, "--port", str(port)])
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        began = time.perf_counter()
        steps_s = _wait_until_ready(process, log, began + READY_TIMEOUT_S)
        total_s = round(time.perf_counter() - began, 1)
        yield Started(f"http://{HOST}:{port}", process.pid, {**steps_s, "command_to_ready": total_s})
    finally:
        _stop(process)


def ingest(variables: dict[str, str], folder: Path) -> dict[str, Any]:
    """`rag ingest` of a folder: its report. Raises BenchError when a document fails."""
    command = with_variables(variables, [RAG, "ingest", str(folder), "--json"])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"rag ingest {folder} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def run_child(command: list[str], log: Path, timeout_s: float) -> None:
    """Runs a command to its end; what it prints goes to a file. Raises BenchError when it fails or takes too long.

    Whatever it started ends with it: an engine whose parent died would stay, with its memory.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        status = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(command)} took more than {timeout_s:g} s: {tail(log)}") from error
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if status:
        raise BenchError(f"{' '.join(command)} ended with {status}: {tail(log)}")


def parse_steps(line: str) -> dict[str, float]:
    """Seconds by step of `rag serve`'s ready line."""
    return {name: float(seconds) for name, seconds in re.findall(r"(\w+) ([\d.e-]+) s\b", line)}


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, deadline: float) -> dict[str, float]:
    while time.perf_counter() < deadline:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if line.startswith("ready:") and line.endswith("\n"):
                return parse_steps(line)
        if process.poll() is not None:
            raise BenchError(f"rag serve ended with {process.returncode}: {tail(log)}")
        time.sleep(0.2)
    raise BenchError(f"rag serve was not ready within {READY_TIMEOUT_S:g} s: {tail(log)}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
    kill_tree(process)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that did not end, and everything below it."""
    if process.poll() is not None:
        return
    tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in tree:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


def tail(log: Path) -> str:
    """The last words of a log file."""
    return log.read_text(encoding="utf-8", errors="replace").strip()[-800:]
