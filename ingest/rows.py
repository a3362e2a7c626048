"""JSON lines: rows found by their place in the file, and one row read: {id, text, title?, metadata?, source?}."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from math import isinf
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from rag.errors import DocumentError
from rag.types import Span

_BOM = b"\xef\xbb\xbf"
_BLOCK_BYTES = 1024 * 1024
_UNSTORABLE = dict.fromkeys((0, *range(0xD800, 0xE000)), "\ufffd")  # a character for each: offsets hold
_MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Row:
    """A row's document. `revision` depends on text, title and metadata, not on how the line is written."""

    source: str
    text: str
    title: str | None
    metadata: Mapping[str, Any]
    revision: str


def find_rows(path: Path, max_row_bytes: int) -> Iterator[tuple[int, Span, bytes]]:
    """Line number from 1, byte range without the line end, and bytes of each line that is not blank, in order.

    The bytes of a line longer than `max_row_bytes` are left out (b""). Memory holds one line. Raises OSError.
    """
    with path.open("rb") as file:
        start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
        file.seek(start)
        number = 0
        while line := file.readline(max_row_bytes + 2):  # 2: its line end
            number += 1
            raw = line.rstrip(b"\r\n")
            size = len(raw)
            cut = not line.endswith(b"\n") and len(line) == max_row_bytes + 2
            if cut or size > max_row_bytes:
                size, raw = len(line) + (_skip_line(file) if cut else 0), b""
            if raw.strip() or size > max_row_bytes:
                yield number, (start, start + size), raw
            start = file.tell()


def _skip_line(file: BinaryIO) -> int:
    """Reads on to the line's end; how many bytes that were."""
    size = 0
    while piece := file.readline(_BLOCK_BYTES):
        size += len(piece)
        if piece.endswith(b"\n"):
            break
    return size


def read_row(raw: bytes) -> Row:
    """The document of a line. `_id` counts as `id`; other names than those above are left aside.

    In its texts, those of the metadata among them, a NUL or half a surrogate pair, which no store can hold, is U+FFFD.
    Raises DocumentError.
    """
    try:
        row = _clean(json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"it is no JSON in UTF-8 ({_shorten(str(error))}); write one object a line") from error
    if not isinstance(row, dict):
        raise DocumentError(f'it is no JSON object but {_show(row)}; write {{"id": ..., "text": ...}}')
    source = _string(row, "source") or _identifier(row)
    text = _string(row, "text")
    if text is None or not text.strip():
        raise DocumentError("its `text` is missing or empty; write some or leave the row out")
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise DocumentError(f"its `metadata` is {_show(metadata)}; write an object or leave it out")
    title = _string(row, "title") or None
    content = json.dumps([title, text, metadata or {}], sort_keys=True)  # ASCII: the same bytes for the same row
    revision = blake2b(content.encode("ascii"), digest_size=16).hexdigest()
    return Row(source, text, title, metadata or {}, revision)


def read_part(path: Path, part: Span) -> Row:
    """The row at a range of bytes that `find_rows` gave. Raises OSError, and DocumentError for what is no row now."""
    with path.open("rb") as file:
        file.seek(part[0])
        return read_row(file.read(part[1] - part[0]))


def _identifier(row: Mapping[str, Any]) -> str:
    value = row.get("id", row.get("_id"))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise DocumentError("it has no `id` (nor `_id`) that is a string or a whole number; give it one of its own")
    return value


def _string(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise DocumentError(f"its `{name}` is {_show(value)}; write a string or leave it out")
    return value


def _clean(value: Any) -> Any:
    match value:
        case str():
            return value.translate(_UNSTORABLE)
        case list():
            return [_clean(entry) for entry in value]
        case dict():
            return {_clean(name): _clean(entry) for name, entry in value.items()}
        case float() if isinf(value):
            return _refuse_constant("Infinity")
        case _:
            return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _show(value: object) -> str:
    return _shorten(json.dumps(value, ensure_ascii=False))


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
