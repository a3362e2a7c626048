"""What is being written to a collection, in a SQLite file, so that the run after a killed one finishes or removes it.

The store decides what is true: the journal is compared with it at each start and rebuilt from it where they disagree.
A document counts as stored once its chunk of ordinal 0 is; `updated_at`, the same on all rows of one publication, tells
the rows of one attempt from those of another.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ingest.journal_file import failures_of, name_holder, open_file, take_lock, try_lock
from rag.columns import from_column, to_column
from rag.config import Settings
from rag.errors import OverloadedError
from rag.types import Chunk, StoredDocument

_PAGE_ROWS = 1_000
_DELETION_S = 1.0  # longer than a deletion has the lock: who has it still ingests

# What the store says, for the length of a run: on disk, so that memory does not grow with the collection.
_OF_THE_RUN = """
CREATE TEMP TABLE stored (
    document_id TEXT, revision TEXT, source TEXT, acl TEXT, metadata TEXT, chunks INTEGER, updated_at TEXT,
    PRIMARY KEY (document_id, revision)
) WITHOUT ROWID;
CREATE INDEX temp.stored_revision ON stored (revision);
CREATE TEMP TABLE rows (
    document_id TEXT, revision TEXT, source TEXT, acl TEXT, metadata TEXT, chunks INTEGER, updated_at TEXT,
    ordinal INTEGER
);
CREATE TEMP TABLE broken (document_id TEXT, revision TEXT, PRIMARY KEY (document_id, revision)) WITHOUT ROWID;
CREATE TEMP TABLE seen (document_id TEXT PRIMARY KEY, origin TEXT) WITHOUT ROWID;
"""
_RECORDED = (
    "SELECT s.document_id, s.revision, s.source, COALESCE(d.origin, s.source), s.acl, s.metadata, s.chunks, "
    "s.updated_at FROM stored s LEFT JOIN documents d USING (document_id)"
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A complete revision of a document; `origin` is the file that it came from, its source where that is not known."""

    document_id: str
    revision: str
    source: str
    origin: str
    acl: tuple[str, ...]
    metadata: Mapping[str, Any]
    chunks: int
    updated_at: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A revision on its way into the store: what each of its rows says, and how far it has got.

    `moved_from` is the document that it takes the place of, whose file is gone and held the same bytes. The rows of the
    ordinals 1 to `written` are in the store.
    """

    document_id: str
    revision: str
    source: str
    origin: str
    acl: tuple[str, ...]
    metadata: Mapping[str, Any]
    index_version: str
    updated_at: str
    moved_from: str | None = None
    written: int = 0


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How many documents the store holds that the journal does not know, and the other way round."""

    unknown: int
    missing: int


