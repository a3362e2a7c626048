"""The embedded Milvus: milvus-lite as a small server of its own, started by whichever command needs it first.

    user process ──shared lock── users.lock          while it uses the store; the kernel frees it even on SIGKILL
         │ starts
    keeper (this module, `python -m`)                one per data directory, in a session of its own
         │ starts, watches, stops when nobody holds users.lock any more
    milvus (the binary of milvus-lite)               ends by itself when the keeper is gone

Files in `<data_dir>/milvus/`:

    milvus.db         the data
    server.json       who serves, at which port
    start.lock        held while starting
    users.lock        held, shared, by every user
    owner.lock        held by keeper and binary together while either lives: the binary alone does not refuse to
                      open a file that another one serves
    .milvus.db.lock   milvus-lite's own, which pymilvus respects; the binary ends when it becomes free

Linux only, as it reads process start times from /proc. The keeper imports nothing heavy: it stays for hours.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rag.errors import StoreUnavailableError

IDLE_S = 10.0
POLL_S = 2.0
STOP_S = 10.0
OWNER_S = 0.2
RETRY_S = 0.02
CONNECT_S = 1.0
MAX_LOG_BYTES = 8 * 1024 * 1024
LITE_LOCK = ".milvus.db.lock"


@dataclass(slots=True)
class EmbeddedServer:
    """A use of the running server: it stays up at least until `release`, which may be called more than once.

    A child made by fork shares the use until it ends or this process releases it; an exec'd child does not.
    """

    uri: str
    _users: int | None

    def release(self) -> None:
        """Ends this use; the server stops by itself some seconds after the last one."""
        if self._users is not None:
            os.utime(self._users)
            fcntl.flock(self._users, fcntl.LOCK_UN)
            os.close(self._users)
            self._users = None

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def ensure_server(data_dir: Path, *, start_timeout_s: float, idle_s: float = IDLE_S) -> EmbeddedServer:
    """The embedded server of `data_dir`, started if it does not run; hold the result while using the store.

    Safe from several processes and threads at once: one server results. After a crash it starts again, at the same port
    where that is free. `idle_s`: how long a server that is started here outlives its last user.
    Raises StoreUnavailableError naming the cause, the log file and what to do.
    """
    folder = Path(data_dir).absolute() / "milvus"
    deadline = time.monotonic() + start_timeout_s
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _log_file(folder).parent.mkdir(exist_ok=True)
        users = _locked(folder / "users.lock", fcntl.LOCK_SH, deadline)
    except OSError as error:
        raise StoreUnavailableError(_cannot_start(folder, str(error))) from error
    with ExitStack() as unless_served:
        unless_served.callback(os.close, users)  # an open one means a user
        try:
            os.utime(users)
            port = _serving_port(folder)
            if port is None:
                start = _locked(folder / "start.lock", fcntl.LOCK_EX, deadline)
                try:
                    port = _serving_port(folder) or _start_keeper(folder, deadline, idle_s)
                finally:
                    os.close(start)
        except OSError as error:
            raise StoreUnavailableError(_cannot_start(folder, str(error))) from error
        unless_served.pop_all()
    return EmbeddedServer(f"http://127.0.0.1:{port}", users)


def is_alive(data_dir: Path) -> bool:
    """Whether the process that `server.json` names still runs and its port takes connections; some 0.1 ms."""
    return _serving_port(Path(data_dir).absolute() / "milvus") is not None


def _serving_port(folder: Path) -> int | None:
    recorded = _read_record(folder)
    if not recorded or _start_ticks(recorded["pid"]) != recorded["start_ticks"]:
        return None
    return recorded["port"] if _answers(recorded["port"]) else None


def _read_record(folder: Path) -> dict[str, int] | None:
    try:
        record: Any = json.loads((folder / "server.json").read_text(encoding="ascii"))
        return {name: int(record[name]) for name in ("pid", "start_ticks", "port")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _start_ticks(pid: int) -> int | None:
    """When a running process started, in clock ticks since boot: a later process of the same id has another value."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat[stat.rindex(")") + 2 :].split()
    return None if state in "ZX" else int(fields[18])


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), CONNECT_S).close()
    except OSError:
        return False
    return True


