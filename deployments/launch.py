"""`rag serve`: Ray started here (or joined), the graph deployed and warmed up, everything stopped again.

What Ray and vLLM print goes to files under the data directory; a failure names them.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.environment import serve_environment
from deployments.ray_session import (
    descendants_ended,
    joined_address,
    metrics_urls,
    ray_dir_of,
    short_dir,
    start_ray,
)
from deployments.traces import tracing_config
from rag.config import Settings
from rag.errors import SettingsError, StageError
from rag.evidence import check_fitted
from rag.imports import without_collection
from rag.models import locate_answerability
from rag.serve_settings import ServeSettings

APP_NAME = "rag"
WARM_UP_TIMEOUT_S = 180.0
SLOW_PROXY = "the HTTP proxy is still starting; is this machine busy?"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Running:
    """The service as it was started: its URL, those of its nodes' metrics, seconds by step, and how to speak past the
    redirected chatter."""

    url: str
    metrics_urls: list[str]
    steps_s: dict[str, float]
    say: Say


@contextmanager
def running_service(
    settings: Settings, say: Say, app_builder: Callable[[Settings], Any] | None = None
) -> Iterator[Running]:
    """Starts everything, yields when every stage answered the warm-up question, stops everything at the end.

    `say` is told each step as it begins, and SLOW_PROXY. `app_builder` replaces the graph (tests). Raises SettingsError
    for a taken port and for an evidence gate fitted to other models, ModelError for its adapter that is not there, and
    StageError naming the log folder when the service does not come up.
    """
    host, port = settings.serve.host, settings.serve.port
    check_port(host, port, "--port or RAG_SERVE__PORT")
    check_fitted(settings)  # before Ray is started, which takes seconds
    locate_answerability(settings)
    logs = settings.data_dir / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(
            f"data_dir {settings.data_dir} cannot be written ({error.strerror}); set RAG_DATA_DIR"
        ) from error
    ray_dir = ray_dir_of(settings, "ray")
    joined = joined_address()
    metrics_port = 0 if joined else choose_metrics_port(settings.serve)
    steps_s: dict[str, float] = {}
    with serve_environment(settings), _chatter_to(logs / "serve.log") as tell:
        # Only now: Serve reads the environment when it is imported.
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        def step(name: str, sentence: str, work: Callable[[], Any]) -> Any:
            tell(lambda: say(sentence))
            began = time.perf_counter()
            try:
                result = work()
            except (RayError, RayServeException, RuntimeError, OSError, ValueError) as error:
                raise StageError(
                    name, f"{_last_line(error)}; what Ray printed is in {logs}, its own logs in {ray_dir}"
                ) from error
            steps_s[name] = round(time.perf_counter() - began, 1)
            return result

        try:
            # Importing Serve and the graph takes seconds: done while Ray starts.
            importing = threading.Thread(target=_import_graph, daemon=True)
            if app_builder is None:
                importing.start()
            step(
                "ray",
                "starting Ray" if not joined else f"joining Ray at {joined}",
                lambda: start_ray(settings, ray_dir, settings.serve.logical_cpus, metrics_port),
            )
            step(
                "http", "starting the HTTP proxy", lambda: _start_serve(settings, lambda: tell(lambda: say(SLOW_PROXY)))
            )
            if app_builder is None:
                importing.join()
            app = step("graph", "building the graph", lambda: (app_builder or _build_app)(settings))
            step("stages", "starting the stages (embedder, retriever, reranker, LLM, indexer)", lambda: _deploy(app))
            step("warm_up", "asking the warm-up question", _warm_up)
            yield Running(
                f"http://{host}:{port}", metrics_urls(), steps_s, lambda sentence: tell(lambda: say(sentence))
            )
        finally:
            tell(lambda: say("stopping the service"))
            _stop(own_ray=not joined)
            if short_dir(settings) != ray_dir:
                shutil.rmtree(short_dir(settings), ignore_errors=True)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _import_graph() -> None:
    with without_collection():
        importlib.import_module("deployments.app")


def _build_app(settings: Settings) -> Any:
    from deployments.app import build_app

    return build_app(settings)


def check_port(host: str, port: int, remedy: str) -> None:
    """Raises SettingsError when a port cannot be had; `remedy` sets another."""
    try:
        with socket.create_server((host, port)):
            return
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        place = f" on {host}" if host else ""
        raise SettingsError(f"port {port}{place} {reason}; choose another with {remedy}") from error


def choose_metrics_port(serving: ServeSettings) -> int:
    """The metrics' port: the one that is set, else 1000 above the service's, else 0, any free one.

    Raises SettingsError when the one that is set is taken.
    """
    if serving.metrics_port is not None:
        check_port("", serving.metrics_port, "RAG_SERVE__METRICS_PORT")
        return serving.metrics_port
    port = serving.port + 1000
    try:
        with socket.create_server(("", port)):
            return port
    except (OSError, OverflowError):  # taken, or above 65535
        return 0


def _start_serve(settings: Settings, say_slow: Callable[[], None]) -> None:
    """Calls `say_slow` when Serve's own wait for the proxy, a minute, runs out: the graph is started beside it then.

    Serve waits for the proxy once more when it runs the graph.
    """
    from ray import serve

    options = {
        "http_options": {"host": settings.serve.host, "port": settings.serve.port},
        "tracing_config": tracing_config(settings.trace),
    }
    try:
        serve.start(**options)
    except TimeoutError:
        say_slow()
        serve.start(**options)  # finds its controller, and does not wait


def _deploy(app: Any) -> None:
    from ray import serve

    try:
        serve.run(app, name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        raise RuntimeError(f"did not start: {_failures() or _last_line(error)}") from error


def _failures() -> str:
    """The last line of what each unhealthy deployment says."""
    from ray import serve

    found = []
    for name, deployment in serve.status().applications[APP_NAME].deployments.items():
        if deployment.status.value in ("UNHEALTHY", "DEPLOY_FAILED") and deployment.message:
            lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
            found.append(f"{name}: {lines[-1]}")
    return "; ".join(found)


def _warm_up() -> None:
    from ray import serve

    from deployments.errors import call_stage

    async def ask() -> None:
        async with asyncio.timeout(WARM_UP_TIMEOUT_S):
            handle = serve.get_app_handle(APP_NAME)
            await call_stage("warm-up", lambda: handle.warm_up.remote())

    try:
        # Serve's throughput mode keeps its router on the loop that first used it, for the process's whole life.
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="serve-router", daemon=True).start()
        asyncio.run_coroutine_threadsafe(ask(), loop).result()
    except TimeoutError as error:
        raise StageError("warm-up", f"no answer within {WARM_UP_TIMEOUT_S:g} s") from error


def _stop(*, own_ray: bool) -> None:
    """Ends what was started here; of a Ray that was joined, only our application."""
    import ray

    # A second Ctrl-C during the clean-up would leave processes behind.
    interrupt = _set_signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if ray.is_initialized():
            _stop_ray(own_ray=own_ray)
    finally:
        _set_signal(signal.SIGINT, interrupt)
        # Ray's driver takes it, to reap what a dead worker leaves; without it no child's exit status is seen here.
        _set_signal(signal.SIGCHLD, signal.SIG_DFL)


def _set_signal(number: signal.Signals, handler: Any) -> Any:
    """Sets a handler and gives the one before; nothing outside the main thread, where no signals arrive."""
    if threading.current_thread() is not threading.main_thread():
        return handler
    return signal.signal(number, handler)


def _stop_ray(*, own_ray: bool) -> None:
    import ray
    from ray import serve

    if not own_ray:
        serve.delete(APP_NAME)
        ray.shutdown()
        return
    with descendants_ended():
        serve.shutdown()
        ray.shutdown()


@contextmanager
def _chatter_to(path: Path) -> Iterator[Callable[[Callable[[], None]], None]]:
    """Sends file descriptors 1 and 2 to a file; what is yielded runs a function with the real ones in place."""
    sys.stdout.flush()
    sys.stderr.flush()
    real = os.dup(1), os.dup(2)
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    lock = threading.Lock()

    def point(first: int, second: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(first, 1)
        os.dup2(second, 2)

    def tell(speak: Callable[[], None]) -> None:
        with lock:
            point(*real)
            try:
                speak()
            finally:
                point(log, log)

    point(log, log)
    try:
        yield tell
    finally:
        point(*real)
        for descriptor in (*real, log):
            os.close(descriptor)