class Journal:
    """One collection's journal, open. A method that changes it has written to disk when it returns, but for
    `note_origin` and `mark_seen`. Safe to share between threads. Raises SettingsError where the file cannot be used.

    `fault` says why it was begun anew, and is empty where it was not.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._lock = threading.RLock()
        with failures_of(path):
            self._database, self.fault = open_file(path, identity)
            self._database.executescript(_OF_THE_RUN)

    def close(self) -> None:
        """Closes the file; what was only noted is lost."""
        self._database.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.save()
        self.close()

    def save(self) -> None:
        """Writes what was only noted."""
        with self._access() as database:
            database.commit()

    # --- against the store ---

    @property
    def trusted(self) -> bool:
        """Whether it has been in agreement with the store."""
        return bool(self._all("SELECT trusted FROM journal")[0][0])

    def load_store(self, documents: Iterable[StoredDocument]) -> Disagreement:
        """Takes the store's list of complete documents as the truth for this run."""
        with self._access() as database:
            database.execute("DELETE FROM stored")
            rows = (_columns(document) for document in documents)
            database.executemany("INSERT OR REPLACE INTO stored VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            (unknown,), (missing,) = database.execute(
                "SELECT COUNT(*) FROM stored WHERE document_id NOT IN (SELECT document_id FROM unfinished) "
                "AND (document_id, revision) NOT IN (SELECT document_id, revision FROM documents) "
                "UNION ALL SELECT COUNT(*) FROM documents WHERE document_id NOT IN (SELECT document_id FROM stored)"
            ).fetchall()
            database.execute("DELETE FROM documents WHERE document_id NOT IN (SELECT document_id FROM stored)")
            database.commit()
        return Disagreement(unknown, missing)

    def load_rows(self, rows: Iterable[tuple[Chunk, StoredDocument]]) -> list[tuple[str, str]]:
        """Takes every row of the store; for a journal that is not trusted, after `load_store`.

        A revision with rows that are missing or of several attempts becomes an unfinished one, with the access list
        and metadata of its latest row. The result is (document_id, revision) of complete revisions to be removed, as
        the same document has a later one.
        """
        of_this_run = "SELECT document_id, revision FROM broken"
        with self._access() as database:
            database.execute("DELETE FROM rows")
            values = ((*_columns(document), chunk.ordinal) for chunk, document in rows)
            database.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
            database.execute("DELETE FROM broken")
            database.execute(
                "INSERT INTO broken SELECT document_id, revision FROM rows GROUP BY document_id, revision "
                "HAVING COUNT(*) != MAX(chunks) OR MIN(chunks) != MAX(chunks) OR MIN(ordinal) != 0 "
                "OR MIN(updated_at) != MAX(updated_at)"
            )
            database.execute(f"DELETE FROM stored WHERE (document_id, revision) IN ({of_this_run})")
            database.execute("DELETE FROM unfinished")
            database.execute(  # the bare columns are those of the row with the maximum
                "INSERT INTO unfinished SELECT document_id, revision, source, source, acl, metadata, '', "
                "MAX(updated_at), NULL, 0 FROM rows "
                f"WHERE (document_id, revision) IN ({of_this_run}) GROUP BY document_id"
            )
            database.execute("DELETE FROM rows")
            return database.execute(
                "SELECT document_id, revision FROM stored s WHERE EXISTS (SELECT 1 FROM stored later WHERE "
                "later.document_id = s.document_id AND (later.updated_at, later.revision) > (s.updated_at, s.revision))"
            ).fetchall()

    def trust(self, removed: Iterable[tuple[str, str]]) -> int:
        """Takes over the store's documents, less the revisions removed from it; how many there are."""
        with self._access() as database:
            database.executemany("DELETE FROM stored WHERE document_id = ? AND revision = ?", removed)
            database.execute(
                "REPLACE INTO documents SELECT document_id, revision, COALESCE((SELECT origin FROM documents d "
                "WHERE d.document_id = s.document_id), source) FROM stored s WHERE true"
            )
            database.execute("DELETE FROM documents WHERE document_id NOT IN (SELECT document_id FROM stored)")
            database.execute("UPDATE journal SET trusted = 1")
            database.commit()
            found: int = database.execute("SELECT COUNT(*) FROM stored").fetchone()[0]
            return found

    # --- publishing ---

    def begin(self, entries: Sequence[Unfinished]) -> None:
        """Before the first row of each is written. What was unfinished of the same documents is forgotten."""
        with self._access() as database:
            rows = [
                (one.document_id, one.revision, to_column(one.source), to_column(one.origin), _json(one.acl),
                 _json(one.metadata), one.index_version, one.updated_at, one.moved_from, one.written)
                for one in entries
            ]  # fmt: skip
            database.executemany("REPLACE INTO unfinished VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            database.commit()

    def advance(self, written: Mapping[str, int]) -> None:
        """After rows of ordinals above 0: by document id, the highest that is in the store with all below it."""
        with self._access() as database:
            values = [(ordinal, document_id) for document_id, ordinal in written.items()]
            database.executemany("UPDATE unfinished SET written = ? WHERE document_id = ?", values)
            database.commit()

    def finish(self, entries: Sequence[tuple[Unfinished, int]]) -> None:
        """After all rows of each are there, so many, and those of other revisions and of `moved_from` are gone."""
        with self._access() as database:
            for entry, chunks in entries:
                self._forget(entry.document_id)
                if entry.moved_from is not None:
                    self._forget(entry.moved_from)
                origin = to_column(entry.origin)
                database.execute("INSERT INTO documents VALUES (?, ?, ?)", (entry.document_id, entry.revision, origin))
                database.execute(
                    "INSERT INTO stored VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (entry.document_id, entry.revision, to_column(entry.source), _json(entry.acl),
                     _json(entry.metadata), chunks, entry.updated_at),
                )  # fmt: skip
            database.commit()

    def abandon(self, document_id: str) -> None:
        """After the rows of the unfinished revision are gone; a complete one may be left."""
        with self._access() as database:
            database.execute("DELETE FROM unfinished WHERE document_id = ?", (document_id,))
            database.commit()

    def forget(self, document_id: str) -> None:
        """After all rows of the document are gone."""
        with self._access() as database:
            self._forget(document_id)
            database.commit()

    # --- questions ---

    def recorded(self, document_id: str) -> Recorded | None:
        """The document's latest complete revision."""
        found = self._all(f"{_RECORDED} WHERE document_id = ? ORDER BY s.updated_at DESC LIMIT 1", document_id)
        return _recorded(found[0]) if found else None

    def unfinished(self, document_id: str) -> Unfinished | None:
        """The document's revision that a run was killed at."""
        found = self._all("SELECT * FROM unfinished WHERE document_id = ?", document_id)
        return _unfinished(found[0]) if found else None

    def all_unfinished(self) -> list[Unfinished]:
        """By document id; no more than the documents of two batches."""
        return [_unfinished(row) for row in self._all("SELECT * FROM unfinished ORDER BY document_id")]

    def latest(self, document_id: str) -> Recorded | Unfinished | None:
        """What was last written of the document, whether or not it is complete."""
        return self.unfinished(document_id) or self.recorded(document_id)

    def find_moved(self, revision: str) -> list[Recorded | Unfinished]:
        """The documents whose latest revision is this one, that no file of this run holds and that no unfinished one
        takes the place of; by source."""
        left_out = (
            "NOT IN (SELECT document_id FROM seen UNION SELECT moved_from FROM unfinished WHERE moved_from NOTNULL)"
        )
        complete = self._all(
            f"{_RECORDED} WHERE s.revision = ? AND s.document_id {left_out} "
            "AND s.document_id NOT IN (SELECT document_id FROM unfinished)",
            revision,
        )
        others = self._all(f"SELECT * FROM unfinished WHERE revision = ? AND document_id {left_out}", revision)
        found: list[Recorded | Unfinished] = [*map(_recorded, complete), *map(_unfinished, others)]
        return sorted(found, key=lambda document: (document.source, document.document_id))

    def mark_seen(self, document_id: str, origin: str) -> str | None:
        """Notes that a file of this run holds the document. Another one that did so before is the result."""
        before = self._all("SELECT origin FROM seen WHERE document_id = ?", document_id)
        if before:
            return from_column(before[0][0])
        with self._access() as database:
            database.execute("INSERT INTO seen VALUES (?, ?)", (document_id, to_column(origin)))
        return None

    def note_origin(self, document_id: str, origin: str) -> None:
        """The file that a complete document was found in, with the next write."""
        values = (to_column(origin), document_id)
        with self._access() as database:
            database.execute("UPDATE documents SET origin = ? WHERE document_id = ?", values)

    def unseen(self) -> Iterator[Recorded]:
        """The complete documents that no file of this run holds, by document id. They may be forgotten on the way."""
        after = ""
        while True:
            found = self._all(
                f"{_RECORDED} WHERE s.document_id > ? AND s.document_id NOT IN (SELECT document_id FROM seen) "
                f"ORDER BY s.document_id LIMIT {_PAGE_ROWS}",
                after,
            )
            if not found:
                return
            yield from map(_recorded, found)
            after = found[-1][0]

    # --- the file ---

    def _forget(self, document_id: str) -> None:
        for table in ("unfinished", "documents", "stored"):
            self._database.execute(f"DELETE FROM {table} WHERE document_id = ?", (document_id,))

    def _all(self, query: str, *values: str) -> list[Any]:
        with self._access() as database:
            return database.execute(query, values).fetchall()

    @contextmanager
    def _access(self) -> Iterator[sqlite3.Connection]:
        with self._lock, failures_of(self.path):
            yield self._database


