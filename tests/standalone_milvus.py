"""A Milvus standalone server for tests, from the package `milvus`: `python standalone_milvus.py FOLDER`.

Prints its port when it is ready, and stops when its standard input closes, as it does when the tests are killed.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

STOP_S = 20
QUIET_AND_QUICK = {
    "log.level": "error",
    "proxy.timeTickInterval": 20,  # a strongly consistent read waits for the next tick
    "rootCoord.timeTickInterval": 20,
}


@contextmanager
def running_milvus(folder: Path) -> Iterator[str]:
    """The server's URI; its process group is gone afterwards."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline().strip()
            assert port, f"Milvus did not start; see {folder / 'logs'}"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.stdin.close()
            try:
                process.wait(STOP_S)
            finally:
                with suppress(ProcessLookupError):  # nothing of the group is left
                    os.killpg(process.pid, signal.SIGKILL)


def serve(folder: str) -> None:
    from milvus import MilvusServer, MilvusServerConfig

    config = MilvusServerConfig(data_dir=folder)
    names = [name for name in config.configurable_items if name.endswith("_port")]
    with ExitStack() as held:
        *ports, metrics_port = (
            held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in [*names, "metrics"]
        )
    config.update(**dict(zip(names, ports, strict=True)))
    for name, value in QUIET_AND_QUICK.items():
        config.set(name, value)
    server = MilvusServer(config)
    server.webservice_port = metrics_port
    server.start()
    print(server.listen_port, flush=True)
    sys.stdin.read()
    server.stop()


if __name__ == "__main__":
    serve(sys.argv[1])
