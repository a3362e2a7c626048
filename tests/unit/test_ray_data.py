"""What Ray raises, as an error with its remedy."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray.data import DataContext
from ray.data._internal.execution.no_progress_guard import NoProgressGuard
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import NodeDiedError

from deployments.ray_data import failures_named, ray_head, set_up
from rag.errors import StageError


def test_a_run_may_make_no_progress_for_as_long_as_a_document_takes() -> None:
    context = DataContext()
    assert NoProgressGuard({}, context.execution_no_progress_timeout_s).enabled
    set_up(context)
    assert not NoProgressGuard({}, context.execution_no_progress_timeout_s).enabled


@pytest.mark.parametrize("kind", [ExecutionTimeoutError, NodeDiedError, ConnectionError])
def test_what_ray_raises_names_its_logs(kind: type[Exception]) -> None:
    with pytest.raises(StageError, match="ingest: it broke; look there"), failures_named("ingest", "look there"):
        raise kind("it broke")


def test_what_joining_raises_names_the_logs_and_what_is_not_rays_is_left_as_it_is() -> None:
    joining = failures_named("ingest", "look there", RuntimeError)
    with pytest.raises(StageError, match="ingest: Version mismatch; look there"), joining:
        raise RuntimeError("Version mismatch")
    with pytest.raises(RuntimeError, match="ours"), failures_named("ingest", "look there"):
        raise RuntimeError("ours")


def test_a_head_runs_apart_from_ctrl_c_and_ends_when_its_stdin_is_closed() -> None:
    program = "import os, sys; print(os.getpid(), os.getsid(0), flush=True); sys.stdin.read()"
    with ray_head([sys.executable, "-c", program], "ingest", "look there") as printed:
        process, session = map(int, printed.split())
        assert psutil.pid_exists(process)
        assert session == process != os.getsid(0)
    assert not psutil.pid_exists(process)


def test_a_head_that_never_starts_is_killed_with_its_children_and_named_with_its_logs(tmp_path: Path) -> None:
    written = tmp_path / "pid"
    child = f"echo $$ > {written}; exec sleep 300"
    hangs = ray_head(["bash", "-c", f"bash -c '{child}'; true"], "ingest", "look there", limit_s=2)
    with pytest.raises(StageError, match="Ray did not start within 2 s; look there"), hangs:
        pass
    left, until = int(written.read_text()), time.monotonic() + 10
    while psutil.pid_exists(left) and psutil.Process(left).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_head_that_ends_at_once_is_named_with_its_logs() -> None:
    with pytest.raises(StageError, match="Ray did not start; look there"), ray_head(["true"], "ingest", "look there"):
        pass
