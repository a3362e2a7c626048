"""Reading in a child process: whatever a file does to its parser, it costs that file only.

child.py is the program; one is kept for the next file by whoever used it last, so there are as many as files that are
read at the same time. How it ended is told by its own words: where others take SIGCHLD, as in Ray's workers, the
system's exit status says nothing.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ingest.lines import Line
from rag.errors import DocumentError
from rag.step_settings import MIB, IngestSettings

logger = logging.getLogger(__name__)

# -P and no -m: what lies in the current folder, or beside child.py, is nothing to import from.
_ROOT = Path(__file__).resolve().parents[1]
CHILD = (
    sys.executable,
    "-P",
    "-c",
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); import ingest.child as c; c.main()",
)

_READ_BYTES = 1024 * 1024
_BIG = "split the file, or raise the setting"
_REPAIR = "open it and save it anew, or give its text in another format"
_NAMES = {"pdf": "PDF", "docx": "Word document (DOCX)", "html": "HTML", "markdown": "Markdown"}
_INSTALL_OCR = "pip install 'rag[ocr]' and apt-get install tesseract-ocr tesseract-ocr-kor"

_idle: dict[tuple[str, ...], list[_Child]] = defaultdict(list)
os.register_at_fork(after_in_child=_idle.clear)  # two processes must not talk to one child


def read_isolated(
    reader: str, asked: Mapping[str, Any], limits: IngestSettings, command: Sequence[str] = CHILD
) -> list[Line]:
    """What a reader finds in a file, line by line; `asked` is what it takes beside the limits.

    `command` is the program (child.py says how it answers). Raises DocumentError where the reader gives the file up,
    where it dies, and where a limit is met; with OCR the time limits hold for each page.
    """
    request = {
        "reader": reader,
        "memory_bytes": limits.parse_memory_bytes,
        "cpu_s": limits.parse_cpu_s,
        "max_pages": limits.max_pages,
        "max_chars": limits.max_chars,
        **asked,
    }
    child = _take(command)
    try:
        lines = list(child.ask(json.dumps(request).encode("ascii") + b"\n", limits.parse_wall_s, per_line=limits.ocr))
        last_words = child.read_last_words()
    except TimeoutError as error:
        what = "a page of it" if limits.ocr else "it"
        reason = f"reading {what} took longer than {limits.parse_wall_s:g} s; {_BIG} ingest.parse_wall_s"
        raise DocumentError(reason) from error
    finally:
        if child.ready:
            _idle[child.command].append(child)
        else:
            child.kill()
    ended = lines.pop() if lines and "ended" in lines[-1] else {}
    if ended:
        logger.debug("read in %d MiB and %.2f s of CPU time", ended["peak_bytes"] // MIB, ended["cpu_s"])
    if not lines or ("done" not in lines[-1] and "refused" not in lines[-1]):
        raise DocumentError(_death(ended.get("ended"), last_words, limits))
    if "refused" in lines[-1]:
        raise DocumentError(_refusal(lines[-1]["refused"], lines[-1]["detail"], reader, limits))
    return lines[:-1]


class _Child:
    """A running program; `ready` for a question unless one is open or ended badly."""

    def __init__(self, command: Sequence[str]) -> None:
        self.command = tuple(command)
        self.ready = True
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, close() does
        self._deadline = 0.0
        self._process = subprocess.Popen(  # it leads a process group, in which its forks and what they start are too
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin
        os.set_blocking(self._process.stdin.fileno(), False)

    def lives(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: bytes, wall_s: float, *, per_line: bool) -> Iterator[Line]:
        """The answer's lines, through `ended` or as far as they came.

        Raises TimeoutError where all of them, or with `per_line` the next of them, took longer than `wall_s`.
        """
        self.ready = False
        self._errors.seek(0)  # the child writes where this stands: they share the file's position
        self._errors.truncate()
        self._deadline = time.monotonic() + wall_s
        unfinished = bytearray()
        for piece in self._exchange(request):
            searched = len(unfinished)
            unfinished += piece
            if unfinished.find(b"\n", searched) < 0:
                continue
            *whole, rest = bytes(unfinished).split(b"\n")
            unfinished = bytearray(rest)
            for line in map(_read_line, whole):
                if line is None:
                    continue
                if per_line:
                    self._deadline = time.monotonic() + wall_s
                if "ended" in line:
                    self.ready = True
                yield line
            if self.ready:
                return

    def _exchange(self, request: bytes) -> Iterator[bytes]:
        """Sends the request while reading the answer: neither side waits for the other to read."""
        assert self._process.stdin
        assert self._process.stdout
        unsent = memoryview(request)
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            selector.register(self._process.stdin, selectors.EVENT_WRITE)
            while True:
                left = self._deadline - time.monotonic()
                ready = selector.select(left) if left > 0 else []
                if not ready:
                    raise TimeoutError
                for key, _ in ready:
                    if key.fileobj is self._process.stdout:
                        piece = os.read(key.fd, _READ_BYTES)
                        if not piece:
                            return
                        yield piece
                        continue
                    try:
                        unsent = unsent[os.write(key.fd, unsent) :]
                    except BrokenPipeError:  # it died: what it said before still counts
                        unsent = unsent[:0]
                    if not unsent:
                        selector.unregister(self._process.stdin)

    def read_last_words(self) -> str:
        self._errors.seek(max(self._errors.seek(0, os.SEEK_END) - 2000, 0))
        return self._errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]

    def kill(self) -> None:
        """Ends the whole group and waits for it."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            logger.debug("the reading process %d has ended by itself", self._process.pid)
        self.close()

    def close(self) -> None:
        """Lets go of it: without its stdin it ends."""
        for stream in (self._process.stdin, self._process.stdout):
            assert stream
            stream.close()
        self._process.wait()
        self._errors.close()


