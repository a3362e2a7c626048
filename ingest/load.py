"""Paths, folders and globs -> files to read; a file -> its Documents: one, or with JSON lines one a line.

A Document is its file seen from outside: an id from where it is, a revision from its bytes, a media type
from what it holds. Nothing is parsed here, and a file is never held in memory as a whole.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import takewhile
from pathlib import Path
from typing import Any

from ingest.rows import find_rows, read_row
from rag.errors import DocumentError
from rag.types import Document, Span

PDF = "application/pdf"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
JSONL = "application/x-ndjson"
MARKDOWN = "text/markdown"
HTML = "text/html"
TEXT = "text/plain"

# What a walk through a folder takes; a file that is named is tried whatever its suffix.
SUFFIXES = {
    ".pdf": PDF,
    ".docx": DOCX,
    ".jsonl": JSONL,
    ".ndjson": JSONL,
    ".md": MARKDOWN,
    ".markdown": MARKDOWN,
    ".html": HTML,
    ".htm": HTML,
    ".txt": TEXT,
    ".text": TEXT,
    ".rst": TEXT,
}

_END_BYTES = 64 * 1024  # what the type is told from, at the file's beginning and at its end
_BLOCK_BYTES = 1024 * 1024
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
# Possessive and atomic: what stands in front is read once, however many comments it has.
_HTML_OPENING = re.compile(rb"(?is)(?:\s|<\?xml[^>]*+>|(?><!--.*?-->))*+<(?:!doctype\s+html|html|head|body)\b")
_PDF_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?\s{0,1000}%PDF-")
_CONTROL_BYTES = bytes(set(range(32)) - {0x08, 0x09, 0x0A, 0x0C, 0x0D, 0x1B})  # not those that terminals' logs hold
_MOST_CONTROL_FRACTION = 0.02
_ZIP_OPENING = b"PK\x03\x04"
_OLE_OPENING = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_WORD_PART = re.compile(rb"word/document\d*\.xml")  # its name stands in the zip as it is, in front of it and at the end


@dataclass(frozen=True, slots=True)
class Failure:
    """An input that could not be used: which one, and a sentence saying why and what to do."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True)
class FoundFiles:
    """What the given paths stand for.

    `files` are resolved, in the order given and sorted within a folder, each once. `folders` are the resolved folders
    that were given. `skipped` counts files of other kinds in them. `failures` are names that stand for nothing.
    """

    files: tuple[Path, ...]
    folders: tuple[Path, ...] = ()
    skipped: int = 0
    failures: tuple[Failure, ...] = ()


@dataclass(slots=True)
class _Search:
    left_out: Collection[Path]
    files: dict[Path, None] = field(default_factory=dict)
    folders: dict[Path, None] = field(default_factory=dict)
    skipped: set[Path] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)

    def comes_into(self, path: Path, start: Path) -> bool:
        """Whether a resolved path lies in a folder that is left out and that the search did not start in."""
        return any(path.is_relative_to(one) and not start.is_relative_to(one) for one in self.left_out)


def find_files(given: Sequence[str | Path], left_out: Collection[Path] = ()) -> FoundFiles:
    """The files that paths, folders and globs stand for.

    A folder is walked through in sorted order; hidden files and folders are left out, and so are files whose suffix is
    not in SUFFIXES, and links to folders. A name that does not exist is taken as a glob, whose matches count as if each
    had been given. What cannot be found or listed becomes a failure; nothing is raised.

    `left_out` are resolved folders that neither a walk nor a glob comes into from outside; a name that leads into one
    is taken.
    """
    search = _Search(left_out)
    for name in given:
        if os.path.lexists(name):
            _take(Path(name), search)
        elif matches := _expand(str(name)):
            start = Path(*takewhile(lambda part: not glob.has_magic(part), Path(name).parts)).resolve()
            for match in matches:
                _take(match, search, start)
        else:
            reason = "there is no such file or folder, and nothing matches it as a pattern; check the name"
            search.failures.append(Failure(printable(str(name)), reason))
    files = tuple(search.files)
    return FoundFiles(files, tuple(search.folders), len(search.skipped.difference(files)), tuple(search.failures))


def _expand(pattern: str) -> list[Path]:
    return sorted(Path(match) for match in glob.glob(pattern, recursive=True))  # noqa: PTH207, Path.glob takes no absolute one


