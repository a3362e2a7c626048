"""A multipart body into files as it arrives: in memory are the fields, within limits, and a part's head; nothing is
written elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from rag.errors import InputError, MalformedError, TooLargeError

FILE_FIELD = "file"
MAX_FIELDS = 1000
MAX_FIELD_BYTES = 256 * 1024  # a field's value, metadata with the most that a row may hold among them
MAX_FIELDS_BYTES = 2 * MAX_FIELD_BYTES  # all fields' names and values; 100 groups of 200 characters are 80 KB


@dataclass(slots=True)
class FormReceiver:
    """Takes a body piece by piece; files are written to `folder`, called 0, 1, ..., and fsynced at their ends.

    `names` are the files' as the client gave them, `fields` the other parts' texts in their order. Raises
    MalformedError, InputError for a file in another field than `file`, TooLargeError, and OSError of the disk. Blocks:
    to be called from a thread, and `close` after an error.
    """

    folder: Path
    content_type: str
    max_files: int
    names: list[str] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=dict)
    _file: IO[bytes] | None = None
    _field: str = ""
    _fields_bytes: int = 0
    _value: bytearray = field(default_factory=bytearray)
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header: tuple[bytearray, bytearray] = field(default_factory=lambda: (bytearray(), bytearray()))
    _ended: bool = False
    _parser: MultipartParser = field(init=False)

    def __post_init__(self) -> None:
        boundary = parse_options_header(self.content_type)[1].get(b"boundary")
        if not boundary:
            raise MalformedError("the content type names no boundary; send multipart/form-data; boundary=...")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._open_part,
                    "on_part_data": self._write_part,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError as error:
            raise MalformedError(f"the boundary cannot be used: {error}") from error

    def write(self, piece: bytes) -> None:
        """The next bytes of the body."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise MalformedError(f"the body is not multipart/form-data: {error}") from error

    def finish(self) -> None:
        """After the last bytes."""
        if not self._ended:
            raise MalformedError("the body ends before its closing boundary; send it whole")

    def close(self) -> None:
        """Leaves a file that is half written."""
        if self._file is not None:
            self._file.close()

    def _begin_part(self) -> None:
        self._headers.clear()
        self._value.clear()

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _open_part(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise MalformedError("a part has no Content-Disposition: form-data with a name")
        self._field = _decode(options[b"name"])
        if b"filename" not in options:
            if sum(map(len, self.fields.values())) >= MAX_FIELDS:
                raise TooLargeError(f"the form has more than {MAX_FIELDS} fields")
            self._count(len(options[b"name"]))
            return
        if self._field != FILE_FIELD:
            raise InputError(f"a file is in the field {self._field[:80]!r}; send each in a field called `{FILE_FIELD}`")
        if len(self.names) >= self.max_files:
            raise TooLargeError(
                f"a request may have {self.max_files} files (setting serve.max_upload_files); send more in another"
            )
        self._file = (self.folder / str(len(self.names))).open("xb")
        self.names.append(_decode(options[b"filename"]))

    def _write_part(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > MAX_FIELD_BYTES:
            raise TooLargeError(f"the field {self._field[:80]!r} has more than {MAX_FIELD_BYTES} bytes")
        self._count(end - start)

    def _count(self, size: int) -> None:
        self._fields_bytes += size
        if self._fields_bytes > MAX_FIELDS_BYTES:
            raise TooLargeError(f"the form's fields have more than {MAX_FIELDS_BYTES} bytes all together")

    def _end_part(self) -> None:
        if self._file is None:
            self.fields.setdefault(self._field, []).append(_decode(bytes(self._value)))
            return
        with self._file as file:
            file.flush()
            os.fsync(file.fileno())
        self._file = None

    def _end(self) -> None:
        self._ended = True


def _decode(raw: bytes) -> str:
    """Text of a part; browsers send UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