def _locked(path: Path, kind: int, deadline: float) -> int:
    """An open descriptor that holds the lock. Python's descriptors close at exec. Raises TimeoutError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with ExitStack() as unless_locked:
        unless_locked.callback(os.close, descriptor)
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"another process holds {path} for too long") from None
                time.sleep(RETRY_S)
        unless_locked.pop_all()
    return descriptor


def _start_keeper(folder: Path, deadline: float, idle_s: float) -> int:
    """Starts a keeper and waits for its word: the port, or what went wrong."""
    spec = importlib.util.find_spec("milvus_lite")
    if spec is None or spec.origin is None:
        raise StoreUnavailableError(
            "the embedded Milvus needs milvus-lite, which is not installed: the cpu extra brings it "
            "(pip install 'rag[cpu]'); or set store.uri (RAG_STORE__URI) to a Milvus server"
        )
    binary = Path(spec.origin).parent / "lib" / "milvus"
    start_s = max(0.1, deadline - time.monotonic())
    log = _log_file(folder)
    if log.exists() and log.stat().st_size > MAX_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    said, says = os.pipe()
    try:
        with log.open("ab") as output:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "rag.embedded_store", folder, binary, str(says), str(start_s), str(idle_s)],
                cwd=Path(__file__).resolve().parent.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[says],
                start_new_session=True,
            )
        os.close(says)
        says = -1
        launcher.wait()
        word = _read_word(said, deadline)
    finally:
        os.close(said)
        if says >= 0:
            os.close(says)
    if word.get("port"):
        return int(word["port"])
    raise StoreUnavailableError(_cannot_start(folder, word.get("error") or "its keeper ended at once"))


def _read_word(said: int, deadline: float) -> dict[str, Any]:
    text = b""
    while not text.endswith(b"\n"):
        if not select.select([said], [], [], max(0.0, deadline + 1 - time.monotonic()))[0]:
            return {"error": "it did not answer in time"}
        piece = os.read(said, 65_536)
        if not piece:
            return {}
        text += piece
    word: dict[str, Any] = json.loads(text)
    return word


def _log_file(folder: Path) -> Path:
    return folder.parent / "logs" / "milvus.log"


def _cannot_start(folder: Path, cause: str) -> str:
    return f"the embedded Milvus in {folder} cannot be used: {cause}; its log is {_log_file(folder)}"


class _Keeper:
    """Owns the database file, runs the binary and ends it when nobody has used it for `idle_s`."""

    def __init__(self, folder: Path, binary: Path, owner: int, deadline: float) -> None:
        self.folder = folder
        self.binary = binary
        self.owner = owner
        self.deadline = deadline
        self.lite_lock = os.open(folder / LITE_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.lockf(self.lite_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another program has {folder / 'milvus.db'} open (pymilvus with the file's name, perhaps); close it"
            ) from None

    def start(self) -> int:
        """Runs the binary until it answers; its port. Raises OSError."""
        reserved, port = self._reserve_port()
        self.logged_bytes = _log_file(self.folder).stat().st_size
        # The path is relative, so that no folder's name reaches the binary; it watches the lock file and ends,
        # its data written, when this process frees the lock or is gone. Without HOME it aborts.
        self.process = subprocess.Popen(
            [self.binary, "milvus.db", f"127.0.0.1:{port}", "ERROR", LITE_LOCK],
            cwd=self.folder,
            env={
                "HOME": str(self.folder),
                "LD_LIBRARY_PATH": str(self.binary.parent),
                "GLOG_logtostderr": "1",
                "GLOG_minloglevel": "2",
            },
            pass_fds=[self.owner],
            preexec_fn=_unblock_signals,
        )
        while not _answers(port):
            if self.process.poll() is not None:
                raise OSError(f"milvus ended with status {self.process.returncode}: {self._last_words()}")
            if time.monotonic() > self.deadline:
                self.stop()
                raise TimeoutError("milvus did not answer in time")
            time.sleep(RETRY_S)
        self._record(port)
        self.reserved = reserved
        _log(f"milvus {self.process.pid} answers at port {port}")
        return port

    def _reserve_port(self) -> tuple[socket.socket, int]:
        """A bound socket that keeps others off the port: the one of last time where it is free, else any.

        gRPC listens with SO_REUSEPORT, so two servers would silently share a port. Bound without it, the port is ours
        alone; with it set afterwards, our own server may listen there, and a second keeper's strict bind fails.
        """
        recorded = _read_record(self.folder)
        for port in ([recorded["port"]] if recorded else []) + [0]:
            reserved = socket.socket()
            try:
                reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                reserved.bind(("127.0.0.1", port))
            except OSError:
                reserved.close()
                if port == 0:
                    raise
                continue
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            return reserved, reserved.getsockname()[1]
        raise OSError("no free port on 127.0.0.1")

    def _record(self, port: int) -> None:
        ticks = _start_ticks(self.process.pid)
        record = {"pid": self.process.pid, "start_ticks": ticks, "port": port, "keeper_pid": os.getpid()}
        written = self.folder / "server.json.new"
        written.write_text(json.dumps(record), encoding="ascii")
        written.replace(self.folder / "server.json")

    def _last_words(self) -> str:
        with _log_file(self.folder).open("rb") as log:
            log.seek(self.logged_bytes)
            lines = log.read().decode(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith(("E2", "F2"))]
        return errors[0].split("]")[-1].strip() if errors else "it gave no reason"

    def watch(self, idle_s: float) -> str:
        """Returns, with the reason, when the binary ended, when it has not been used for `idle_s`, or at SIGTERM."""
        users = os.open(self.folder / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        last_used, last_touched = time.monotonic(), 0
        while self.process.poll() is None:
            woken = signal.sigtimedwait(WATCHED_SIGNALS, min(POLL_S, idle_s / 4))
            if woken is not None and woken.si_signo != signal.SIGCHLD:
                return f"{signal.Signals(woken.si_signo).name} came"
            touched = os.fstat(users).st_mtime_ns
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                last_used = time.monotonic()
                continue
            # A use between two looks leaves its time stamp.
            if touched != last_touched:
                last_used, last_touched = time.monotonic(), touched
            elif time.monotonic() - last_used > idle_s:
                # The lock stays held: a newcomer waits until this server is gone, then starts its own.
                return f"nobody has used it for {idle_s:g} s"
            fcntl.flock(users, fcntl.LOCK_UN)
        return "it ended by itself"

    def stop(self) -> int:
        """Lets the binary write its data and end; kills it only when it does not. Its exit status."""
        os.close(self.lite_lock)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _log(event: str) -> None:
    """A line in the log file, which is the keeper's standard error."""
    print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), event, file=sys.stderr, flush=True)


