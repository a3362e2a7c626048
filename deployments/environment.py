"""What Ray, Serve and their children read of the environment when they start, ports of a service's own among it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from deployments.proxy import BINARY_VARIABLE, script_path
from deployments.ray_session import ray_environment, short_dir
from deployments.traces import trace_environment
from rag.config import Settings
from rag.errors import StageError

FAST_PATH = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_TCP_NODELAY": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}
# Above those that Ray gives its workers, below those that the system gives to whoever asks for any (from 32768 on): one
# of these can be taken in the seconds until it is listened at.
BLOCKS = range(20000, 32700, 100)


@contextmanager
def serve_environment(settings: Settings) -> Iterator[None]:
    """Set where it is not set already, while the block runs. Raises StageError when no ports are left."""
    with reserved_ports(settings.serve.port) as ports:
        wanted = {
            **ray_environment(settings),
            **_serve_variables(settings, ports),
            **trace_environment(settings.trace),
            **(FAST_PATH if settings.serve.fast_path else {}),
        }
        added = {name: value for name, value in wanted.items() if name not in os.environ}
        os.environ.update(added)
        try:
            yield
        finally:
            for name in added:
                os.environ.pop(name, None)


@contextmanager
def reserved_ports(seed: int) -> Iterator[range]:
    """A hundred ports that no other service of this machine gets while the block runs, by a socket at the first one.

    The first five are free; of the others some may be others' programs', which Serve steps over. Raises StageError
    when every block is taken.
    """
    for turn in range(len(BLOCKS)):
        first = BLOCKS[(seed + turn) % len(BLOCKS)]
        with suppress(OSError), socket.create_server(("127.0.0.1", first)):
            if all(_is_free(port) for port in range(first + 1, first + 5)):
                yield range(first, first + 100)
                return
    raise StageError("ray", f"no block of ports between {BLOCKS[0]} and {BLOCKS[-1] + 99} is free; end other services")


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("", port)):
        return True
    return False


def _serve_variables(settings: Settings, ports: range) -> dict[str, str]:
    """Paths and ports of its own let services run side by side."""
    haproxy = short_dir(settings)
    metrics, stats, fallback, fallback_grpc = ports[1:5]
    return {
        BINARY_VARIABLE: str(script_path()),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        # Where HAProxy sends questions while no orchestrator is there: by default the same for all of a machine's
        # services, so that some of one's questions went to another's documents.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        # The replicas' own.
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ports[5]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(ports[49]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(ports[50]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(ports[99]),
        # Nobody balances load over a single machine's replicas from outside, so nobody has to notice that they go.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        # A busy machine starts the proxy slowly. By default Serve kills it after three checks of 5 s, which ends the
        # start, and HAProxy itself after 30 s.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "120",
        # Every line at once: what a killed replica had kept back is what one wants to read.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    }
