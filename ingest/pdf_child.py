"""Run as a program: reads one PDF with pypdf and writes what it finds as JSON lines; its limits die with it.

    python pdf_child.py FILE MEMORY_BYTES CPU_S MAX_PAGES MAX_CHARS

Lines, in order: `{"pages": n, "title": str | null}`, then for each page `{"text": str}` or `{"damage": str}`, then
`{"done": true}`. A file that cannot be read ends the lines with `{"refused": KIND, "detail": str}`, KIND one of
REFUSALS. Free of this project's other modules, so that it starts in a tenth of a second.
"""

from __future__ import annotations

import json
import logging
import resource
import struct
import sys
import unicodedata
import zlib
from collections.abc import Iterator

REFUSALS = ("encrypted", "damaged", "pages", "chars", "memory")

# What pypdf raises on damaged input, beside its own errors. MemoryError is not among them: it ends the file.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,  # RecursionError and NotImplementedError with it
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}  # "ﬁ" and its like

Line = dict[str, str | int | bool | None]


def limit_process(memory_bytes: int, cpu_s: int) -> None:
    """Caps this process's address space and CPU time; past the latter the system ends it with SIGXCPU."""
    for kind, wanted in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        resource.setrlimit(kind, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


def read_pdf(path: str, max_pages: int, max_chars: int) -> Iterator[Line]:
    """The lines for one file."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    damage = (*_DAMAGE, PyPdfError)
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            yield {"refused": "encrypted", "detail": ""}
            return
        count = len(reader.pages)
    except damage as error:
        yield {"refused": "damaged", "detail": _sentence(error)}
        return
    if count > max_pages:
        yield {"refused": "pages", "detail": str(count)}
        return
    try:
        title = reader.metadata.title if reader.metadata else None
    except damage:
        title = None  # the file's name will do
    yield {"pages": count, "title": storable(title) if isinstance(title, str) else None}
    chars = 0
    for number in range(count):
        try:
            text = storable(reader.pages[number].extract_text())
        except damage as error:
            yield {"damage": _sentence(error)}
            continue
        chars += len(text)
        if chars > max_chars:
            yield {"refused": "chars", "detail": str(chars)}
            return
        yield {"text": text}
    yield {"done": True}


def storable(text: str) -> str:
    """Text that UTF-8 and the store can hold and a search can find.

    NFC, Latin ligatures as their letters, surrogate pairs joined, lone surrogates and NULs left out.
    """
    joined = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    return unicodedata.normalize("NFC", joined.replace("\0", "").translate(_LIGATURES))


def _sentence(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def main() -> None:
    """Reads the file that the command line names, within the limits that it names."""
    path, memory_bytes, cpu_s, max_pages, max_chars = sys.argv[1:]
    limit_process(int(memory_bytes), int(cpu_s))
    logging.disable(logging.CRITICAL)  # pypdf logs every oddity that it repairs
    try:
        for line in read_pdf(path, int(max_pages), int(max_chars)):
            print(json.dumps(line), flush=True)  # ASCII: titles may hold anything
    except MemoryError:
        print(json.dumps({"refused": "memory", "detail": ""}), flush=True)


if __name__ == "__main__":
    main()
