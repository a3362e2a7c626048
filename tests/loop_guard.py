"""Finds calls that block the event loop: by name, not by time, so a busy machine finds no more than an idle one.

A profile function on the loop's thread sees every call that is made there. Noted are calls that wait (a file, a socket,
a database, a lock, a process, sleep) and those of our own that compute for long, where one of our functions is on the
stack. What other threads do is not seen, and is right there.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, TracebackType
from typing import Any

OURS = ("/rag/", "/ingest/", "/deployments/")
# Whose own waiting is short or meant: a log's line, an import, a thread's start, a warning's source line.
LET_PASS = (
    *("/logging/", "<frozen importlib", "<frozen zipimport", "/linecache.py", "/warnings.py", "/traceback.py"),
    "/concurrent/futures/thread.py",
)
# Of the module `posix`: what asks the process itself, and no disk.
PROCESS_ONLY = {"fspath", "getpid", "getuid", "urandom", "cpu_count", "sched_getaffinity", "putenv"}
FILES = {"FileIO", "BufferedReader", "BufferedWriter", "BufferedRandom", "TextIOWrapper"}
FILE_METHODS = {"read", "readline", "readlines", "readinto", "read1", "write", "writelines", "flush", "close", "seek"}
SOCKET_METHODS = {"connect", "accept", "recv", "recv_into", "recvfrom", "send", "sendall", "sendto"}
WAITING = {("threading.py", "wait"), ("threading.py", "join"), ("subprocess.py", "__init__"), ("subprocess.py", "wait")}


class LoopGuard:
    """Inside, on the thread of a running loop, each blocking call is put into `found` with the way to it."""

    def __init__(self, *slow: Callable[..., Any]) -> None:
        """`slow`: functions that compute for long, whoever calls them."""
        self.found: list[str] = []
        self._slow: dict[CodeType, str] = {
            function.__code__: f"{function.__module__}.{function.__qualname__}" for function in slow
        }

    def __enter__(self) -> LoopGuard:
        sys.setprofile(self._see)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, called: Any) -> None:
        if event == "c_call":
            name = _blocking_builtin(called)
        elif event == "call":
            name = self._slow.get(frame.f_code) or _waiting(frame)
        else:
            return
        if name is None or asyncio._get_running_loop() is None:
            return
        way = list(_stack(frame))
        first = next((at for at, (file, _, _) in enumerate(way) if any(place in file for place in OURS)), None)
        if first is None or way[first][2] == "<module>":  # an import again
            return
        if any(place in file for file, _, _ in way[:first] for place in LET_PASS):
            return
        ours = [f"{file}:{line} {function}" for file, line, function in way if any(place in file for place in OURS)]
        self.found.append(f"{name} <- {' <- '.join(ours)}")


def _stack(frame: FrameType | None) -> Iterator[tuple[str, int, str]]:
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back


def _waiting(frame: FrameType) -> str | None:
    file = frame.f_code.co_filename.rpartition("/")[2]
    return f"{file} {frame.f_code.co_qualname}" if (file, frame.f_code.co_name) in WAITING else None


def _blocking_builtin(called: Any) -> str | None:
    """The name of a builtin function or method that waits for something outside, else None."""
    name, owner = called.__name__, getattr(called, "__self__", None)
    module = getattr(called, "__module__", None)
    kind = type(owner)
    if module == "time" and name == "sleep":
        return "time.sleep"
    if module == "posix" and name not in PROCESS_ONLY:
        return f"os.{name}"
    if module in ("_io", "io") and name in ("open", "open_code"):
        return "open"
    if module == "_posixsubprocess" or (module == "_socket" and name == "getaddrinfo"):
        return f"{module}.{name}"
    if kind.__module__ == "_io" and kind.__name__ in FILES and name in FILE_METHODS:
        return f"{kind.__name__}.{name}"
    if module in ("sqlite3", "_sqlite3") or kind.__module__ in ("sqlite3", "_sqlite3"):
        return f"sqlite3 {name}"
    if kind.__module__ in ("socket", "_socket") and name in SOCKET_METHODS and owner.gettimeout() != 0:
        return f"socket.{name}"
    return None


@contextmanager
def free_loop(*slow: Callable[..., Any]) -> Iterator[None]:
    """Fails with every way to a blocking call that was made inside on this loop's thread."""
    with LoopGuard(*slow) as guard:
        yield
    ways = "\n".join(dict.fromkeys(guard.found))
    assert not ways, f"the event loop was blocked; move these to a thread:\n{ways}"