def _take(path: Path, search: _Search, start: Path | None = None) -> None:
    """What a name stands for; `start` is where a glob that matched it begins."""
    resolved = _resolve(path, search)
    if resolved is None or (start is not None and search.comes_into(resolved, start)):
        return
    if not os.path.isdir(resolved):  # noqa: PTH112, Path.is_dir raises where the system refuses to look
        search.files[resolved] = None
        return
    search.folders[resolved] = None
    for file in _walk(resolved, search):
        target = _resolve(file, search)
        if target is not None and not search.comes_into(target, resolved):
            search.files[target] = None


def _resolve(path: Path, search: _Search) -> Path | None:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        search.failures.append(Failure(printable(str(path)), f"it cannot be reached: {error}; mend or remove the link"))
        return None


def _walk(folder: Path, search: _Search) -> Iterator[Path]:
    def note(error: OSError) -> None:
        reason = f"the folder cannot be listed: {error.strerror}; give this user the right to read it"
        search.failures.append(Failure(printable(str(error.filename)), reason))

    for parent, folders, names in os.walk(folder, onerror=note):
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not search.comes_into(Path(parent, name), folder)
        )
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(parent, name)
            if path.suffix.lower() in SUFFIXES:
                yield path
            else:
                search.skipped.add(path)


def document_id_of(source: str) -> str:
    """32 hexadecimal digits that depend on the source alone."""
    return blake2b(source.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def revision_of(raw: bytes) -> str:
    """32 hexadecimal digits that depend on the bytes alone; what `load_document` computes from a file."""
    return blake2b(raw, digest_size=16).hexdigest()


def load_document(
    path: Path,
    *,
    max_file_bytes: int,
    acl: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> Document:
    """The Document of a file that is one; its source is the one given, else the resolved path.

    Memory does not grow with the file.

    Raises DocumentError for a file that is gone, unreadable, no regular file, empty, binary, JSON lines, or larger than
    `max_file_bytes`, and for a name that is not Unicode.
    """
    try:
        media_type = _tell_file(path, max_file_bytes)
        if media_type == JSONL:
            raise DocumentError("it holds a document a line; it cannot be taken as one")
        revision = hash_file(path, max_file_bytes)
    except OSError as error:
        raise DocumentError(unreadable(error)) from error
    source = source or path.resolve().as_posix()
    return Document(document_id_of(source), source, revision, media_type, tuple(acl), dict(metadata or {}))


def load_documents(
    path: Path,
    *,
    max_file_bytes: int,
    acl: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    source: str | None = None,
) -> Iterator[Document | Failure]:
    """The file's documents in order. A file that cannot be used, or a part of one, is a Failure; none is raised.

    A row of JSON lines is a document: its source is the row's `source`, else its id, its metadata lies under the
    caller's, and `max_file_bytes` is what a row may have; the file itself may have any size. A bad row, and a second
    one with the same source, is a Failure named FILE:LINE. Memory holds one row, and some 70 bytes for each before it.
    """
    try:
        if _tell_file(path, max_file_bytes) == JSONL:
            yield from _load_rows(path, source or str(path), max_file_bytes, tuple(acl), dict(metadata or {}))
        else:
            yield load_document(path, max_file_bytes=max_file_bytes, acl=acl, metadata=metadata, source=source)
    except OSError as error:
        yield Failure(source or printable(str(path)), unreadable(error))
    except DocumentError as error:
        yield Failure(source or printable(str(path)), str(error))


def _load_rows(
    path: Path, called: str, max_row_bytes: int, acl: tuple[str, ...], metadata: Mapping[str, Any]
) -> Iterator[Document | Failure]:
    seen: set[int] = set()  # 64 bits of each source: two of 10 million rows clash in one file of 300,000
    for number, part, raw in find_rows(path, max_row_bytes):
        try:
            _refuse_size(part[1] - part[0], max_row_bytes)
            document = _load_row(raw, part, acl, metadata)
            key = int(document.document_id[:16], 16)
            if key in seen:
                reason = "its source (or its id, without one) stands in a row above; give each row its own"
                raise DocumentError(reason)
        except DocumentError as error:
            yield Failure(f"{called}:{number}", str(error))
            continue
        seen.add(key)
        yield document


def _load_row(raw: bytes, part: Span, acl: tuple[str, ...], metadata: Mapping[str, Any]) -> Document:
    row = read_row(raw)
    return Document(
        document_id_of(row.source),
        row.source,
        row.revision,
        JSONL,
        acl,
        {**row.metadata, **metadata},
        part=part,
        title=row.title,
    )


def _tell_file(path: Path, max_file_bytes: int) -> str:
    """The media type of a file that can be read. Raises OSError, and DocumentError for one that is of no use."""
    source = path.resolve().as_posix()
    if printable(source) != source:
        raise DocumentError("its name is not valid UTF-8 and cannot be stored; rename it")
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise DocumentError("it is not a regular file; name a file or a folder")
    if SUFFIXES.get(path.suffix.lower()) != JSONL:
        _refuse_size(status.st_size, max_file_bytes)
    with path.open("rb") as file:
        head = file.read(_END_BYTES)
        file.seek(max(status.st_size - _END_BYTES, 0))
        tail = file.read(_END_BYTES)
    if not head:
        raise DocumentError("it is empty (0 bytes); write something into it or leave it out")
    return tell_media_type(head, path.name, tail)


def tell_media_type(head: bytes, name: str, tail: bytes = b"") -> str:
    """PDF, DOCX, HTML, JSONL, MARKDOWN or TEXT, by a file's first and last bytes before its name.

    Raises DocumentError for a binary one, and for one named as JSON lines whose first line is no object.
    """
    known = SUFFIXES.get(Path(name).suffix.lower())
    suffix = known or TEXT
    # A PDF may begin with something else; a file that is called a text may speak of PDFs.
    if _PDF_OPENING.match(head) or (known in (PDF, None) and b"%PDF-" in head[:1024]):
        return PDF
    if head.startswith(_ZIP_OPENING) and (suffix == DOCX or _WORD_PART.search(head) or _WORD_PART.search(tail)):
        return DOCX
    if _HTML_OPENING.match(head[:4096]):
        return HTML
    if suffix == PDF:  # damaged at its start, perhaps: the PDF parser knows more about that
        return PDF
    if is_binary(head):
        raise DocumentError(_binary(head))
    if suffix == JSONL and not head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        raise DocumentError(
            "it is named as JSON lines but its first line is no JSON object; mend the line or rename it"
        )
    return TEXT if suffix == DOCX else suffix


def _binary(head: bytes) -> str:
    if head.startswith(_OLE_OPENING):
        return "it is an Office file of the old kind (.doc) or one with a password; save it as DOCX without a password"
    return "it is binary, not text, and neither PDF nor DOCX; give its text in a format that is read, or leave it out"


def is_binary(raw: bytes) -> bool:
    """Whether bytes are no text: a NUL outside UTF-16, or many control characters."""
    if raw.startswith(_UTF16_BOMS):
        return False
    controls = len(raw) - len(raw.translate(None, _CONTROL_BYTES))
    return b"\0" in raw or controls > _MOST_CONTROL_FRACTION * len(raw)


def unreadable(error: OSError) -> str:
    """The sentence for a file that the system will not give us."""
    if isinstance(error, FileNotFoundError):
        return "it is gone; it was there when the files were listed"
    if isinstance(error, PermissionError):
        return "permission denied; give this user the right to read it"
    return f"it cannot be read: {error.strerror or error}"


def hash_file(path: Path, max_file_bytes: int) -> str:
    """The file's revision, read block by block."""
    digest = blake2b(digest_size=16)
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            size += len(block)
            _refuse_size(size, max_file_bytes)  # it may grow while it is read
            digest.update(block)
    return digest.hexdigest()


def _refuse_size(size: int, max_file_bytes: int) -> None:
    if size > max_file_bytes:
        raise DocumentError(
            f"it has {size:,} bytes, more than the {max_file_bytes:,} allowed; "
            "split it, or raise the setting ingest.max_file_bytes (RAG_INGEST__MAX_FILE_BYTES)"
        )


def printable(source: str) -> str:
    """The name as it can be shown and stored: bytes that are not UTF-8 are written \\xNN."""
    return os.fsencode(source).decode("utf-8", "backslashreplace")
