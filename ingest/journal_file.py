"""The journal's file: its tables, what makes it useless, and the lock that keeps a second process off."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rag.errors import SettingsError

SCHEMA_VERSION = 1
_POLL_S = 0.02
_DURABLE = "PRAGMA synchronous = FULL"  # an entry has to be on the disk before the rows that it speaks of

_TABLES = (
    "CREATE TABLE journal (identity TEXT NOT NULL, trusted INTEGER NOT NULL)",
    "CREATE TABLE documents (document_id TEXT PRIMARY KEY, revision TEXT NOT NULL, origin TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE unfinished (document_id TEXT PRIMARY KEY, revision TEXT NOT NULL, source TEXT NOT NULL, "
    "origin TEXT NOT NULL, acl TEXT NOT NULL, metadata TEXT NOT NULL, index_version TEXT NOT NULL, "
    "updated_at TEXT NOT NULL, moved_from TEXT, written INTEGER NOT NULL) WITHOUT ROWID",
)


def open_file(path: Path, identity: str) -> tuple[sqlite3.Connection, str]:
    """The file at `path`, and why it was begun anew: empty where it was there, whole, and of this identity."""
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        database.execute(_DURABLE)
        fault = _find_fault(database, identity)
    except sqlite3.OperationalError:  # it cannot be read now; that says nothing about what it holds
        database.close()
        raise
    except sqlite3.DatabaseError as error:
        fault = f"is damaged ({error})"
    if not fault:
        return database, ""
    database.close()
    remove_file(path)
    database = sqlite3.connect(path, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(_DURABLE)
    database.execute("BEGIN")
    for statement in _TABLES:
        database.execute(statement)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    database.execute("INSERT INTO journal VALUES (?, 0)", (identity,))
    database.commit()
    return database, fault


def remove_file(path: Path) -> None:
    """Removes a journal's file, which nobody has open, and those that SQLite keeps beside it."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def take_lock(lock: int, of_what: str, say: Callable[[str], None]) -> None:
    """Locks an open file until it is closed or the process ends; says so and waits while another process has it."""
    if not try_lock(lock):
        say(f"{of_what} is being written to by process {name_holder(lock)}; waiting until that ends")
        fcntl.flock(lock, fcntl.LOCK_EX)
        _write_holder(lock)


def try_lock(lock: int, patience_s: float = 0.0) -> bool:
    """Locks an open file unless another process has it, for so long; whether it did."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL_S)
        else:
            _write_holder(lock)
            return True


def name_holder(lock: int) -> str:
    """The process that has the lock of an open file, by what it wrote there."""
    return os.pread(lock, 20, 0).decode("ascii") or "unknown"


def _write_holder(lock: int) -> None:
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode("ascii"), 0)


@contextmanager
def failures_of(path: Path) -> Iterator[None]:
    """What the system refuses leaves as a SettingsError."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        raise SettingsError(
            f"the journal {path} cannot be used: {error}; give this user the right to write it and free some space, "
            "or choose another data_dir (RAG_DATA_DIR)"
        ) from error


def _find_fault(database: sqlite3.Connection, identity: str) -> str:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        return "is new"
    if version != SCHEMA_VERSION:
        return "was written by another version of this program"
    if database.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
        return "is damaged"
    if database.execute("SELECT identity FROM journal").fetchone() != (identity,):
        return "belongs to another store or collection"
    return ""
