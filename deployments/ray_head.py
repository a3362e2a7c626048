"""A Ray in a process of its own: `python -m deployments.ray_head FOLDER NUM_CPUS OBJECT_STORE_BYTES`.

Prints the address to join, and ends with all of Ray's processes when its stdin is closed, so also when its parent dies.
For a parent that has threads in native code, as gRPC's: Ray forks its processes with Python code in between, and with
such threads about, one in five starts hung there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from deployments.ray_session import descendants_ended, start_local_ray


def main(folder: str, num_cpus: str, object_store_bytes: str) -> None:
    """Runs until stdin is closed."""
    start_local_ray(Path(folder), num_cpus=int(num_cpus), object_store_bytes=int(object_store_bytes))
    import ray

    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    with descendants_ended():
        ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