WATCHED_SIGNALS = frozenset({signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def _unblock_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED_SIGNALS)


def _own_file(folder: Path, deadline: float) -> int | None:
    """A descriptor that holds owner.lock, or None where another keeper's server answers.

    That keeper may be one whose starter was killed, or its binary one that needs a moment to end after it.
    Raises TimeoutError.
    """
    while True:
        try:
            return _locked(folder / "owner.lock", fcntl.LOCK_EX, min(deadline, time.monotonic() + OWNER_S))
        except TimeoutError:
            if _serving_port(folder):
                return None
            if time.monotonic() > deadline:
                raise


def _say(says: int, word: dict[str, Any]) -> None:
    # When the starter is gone by now, others may use the server already: no reason to end it.
    with suppress(BrokenPipeError):
        os.write(says, json.dumps(word).encode() + b"\n")
    os.close(says)


def _keep(folder: Path, binary: Path, says: int, start_s: float, idle_s: float) -> None:
    """The keeper's whole life."""
    if os.fork():
        return  # whoever started it waits for this process only and is left without a zombie
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED_SIGNALS)
    try:
        owner = _own_file(folder, time.monotonic() + start_s)
        if owner is None:
            _say(says, {"port": _serving_port(folder)})
            return
        keeper = _Keeper(folder, binary, owner, time.monotonic() + start_s)
        port = keeper.start()
    except OSError as error:
        _log(f"no start: {error}")
        _say(says, {"error": str(error)})
        return
    _say(says, {"port": port})
    reason = keeper.watch(idle_s)
    _log(f"milvus {keeper.process.pid} ends as {reason}; exit status {keeper.stop()}")


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
