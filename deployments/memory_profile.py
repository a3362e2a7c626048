"""`rag profile-memory`: memray in the process of a running replica, for some seconds; nothing restarts.

The tracker is started from within, by Ray's `__ray_call__`. `memray attach`, which Ray's dashboard uses, wants a
debugger on the node and the right to trace other processes, and no dashboard runs with `rag serve`. Whoever can join
the service's Ray can do it, and nobody over HTTP.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag.errors import SettingsError, StageError

REMEDY = "install the project's extra `profile` in the environment that runs the service, and restart it"
# What a replica may take, beyond the seconds asked for, to begin, and to write what it tracked.
SPARE_S = 60.0
_TRACKED = "tracked.bin"
_timers: dict[str, threading.Timer] = {}  # of this replica, by its folder


@dataclass(frozen=True, slots=True)
class MemoryProfile:
    """The flamegraph of `replica` in the file `path`; `peak_bytes` is the most that was held at once of what was
    allocated meanwhile, `resident_bytes` all that the process had before."""

    replica: str
    path: Path
    peak_bytes: int
    resident_bytes: int


def profile_memory(address: str, stage: str, seconds: float, folder: Path) -> MemoryProfile:
    """Joins the Ray of a running service, and tracks the replica of `stage` that has most memory.

    `stage` is a deployment's name, in any case. Raises SettingsError for one that there is not and where memray is not
    installed, and StageError when no service runs, none of its replicas, or when that one ends meanwhile.
    """
    if importlib.util.find_spec("memray") is None:
        raise SettingsError(f"memray is not installed here; {REMEDY}")
    import ray
    from ray.exceptions import RayError

    from deployments.ray_session import join_ray

    join_ray(address)
    try:
        replicas = _replicas_of(stage)
        sizes = {name: _call(actor, resident_bytes) for name, actor in replicas.items()}
        name = max(sizes, key=lambda one: sizes[one])
        tracked = _track(replicas[name], seconds)
    except RayError as error:
        raise StageError(stage, f"no profile was made: {str(error).splitlines()[-1].strip()}") from error
    finally:
        ray.shutdown()
    path = folder / f"memory-{name.replace('#', '-')}-{time.strftime('%Y%m%d-%H%M%S')}.html"
    return MemoryProfile(name, path, draw(tracked, path), sizes[name])


def _replicas_of(stage: str) -> dict[str, Any]:
    """The actors of the running replicas by their `Deployment#id`."""
    import ray
    from ray.serve.context import _get_global_client

    from deployments.launch import APP_NAME

    application = _get_global_client().get_serve_details()["applications"].get(APP_NAME)
    if application is None:
        raise StageError(stage, f"no application {APP_NAME!r} runs there; start the service with `rag serve`")
    deployments = {name.lower(): found for name, found in application["deployments"].items()}
    if (deployment := deployments.get(stage.lower())) is None:
        raise SettingsError(f"there is no stage {stage!r}; these run: {', '.join(sorted(deployments))}")
    running = [one for one in deployment["replicas"] if one["state"] == "RUNNING"]
    if not running:
        raise StageError(stage, "none of its replicas runs; `/readyz` and its log say why")
    return {
        f"{deployment['name']}#{one['replica_id']}": ray.get_actor(one["actor_name"], namespace="serve")
        for one in running
    }


def _call(actor: Any, function: Any, *arguments: Any) -> Any:
    import ray

    return ray.get(actor.__ray_call__.remote(function, *arguments), timeout=SPARE_S)


def _track(actor: Any, seconds: float) -> bytes:
    folder = _call(actor, start_tracking, seconds)
    until = time.monotonic() + seconds + SPARE_S
    time.sleep(seconds)
    while (tracked := _call(actor, take_tracked, folder)) is None:
        if time.monotonic() > until:
            raise StageError("memory", f"memray has not ended {SPARE_S:g} s after its time")
        time.sleep(0.2)
    return bytes(tracked)


def resident_bytes(_: object) -> int:
    """In a replica: the memory of its process, without that of its children, such as vLLM's engine."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def start_tracking(_: object, seconds: float) -> str:
    """In a replica: tracks its allocations from now on. It ends by itself, whatever becomes of who asked.

    Returns a folder for `take_tracked`. Raises RuntimeError while another profile is being made.
    """
    try:
        import memray
    except ImportError as error:
        raise RuntimeError(f"memray is not installed in the replica's environment; {REMEDY}") from error
    folder = tempfile.mkdtemp(prefix="rag-memory-")
    # Sums in place of each allocation: a file of any length of time is small, and is read once.
    tracker = memray.Tracker(Path(folder) / _TRACKED, file_format=memray.FileFormat.AGGREGATED_ALLOCATIONS)
    try:
        tracker.__enter__()
    except RuntimeError:
        shutil.rmtree(folder)
        raise
    timer = threading.Timer(seconds, tracker.__exit__, (None, None, None))
    timer.daemon = True
    timer.start()
    _timers[folder] = timer
    return folder


def take_tracked(_: object, folder: str) -> bytes | None:
    """In the same replica: what memray wrote, once; None while it still tracks."""
    if _timers[folder].is_alive():
        return None
    del _timers[folder]
    tracked = (Path(folder) / _TRACKED).read_bytes()
    shutil.rmtree(folder)
    return tracked


def draw(tracked: bytes, path: Path) -> int:
    """Writes the flamegraph of the peak as HTML to `path`; gives the peak's bytes."""
    import memray

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(suffix=".bin") as file:
        file.write(tracked)
        file.flush()
        with memray.FileReader(file.name) as reader:
            peak_bytes = int(reader.metadata.peak_memory)
        command = [sys.executable, "-m", "memray", "flamegraph", "--output", os.fspath(path), file.name]
        subprocess.run(command, check=True, capture_output=True)
    return peak_bytes
