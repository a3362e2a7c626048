"""PDF -> pages, by pypdf in a child process: whatever a file does there, it costs that file only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from rag.config import MIB, IngestSettings
from rag.errors import DocumentError
from rag.types import Document, Page, ParsedDocument

_CHILD = Path(__file__).with_name("pdf_child.py")
_REPAIR = "open it and save it anew as PDF, or give its text in another format"
_NO_TITLES = {"", "untitled"}  # the latter is what some programs write for want of one
_BIG = "split the file, or raise the setting"


def parse_pdf(path: Path, document: Document, limits: IngestSettings, child: Path = _CHILD) -> ParsedDocument:
    """A page for each of the file's, numbered from 1, its text in NFC and ended by a line end.

    A page that pypdf cannot read is left empty and counted in `skipped_pages`. The title is the file's metadata's,
    else its name. `child` is the program that reads (pdf_child.py says how). Raises DocumentError for a file that is
    encrypted, damaged or without text, and where a limit was met.
    """
    lines = _read_lines(path, limits, child)
    if lines and "refused" in lines[-1]:
        raise DocumentError(_refusal(lines[-1], limits))
    head, found = lines[0], lines[1:-1]
    pages: list[Page] = []
    start = 0
    for number, line in enumerate(found, start=1):
        text = line["text"].rstrip() + "\n" if "text" in line else ""
        pages.append(Page(number, text, start))
        start += len(text)
    damages = [line["damage"] for line in found if "damage" in line]
    if not any(page.text.strip() for page in pages):
        raise DocumentError(_no_text(len(pages), damages))
    title = " ".join((head["title"] or "").split())
    if title.lower() in _NO_TITLES:
        title = Path(document.source).stem
    return ParsedDocument(document, title, tuple(pages), paged=True, skipped_pages=len(damages))


def _read_lines(path: Path, limits: IngestSettings, child: Path) -> list[dict[str, Any]]:
    """The child's lines, the last of them `done` or `refused`. Raises DocumentError where it did not come that far."""
    numbers = (limits.parse_memory_bytes, limits.parse_cpu_s, limits.max_pages, limits.max_chars)
    # -P: the child's own folder is no place to import from; its modules are named like the standard library's.
    command = [sys.executable, "-P", str(child), str(path), *map(str, numbers)]
    with tempfile.TemporaryFile() as errors:
        output, status = _run(command, errors, limits.parse_wall_s)
        errors.seek(max(errors.tell() - 2000, 0))
        last_words = errors.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
    if status is None:
        raise DocumentError(f"reading it took longer than {limits.parse_wall_s:g} s; {_BIG} ingest.parse_wall_s")
    lines = [json.loads(line) for line in output.splitlines(keepends=True) if line.endswith(b"\n")]
    if lines and ("done" in lines[-1] or "refused" in lines[-1]):
        return lines
    raise DocumentError(_death(status, last_words, limits))


def _run(command: Sequence[str], errors: IO[bytes], wall_s: float) -> tuple[bytes, int | None]:
    """The command's output and exit status; None where it was killed for taking longer than `wall_s`.

    It leads a process group of its own, and the whole group is gone when this returns or raises.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
    )
    try:
        return process.communicate(timeout=wall_s)[0], process.returncode
    except subprocess.TimeoutExpired:
        return b"", None
    finally:
        _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of it has ended
    finally:
        process.communicate()


def _refusal(line: Mapping[str, Any], limits: IngestSettings) -> str:
    kind, detail = line["refused"], line["detail"]
    if kind == "encrypted":
        return "it is encrypted; save a copy that needs no password, for example: qpdf --decrypt --password=... IN OUT"
    if kind == "pages":
        return f"it has {int(detail):,} pages, more than the {limits.max_pages:,} allowed; {_BIG} ingest.max_pages"
    if kind == "chars":
        return f"it has more than the {limits.max_chars:,} characters allowed; {_BIG} ingest.max_chars"
    if kind == "memory":
        return _memory(limits)
    return f"it is damaged or no PDF ({detail}); {_REPAIR}"


def _no_text(pages: int, damages: Sequence[str]) -> str:
    if not pages:
        return f"it has no pages; {_REPAIR}"
    if damages:
        return f"no page of it can be read (pages: {pages}, the first damage: {damages[0]}); {_REPAIR}"
    return (
        f"it holds no text (pages: {pages}), only images perhaps; "
        "add a text layer first, for example: ocrmypdf --force-ocr IN OUT"
    )


def _death(status: int, last_words: str, limits: IngestSettings) -> str:
    if status == -signal.SIGXCPU:
        return f"reading it took more than {limits.parse_cpu_s} s of CPU time; {_BIG} ingest.parse_cpu_s"
    if "MemoryError" in last_words:
        return _memory(limits)
    how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    return f"the process that read it {how}{': ' + last_words if last_words else ''}; {_REPAIR}"


def _memory(limits: IngestSettings) -> str:
    return (
        f"reading it takes more memory than the {limits.parse_memory_bytes // MIB:,} MiB allowed; "
        f"{_BIG} ingest.parse_memory_bytes"
    )