@contextmanager
def open_journal(settings: Settings, collection: str, say: Callable[[str], None]) -> Iterator[Journal]:
    """The journal of a collection of the settings' store, for one process at a time.

    While another process has it, this one says so and waits. The system frees it when its process ends, however it
    ends; the journal does not guard against ingesting one collection from two data directories. Raises SettingsError.
    """
    identity, path = place_of_journal(settings, collection)
    with _open_lock(path) as lock:
        take_lock(lock, f"collection {collection!r}", say)
        with Journal(path, identity) as journal:
            yield journal


@contextmanager
def open_free_journal(settings: Settings, collection: str) -> Iterator[Journal]:
    """As `open_journal`, for whoever has other work: raises OverloadedError while another process has it."""
    identity, path = place_of_journal(settings, collection)
    with _open_lock(path) as lock:
        if not try_lock(lock, _DELETION_S):
            raise OverloadedError(f"collection {collection!r} is being written to by process {name_holder(lock)}")
        with Journal(path, identity) as journal:
            yield journal


@contextmanager
def unless_ingesting(settings: Settings, collection: str) -> Iterator[bool]:
    """Whether nobody ingests into the collection now; where that is so, nobody does during the block."""
    with _open_lock(place_of_journal(settings, collection)[1]) as lock:
        yield try_lock(lock, _DELETION_S)


def place_of_journal(settings: Settings, collection: str) -> tuple[str, Path]:
    """The identity and the path of the collection's journal, which need not be there."""
    store = settings.store.uri or "embedded"  # whose port may change
    identity = blake2b(json.dumps([store, collection]).encode(), digest_size=16).hexdigest()
    return identity, settings.data_dir.absolute() / "journal" / f"{identity}.sqlite"


@contextmanager
def _open_lock(path: Path) -> Iterator[int]:
    """The open file of a journal's lock, which is free again when that is closed."""
    with failures_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        yield lock
    finally:
        os.close(lock)


def _columns(document: StoredDocument) -> tuple[Any, ...]:
    return (
        document.document_id,
        document.revision,
        to_column(document.source),
        _json(document.acl),
        _json(document.metadata),
        document.chunks,
        document.updated_at,
    )


def _recorded(row: Sequence[Any]) -> Recorded:
    document_id, revision, source, origin, acl, metadata, *rest = row
    acl, metadata = tuple(json.loads(acl)), json.loads(metadata)
    return Recorded(document_id, revision, from_column(source), from_column(origin), acl, metadata, *rest)


def _unfinished(row: Sequence[Any]) -> Unfinished:
    document_id, revision, source, origin, acl, metadata, *rest = row
    acl, metadata = tuple(json.loads(acl)), json.loads(metadata)
    return Unfinished(document_id, revision, from_column(source), from_column(origin), acl, metadata, *rest)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True)
