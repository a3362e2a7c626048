"""A Ray of several nodes on this machine, by `ray start`, with the service on it by `serve deploy`.

Its ports are free ones and its files in a folder of its own, so that it runs beside others; nothing of it is left.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from eval.bench_service import HOST, BenchError, kill_tree, tail, with_variables
from eval.ports import free_ports

RAY, SERVE = (str(Path(sys.executable).with_name(name)) for name in ("ray", "serve"))
START_S, DEPLOY_S = 120.0, 600.0
# Serve's fast path, as every profile has it.
FAST_PATH = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_TCP_NODELAY": "1",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": "120",
}


@dataclass
class Cluster:
    """Nodes by name, the head first. `url` is the service's."""

    folder: Path
    variables: dict[str, str]
    url: str
    address: str
    dashboard: str
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def add_node(self, name: str, cpus: float, resources: Mapping[str, float]) -> None:
        """A worker node, returned when Ray counts it. Raises BenchError."""
        known = len(self.alive())
        options = [
            "--address",
            self.address,
            "--node-ip-address",
            HOST,
            "--num-cpus",
            f"{cpus:g}",
            "--resources",
            _json(resources),
        ]
        self._start(name, [*options, "--object-store-memory", str(100 * 2**20), *_agent_ports()])
        _wait(lambda: len(self.alive()) > known, START_S, f"node {name} did not come", self.nodes[name], self.log(name))

    def _start(self, name: str, options: list[str]) -> None:
        # Each node's proxy, should it get one, has its files apart from the others'.
        own = {"RAY_SERVE_HAPROXY_" + key: str(self.folder / f"{name}.{end}") for key, end in HAPROXY_FILES.items()}
        command = with_variables({**self.variables, **own}, [RAY, "start", "--block", *options])
        with self.log(name).open("wb") as output:
            self.nodes[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def kill(self, name: str) -> int:
        """Every process of a node, at once, as when its machine is gone; gives how many there were."""
        node = psutil.Process(self.nodes.pop(name).pid)
        tree = [*node.children(recursive=True), node]
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(tree, timeout=10)
        return len(tree)

    def stop(self) -> None:
        """Ends every node that there is."""
        for node in self.nodes.values():
            kill_tree(node)

    def deploy(self, config: Mapping[str, Any]) -> None:
        """`serve deploy` of this configuration; returns when Serve has taken it. Raises BenchError."""
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
        command = with_variables(self.variables, [SERVE, "deploy", str(path), "--address", self.dashboard])
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(
                f"serve deploy ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-500:]}"
            )

    def details(self) -> dict[str, Any]:
        """The application as the dashboard tells it. Raises httpx.HTTPError."""
        response = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=20)
        found: dict[str, Any] = response.raise_for_status().json()["applications"].get("rag", {})
        return found

    def alive(self) -> list[dict[str, Any]]:
        """Ray's own list of its nodes, those that live."""
        with suppress(httpx.HTTPError):
            listed = httpx.get(f"{self.dashboard}/api/v0/nodes", timeout=20).raise_for_status().json()
            return [one for one in listed["data"]["result"]["result"] if one["state"] == "ALIVE"]
        return []

    def wait_until_running(self, limit_s: float = DEPLOY_S) -> float:
        """Seconds until the application, and every deployment of it, is as it should be. Raises BenchError."""
        began = time.perf_counter()

        def runs() -> bool:
            with suppress(httpx.HTTPError):
                found = self.details()
                if found.get("status") == "DEPLOY_FAILED":
                    raise BenchError(f"the deployment failed: {found.get('message')}")
                stages = found.get("deployments", {}).values()
                return found.get("status") == "RUNNING" and all(one["status"] == "HEALTHY" for one in stages)
            return False

        _wait(runs, limit_s, "the application does not run", self.nodes["head"], self.log("head"))
        return round(time.perf_counter() - began, 1)

    def log(self, name: str) -> Path:
        """What a node printed."""
        return self.folder / f"{name}.txt"


HAPROXY_FILES = {
    "CONFIG_FILE_LOC": "cfg",
    "SOCKET_PATH": "sock",
    "SERVER_STATE_FILE": "state",
    "METRICS_SOCKET_PATH": "metrics",
}


def replicas(details: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Of each deployment the replicas that run."""
    return {
        name: [one for one in stage["replicas"] if one["state"] == "RUNNING"]
        for name, stage in details.get("deployments", {}).items()
    }


def serve_config(port: int, args: Mapping[str, Any], user_config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """As infra/serve/embedded.yaml, with more settings and what is live."""
    application: dict[str, Any] = {
        "name": "rag",
        "route_prefix": "/",
        "import_path": "deployments.app:build_app",
        "args": {"profile": "embedded", **args},
    }
    if user_config:
        application["deployments"] = [{"name": "Orchestrator", "user_config": dict(user_config)}]
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": HOST, "port": port},
        "applications": [application],
    }


@contextmanager
def started_cluster(
    folder: Path, variables: Mapping[str, str], *, cpus: float, resources: Mapping[str, float] | None = None
) -> Iterator[Cluster]:
    """A head node; every node ends with the block. Raises BenchError when it does not start."""
    gcs, dashboard, port, client, metrics, stats, fallback, fallback_grpc = free_ports(8)
    first = 20000 + port % 127 * 100
    own = {
        "RAY_AUTH_MODE": "disabled",  # every port is this machine's alone
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
        "RAYLLM_ENABLE_WORKER_PROCESS_SETUP_HOOK": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 49),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first + 50),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + 99),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(sys.executable).with_name("rag-haproxy")),
        **FAST_PATH,
    }
    cluster = Cluster(
        folder,
        {**own, **variables},
        f"http://{HOST}:{port}",
        f"{HOST}:{gcs}",
        f"http://{HOST}:{dashboard}",
    )
    with ExitStack() as ending:
        ending.callback(cluster.stop)
        cluster._start(
            "head",
            [
                *("--head", "--node-ip-address", HOST, "--port", str(gcs), "--num-cpus", f"{cpus:g}"),
                *(
                    "--dashboard-host",
                    HOST,
                    "--dashboard-port",
                    str(dashboard),
                    "--ray-client-server-port",
                    str(client),
                ),
                *("--temp-dir", str(folder / "ray"), "--object-store-memory", str(256 * 2**20)),
                *("--resources", _json(resources or {}), *_agent_ports()),
            ],
        )
        _wait(lambda: bool(cluster.alive()), START_S, "Ray did not start", cluster.nodes["head"], cluster.log("head"))
        yield cluster


def _agent_ports() -> list[str]:
    listen, grpc, runtime, metrics = free_ports(4)
    return [
        *("--dashboard-agent-listen-port", str(listen), "--dashboard-agent-grpc-port", str(grpc)),
        *("--runtime-env-agent-port", str(runtime), "--metrics-export-port", str(metrics)),
    ]


def _json(resources: Mapping[str, float]) -> str:
    return json.dumps(dict(resources))


def _wait(fulfilled: Callable[[], bool], limit_s: float, failed: str, node: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.perf_counter() + limit_s
    while not fulfilled():
        if node.poll() is not None:
            raise BenchError(f"{failed}: ray start ended with {node.returncode}: {tail(log)}")
        if time.perf_counter() > deadline:
            raise BenchError(f"{failed} within {limit_s:g} s; its log is {log}")
        time.sleep(0.5)
