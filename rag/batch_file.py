"""The files of `rag ask-batch`: questions as JSON lines, and answers, appended so that a killed run resumes.

    rows = read_questions(IN)             a row a line, each with an id of its own
    with open_answers(OUT, rows) as out:  what is answered already, by id
        out.append(bodies)                on the disk when it returns

A line of OUT is whole or is no answer: what a kill cut off is dropped. A row whose answer is an error is asked again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rag.errors import InputError

_HASH_DIGITS = 16
_MAX_ID_CHARS = 200


@dataclass(frozen=True, slots=True)
class BatchRow:
    """A question by its id: the fields of its line without `id`, or why they cannot be read.

    `request_hash` are 16 hexadecimal digits of the SHA-256 of the fields (of the line where it is no JSON object).
    """

    row_id: str
    fields: Mapping[str, Any] | InputError
    request_hash: str


def read_questions(path: Path) -> list[BatchRow]:
    """The rows of a file of JSON lines, in order; blank lines are none.

    A row without `id` is named by its hash, and one that says the same as rows before by `-2`, `-3` behind it: the same
    file gives the same ids, in whatever order its lines are. Raises InputError for a file that cannot be read and for
    ids that are there twice.
    """
    rows: list[BatchRow] = []
    lines: dict[str, int] = {}  # id -> its line
    unnamed = Counter[str]()
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else raw.strip()
                if not line:
                    continue
                given, fields, request_hash = _read_line(line)
                if given is None:
                    unnamed[request_hash] += 1
                    again = unnamed[request_hash]
                    given = f"row-{request_hash}" + (f"-{again}" if again > 1 else "")
                if given in lines:
                    raise InputError(
                        f"{path}: lines {lines[given]} and {number} have the same id {given!r}; "
                        "give each row an id of its own, or none"
                    )
                lines[given] = number
                rows.append(BatchRow(given, fields, request_hash))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); name a file of JSON lines") from error
    return rows


def _read_line(line: bytes) -> tuple[str | None, Mapping[str, Any] | InputError, str]:
    """The id that a line gives, its other fields, and their hash."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return None, InputError(f"the row is no JSON in UTF-8 ({error}); write one object a line"), _hash(line)
    if not isinstance(row, dict):
        return None, InputError('the row is no JSON object; write {"question": ...}'), _hash(line)
    given = row.pop("id", None)
    request_hash = _hash(json.dumps(row, sort_keys=True).encode("ascii"))
    if given is None:
        return None, row, request_hash
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if not isinstance(given, str) or not given.strip() or len(given) > _MAX_ID_CHARS:
        wrong = InputError(f"the row's id is no string of 1 to {_MAX_ID_CHARS} characters and no whole number")
        return None, wrong, _hash(line)
    return given, row, request_hash


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:_HASH_DIGITS]


class AnswerFile:
    """OUT while a run has it; `waiting` are the rows without an answer, by id."""

    def __init__(self, path: Path, file: BinaryIO, waiting: dict[str, BatchRow]) -> None:
        self._path = path
        self._file = file
        self.waiting = waiting

    def append(self, bodies: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Writes what became of rows, by id; they wait no longer. On the disk when it returns.

        A row is written once: KeyError for one that does not wait. Raises InputError where the disk takes no more.
        """
        lines = []
        for row_id, body in bodies:
            row = self.waiting.pop(row_id)
            line = json.dumps({"id": row_id, "request_hash": row.request_hash, **body}, ensure_ascii=False)
            # Half a surrogate pair, which no encoder takes, becomes JSON's own escape.
            lines.append(line.encode("utf-8", "backslashreplace") + b"\n")
        with _failures_of(self._path):
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fsync(self._file.fileno())


@contextmanager
def open_answers(path: Path, rows: Sequence[BatchRow]) -> Iterator[AnswerFile]:
    """OUT for the length of a block, made where it is not there; no other run has it meanwhile.

    What is in it stays, errors and a line that a kill cut off aside. Raises InputError where another run has it, where
    it holds an answer to another question than these rows', and where it cannot be written.
    """
    with _failures_of(path):
        file = _lock(path)
    try:
        with _failures_of(path):
            file, waiting = _take_up(path, file, {row.row_id: row for row in rows})
        yield AnswerFile(path, file, waiting)
    finally:
        # Each append has the disk's word for what it wrote: what closing would still write is what one was refused.
        with suppress(OSError):
            file.close()


@contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); name another file for the answers") from error


def _lock(path: Path) -> BinaryIO:
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(f"{path} is being written to by another run; wait until that ends") from None
        if os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # another run put a new file in its place before this one had the lock


def _take_up(path: Path, file: BinaryIO, rows: dict[str, BatchRow]) -> tuple[BinaryIO, dict[str, BatchRow]]:
    """The file without what is to be asked again, at its end, and the rows that wait."""
    waiting = dict(rows)
    dropped = False
    file.seek(0)
    for number, line in enumerate(file, start=1):
        if not line.endswith(b"\n"):
            dropped = True
        elif _is_answer(path, number, line, rows, waiting):
            continue
        else:
            dropped = True
    if not dropped:
        return file, waiting
    # A new file in its place, complete when it gets there: a kill leaves the one or the other.
    part = path.with_name(path.name + ".part")
    new = part.open("w+b")
    fcntl.flock(new, fcntl.LOCK_EX)
    file.seek(0)
    new.writelines(line for line in file if line.endswith(b"\n") and "error" not in json.loads(line))
    new.flush()
    os.fsync(new.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    file.close()
    return new, waiting


def _is_answer(path: Path, number: int, line: bytes, rows: dict[str, BatchRow], waiting: dict[str, BatchRow]) -> bool:
    """Whether a line answers a row, which then waits no longer; False for an error. Raises InputError for others."""
    try:
        body = json.loads(line)
        row_id, request_hash, failed = body["id"], body["request_hash"], "error" in body
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f"{path}: line {number} is no answer of a batch; name another file for the answers") from error
    if failed:
        return False
    row = rows.get(row_id)
    if row is None or row.request_hash != request_hash:
        what = "which is not among the questions" if row is None else "whose question was another one"
        raise InputError(
            f"{path}: line {number} answers {row_id!r}, {what}; name another file for the answers, or delete that line"
        )
    if waiting.pop(row_id, None) is None:
        raise InputError(f"{path}: line {number} answers {row_id!r} once more; delete that line")
    return True
