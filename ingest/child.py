"""The program that reads files in isolation: each in a fork of its own, whose memory and CPU limits die with it.

A line of JSON on stdin asks for a file: {"reader", "memory_bytes", "cpu_s", and what that reader takes}. The answer on
stdout, a line of JSON each: what the reader found; {"done": true} or {"refused": KIND, "detail": str}, unless the fork
died before; and always {"ended": exit status, "peak_bytes", "cpu_s"}. The fork starts with the reader's libraries
loaded, so a small file costs milliseconds. When stdin closes, the program ends with all that it started.

Imports the readers and nothing else of this project: what they need starts no thread, so that forking is safe, and
loads in a fraction of a second.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import select
import signal
import sys
from types import ModuleType
from typing import Any

from ingest.lines import Line, RefusedError, Request, describe

_STDIN = 0


def limit_process(memory_bytes: int, cpu_s: int) -> None:
    """Caps this process's address space and CPU time; past the latter the system ends it with SIGXCPU."""
    for kind, wanted in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def _answer(request: Request, reader: ModuleType) -> None:
    """Reads one file in this process and says what it found."""
    limit_process(request["memory_bytes"], request["cpu_s"])
    try:
        for line in reader.read(request):
            _say(line)
        _say({"done": True})
    except RefusedError as refused:
        _say({"refused": refused.kind, "detail": refused.detail})
    except MemoryError:
        _say({"refused": "memory", "detail": ""})
    except reader.DAMAGE as error:
        _say({"refused": "damaged", "detail": describe(error)})


def _say(line: Line) -> None:
    print(json.dumps(line), flush=True)  # ASCII: titles may hold anything


def _fork_reader(request: Request, reader: ModuleType) -> Line:
    """Has a fork read the file; how it ended. Does not return when stdin closes meanwhile."""
    open_while_alive, held_by_fork = os.pipe()
    process_id = os.fork()
    if process_id == 0:
        os.close(open_while_alive)
        _answer(request, reader)  # what it raises ends the fork, its last words on stderr
        os._exit(0)
    os.close(held_by_fork)
    if open_while_alive not in select.select([_STDIN, open_while_alive], [], [])[0]:
        os.killpg(0, signal.SIGKILL)  # whoever asked is gone
    os.close(open_while_alive)
    _, status, usage = os.wait4(process_id, 0)
    cpu_s = usage.ru_utime + usage.ru_stime
    return {"ended": os.waitstatus_to_exitcode(status), "peak_bytes": usage.ru_maxrss * 1024, "cpu_s": cpu_s}


def main() -> None:
    """Answers requests until stdin closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by whoever started this, it would hide how a fork ended
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")  # for tesseract
    logging.disable(logging.CRITICAL)  # parsers log every oddity that they repair
    while asked := sys.stdin.buffer.readline():
        request: dict[str, Any] = json.loads(asked)
        del asked
        try:
            reader = importlib.import_module(f"ingest.read_{request['reader']}")
        except ImportError as error:
            _say({"refused": "library", "detail": str(error)})
            _say({"ended": 0, "peak_bytes": 0, "cpu_s": 0})
            continue
        ended = _fork_reader(request, reader)
        del request
        sys.stdout.write("\n")  # after a line that the fork did not finish
        _say(ended)


if __name__ == "__main__":
    main()
