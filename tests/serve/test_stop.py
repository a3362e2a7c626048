"""How a process with a Ray of its own ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
STOPPED = 7
PROGRAM = f"""
import os, signal, sys, time
from pathlib import Path
from deployments.ray_session import start_local_ray

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
start_local_ray(Path(sys.argv[1]), num_cpus=1, object_store_bytes=80_000_000)
import ray
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
except KeyboardInterrupt:
    ray.shutdown()
    sys.exit({STOPPED})
"""


def test_sigterm_ends_it_as_it_wants_to_be_ended() -> None:
    """Ray's handler let ours run, and then aborted the process: a container's stop looked like a crash."""
    with tempfile.TemporaryDirectory() as folder:  # its path is short enough for Ray's sockets
        done = subprocess.run([sys.executable, "-c", PROGRAM, folder], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == STOPPED, done.stderr