def _take(command: Sequence[str]) -> _Child:
    """An idle child that runs `command`, else a new one."""
    idle = _idle[tuple(command)]
    while True:
        try:
            child = idle.pop()  # one step: threads share the list
        except IndexError:
            return _Child(command)
        if child.lives():
            return child
        child.close()


def _read_line(raw: bytes) -> Line | None:
    """A line of the answer; None for what a fork left when it died within one."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _refusal(kind: str, detail: str, reader: str, limits: IngestSettings) -> str:
    name = _NAMES[reader]
    if kind == "encrypted":
        return (
            "it is encrypted; give its password (rag ingest --pdf-password, or the setting ingest.pdf_passwords), or "
            "save a copy that needs none, for example: qpdf --decrypt --password=... IN OUT"
        )
    if kind == "password":
        return f"it is encrypted and none of the {detail} passwords given opens it; give its own"
    if kind == "pages":
        return f"it has {int(detail):,} pages, more than the {limits.max_pages:,} allowed; {_BIG} ingest.max_pages"
    if kind == "chars":
        return f"it has more than the {limits.max_chars:,} characters allowed; {_BIG} ingest.max_chars"
    if kind == "memory":
        return _memory(limits)
    if kind == "library":
        return f"{name} cannot be read here ({detail}); install what is missing: pip install rag"
    if kind == "ocr":
        return f"its images cannot be read ({detail}); install what is missing: {_INSTALL_OCR}"
    return f"it is damaged or no {name} ({detail}); {_REPAIR}"


def _death(status: int | None, last_words: str, limits: IngestSettings) -> str:
    if status == -signal.SIGXCPU:
        return f"reading it took more than {limits.parse_cpu_s} s of CPU time; {_BIG} ingest.parse_cpu_s"
    if "MemoryError" in last_words:
        return _memory(limits)
    if status is None:
        how = "ended without a word"
    else:
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"the process that read it {how}{': ' + last_words if last_words else ''}; {_REPAIR}"


def _memory(limits: IngestSettings) -> str:
    return (
        f"reading it takes more memory than the {limits.parse_memory_bytes // MIB:,} MiB allowed; "
        f"{_BIG} ingest.parse_memory_bytes"
    )
