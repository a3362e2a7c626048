"""Ray Data for a command of ours: a Ray started for it, or joined, silent, and ended with it."""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.ray_session import expect_token, join_ray, joined_address, ray_dir_of
from rag.config import Settings
from rag.errors import SettingsError, StageError

if TYPE_CHECKING:
    from ray.data import DataContext

_START_LIMIT_S = 120.0  # a busy machine takes twenty


@contextmanager
def ray_data(settings: Settings, name: str, num_cpus: int) -> Iterator[DataContext]:
    """Ray started or joined for the command `name`; what Ray and vLLM print goes to the file of that name in `logs`.

    A Ray of our own counts `num_cpus` beside this machine's. Yields Ray Data's context, to be set before the first
    dataset. Raises SettingsError when the log cannot be written or the Ray that RAY_ADDRESS names cannot be joined, and
    StageError naming the logs when Ray fails.
    """
    log = settings.data_dir / "logs" / f"{name}.log"
    ray_dir = ray_dir_of(settings, f"ray-{name}")
    logs = f"what Ray printed is in {log}, its own logs in {ray_dir}"
    with _chatter_to(log), _ray_address(settings, ray_dir, name, num_cpus, logs) as address:
        import ray
        from ray.data import DataContext

        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):  # the other writes to Ray's log
                handler.setLevel(logging.CRITICAL)
        try:
            with failures_named(name, logs, RuntimeError, ValueError, OSError):
                join_ray(address)
            context = DataContext.get_current()
            set_up(context)
            with failures_named(name, logs):
                yield context
        finally:
            ray.shutdown()


def set_up(context: DataContext) -> None:
    """Ray Data silent, and as slow as its rows are: a scanned document may take an hour."""
    context.enable_progress_bars = False
    context.execution_no_progress_timeout_s = -1


@contextmanager
def failures_named(name: str, logs: str, *more: type[Exception]) -> Iterator[None]:
    """What Ray and Ray Data raise, and `more`, as StageError with the logs to look into."""
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    try:
        yield
    except (RayError, ExecutionTimeoutError, ConnectionError, *more) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StageError(name, f"{lines[-1] if lines else type(error).__name__}; {logs}") from error


@contextmanager
def _ray_address(settings: Settings, ray_dir: Path, name: str, num_cpus: int, logs: str) -> Iterator[str]:
    """Of the Ray that RAY_ADDRESS names, else of one in a process that ends with the block, or with this process."""
    if (joined := joined_address()) is not None:
        yield joined
        return
    what = [str(ray_dir), str((os.cpu_count() or 1) + num_cpus), str(settings.serve.object_store_bytes)]
    command = [sys.executable, "-m", "deployments.ray_head", *what]
    with ray_head(command, name, logs) as address:
        expect_token()
        yield address


@contextmanager
def ray_head(command: list[str], name: str, logs: str, limit_s: float = _START_LIMIT_S) -> Iterator[str]:
    """The address that the command prints; its stdin is closed with the block. Raises StageError naming the logs."""
    pipe = subprocess.PIPE
    # In a session of its own: Ctrl-C is this process's to answer, while Ray still runs.
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True) as head:
        assert head.stdin is not None
        assert head.stdout is not None
        with head.stdin:
            if not select.select([head.stdout], [], [], limit_s)[0]:
                os.killpg(head.pid, signal.SIGKILL)
                raise StageError(name, f"Ray did not start within {limit_s:.0f} s; {logs}")
            address = head.stdout.readline().strip()
            if not address:
                raise StageError(name, f"Ray did not start; {logs}")
            yield address


@contextmanager
def _chatter_to(path: Path) -> Iterator[None]:
    """File descriptors 1 and 2 to a file, while Python's own sys.stderr stays where it was: results come afterwards."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SettingsError(f"{path} cannot be written ({error.strerror}); set RAG_DATA_DIR") from error
    sys.stdout.flush()
    sys.stderr.flush()
    results, real, python = os.dup(1), os.dup(2), sys.stderr
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stderr = os.fdopen(real, "w", buffering=1, encoding=python.encoding, errors=python.errors)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(results, 1)
        os.close(results)
        sys.stderr.flush()
        os.dup2(sys.stderr.fileno(), 2)
        sys.stderr.close()
        sys.stderr = python
