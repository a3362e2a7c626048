"""A Ray of our own: where it keeps its session, started or joined."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import psutil

from rag.config import Settings
from rag.errors import SettingsError, StageError

# A Unix socket's path may have 107 bytes, and Ray puts this much below its own folder.
_RAY_SOCKET_CHARS = 65
_CONNECT_S = 5.0
_ADDRESS = "address"  # of the Ray that was started last, a file in its folder


def ray_dir_of(settings: Settings, name: str) -> Path:
    """Where a Ray keeps its session: `name` in the data directory, or a short folder where sockets need one."""
    wanted = settings.data_dir.resolve() / name
    if len(os.fsencode(wanted)) + _RAY_SOCKET_CHARS <= 107 and str(wanted).isascii():
        return wanted
    return short_dir(settings, "" if name == "ray" else f"-{name}")


def short_dir(settings: Settings, suffix: str = "") -> Path:
    """The data directory's folder for sockets. HAProxy's paths may have 97 bytes, and Ray puts 70 below this folder."""
    name = hashlib.sha256(os.fsencode(settings.data_dir.resolve())).hexdigest()[:10]
    return Path(tempfile.gettempdir()) / f"rag-{name}{suffix}"


def joined_address() -> str | None:
    """The address of the Ray that is joined; None: one is started here, as for Ray where it is empty or `local`."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address in ("", "local") else address


def check_address(address: str) -> None:
    """Raises SettingsError when nobody listens at host:port: Ray itself would try for ten minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingsError(
            f"no Ray answers at {address} ({reason}); start it, correct RAY_ADDRESS, or unset it to start one here"
        ) from error


def start_ray(settings: Settings, ray_dir: Path, num_cpus: int, metrics_port: int) -> None:
    """Joins the Ray that RAY_ADDRESS names, else starts one whose machine counts as `num_cpus`; see `start_local_ray`.

    Raises SettingsError when the one named cannot be joined.
    """
    if (address := joined_address()) is None:
        start_local_ray(
            ray_dir,
            num_cpus=num_cpus,
            object_store_bytes=settings.serve.object_store_bytes,
            metrics_port=metrics_port,
        )
        import ray

        (ray_dir / _ADDRESS).write_text(ray.get_runtime_context().gcs_address, encoding="utf-8")
    else:
        join_ray(address)


def service_address(settings: Settings) -> str:
    """The address of the Ray that `rag serve` with these settings joined or started last.

    Raises StageError when it has started none. To be called before ray is imported.
    """
    if (joined := joined_address()) is not None:
        return joined
    path = ray_dir_of(settings, "ray") / _ADDRESS
    if not path.is_file():
        raise StageError("ray", f"no service has been started in {settings.data_dir}; set RAG_DATA_DIR as it has it")
    expect_token()
    return path.read_text(encoding="utf-8")


def expect_token() -> None:
    """Before ray is imported, to join one that was started on this machine: such a one asks for its user's token."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")


def join_ray(address: str) -> None:
    """Joins the Ray that RAY_ADDRESS names, or else one of our own.

    Raises SettingsError when the one named cannot be joined; for our own, what Ray raises.
    """
    import ray

    with blaming_the_setting(address) if joined_address() else nullcontext(), _sigterm_kept():
        check_address(address)
        ray.init(address, log_to_driver=False, logging_level="ERROR")


@contextmanager
def blaming_the_setting(address: str) -> Iterator[None]:
    """What Ray raises for an address that is none, where no Ray is, or one of another version, as SettingsError."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")  # versions that differ come in six lines
        raise SettingsError(
            f"the Ray at {address} cannot be joined ({reason}); correct RAY_ADDRESS, or unset it to start one here"
        ) from error


def metrics_urls() -> list[str]:
    """Where each node of the Ray that was joined or started exports its metrics."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]


def start_local_ray(ray_dir: Path, *, num_cpus: int, object_store_bytes: int, metrics_port: int = 0) -> None:
    """A Ray of this process, which ends with it; `num_cpus` is what its machine counts as.

    Its metrics are exported at `metrics_port`, 0: any free one. A taken one ends the node.
    """
    import ray

    ray_dir.mkdir(parents=True, exist_ok=True)
    drop_old_sessions(ray_dir)
    with _sigterm_kept():
        ray.init(
            num_cpus=num_cpus,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=str(ray_dir),
            _metrics_export_port=metrics_port,
        )


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """ray.init takes SIGTERM twice: with a handler of Python's that exits with 15, and with one beneath it that aborts
    the process afterwards."""
    if threading.current_thread() is not threading.main_thread():  # no other may set it, and Ray does not there
        yield
        return
    ours = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, ours)


def drop_old_sessions(ray_dir: Path, keep: int = 3) -> None:
    """Deletes the sessions, with their logs, but the newest and those that still run: nothing else ever would."""
    sessions = sorted(path for path in ray_dir.glob("session_2*") if path.is_dir() and not path.is_symlink())
    for path in sessions[:-keep]:
        if not _still_runs(path):
            shutil.rmtree(path, ignore_errors=True)


def _still_runs(session: Path) -> bool:
    """Whether the session's raylet takes connections: a killed one leaves its socket's file, but nobody listens."""
    with socket.socket(socket.AF_UNIX) as ours:
        ours.setblocking(False)
        try:
            ours.connect(str(session / "sockets" / "raylet"))
        except BlockingIOError:  # it listens, with many waiting
            return True
        except OSError:
            return False
    return True


def ray_environment(settings: Settings) -> dict[str, str]:
    """What Ray and the models read when a Ray of ours starts, its workers too."""
    own = {
        "RAY_USAGE_STATS_ENABLED": "0",
        # What a killed replica leaves behind (vLLM's engine processes, with their memory) is ended by its raylet.
        "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true",
        "VLLM_NO_USAGE_STATS": "1",
        # A hook that does nothing but makes a spare worker process import vLLM: 0.8 GiB and 8 s of a core.
        "RAYLLM_ENABLE_WORKER_PROCESS_SETUP_HOOK": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.profile == "embedded":
        own |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return own


@contextmanager
def descendants_ended() -> Iterator[None]:
    """For the end of a Ray of this process: what is left of its processes five seconds after the block is killed."""
    # While the tree still stands: a process whose parent has ended is found no more.
    descendants = psutil.Process().children(recursive=True)
    yield
    _, alive = psutil.wait_procs(descendants, timeout=5)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
