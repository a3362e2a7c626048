"""Jobs that outlive their process: uploads that were accepted and are to be ingested, in SQLite and in files.

Under the data directory: `jobs.sqlite3` and `uploads/<job id>/<n>`. Every process that has the directory may use them;
on a cluster it has to be a shared one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from ingest.load import JSONL, SUFFIXES
from rag.config import UPLOADS
from rag.errors import UnknownJobError

logger = logging.getLogger("ray.serve")

State = Literal["queued", "running", "done", "failed"]

BUSY_S = 10.0  # how long a call waits for another process's transaction
ABANDONED_S = 3600.0  # an upload that nothing was written to for so long belongs to a process that is gone

ROWS = tuple(suffix for suffix, media_type in SUFFIXES.items() if media_type == JSONL)
TEXT_FILE = "text.jsonl"  # the one row of a document that came as JSON: its source is the job's, as a file's is

_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    job_id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    collection TEXT NOT NULL,
    acl TEXT NOT NULL,
    metadata TEXT NOT NULL,
    documents TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    started_at TEXT,
    finished_at TEXT,
    caller_groups TEXT NOT NULL DEFAULT '[]'
)"""
# For a data directory of a service that did not keep them: its jobs are an anonymous caller's.
_ADD_GROUPS = "ALTER TABLE jobs ADD COLUMN caller_groups TEXT NOT NULL DEFAULT '[]'"
_JOB_ID = re.compile("job_[0-9a-f]{32}")
_JSON_COLUMNS = ("acl", "caller_groups", "metadata", "documents")
_UNFINISHED = "state IN ('queued', 'running')"


@dataclass(frozen=True, slots=True)
class JobDocument:
    """A document of a job and what became of it; `file` is what its file is called in the job's folder.

    A file of several documents is one here, but for those within it that failed: they come after it, without a file.
    """

    source: str
    file: str | None = None
    state: State = "queued"
    reason: str | None = None
    pages: int | None = None
    chunks: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """Uploaded files to ingest into a collection. `attempts` counts how often that was begun.

    `caller_groups` are those of who sent them, `acl` the groups that may see the documents.
    """

    job_id: str
    collection: str
    documents: tuple[JobDocument, ...]
    acl: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    bytes: int = 0
    state: State = "queued"
    attempts: int = 0
    created_at: str = ""
    started_at: str | None = None
    finished_at: str | None = None
    caller_groups: tuple[str, ...] = ()


class JobStore:
    """The jobs of a data directory. Each call is a transaction that is on the disk when it returns."""

    def __init__(self, data_dir: Path) -> None:
        (data_dir / UPLOADS).mkdir(parents=True, exist_ok=True)
        self._uploads = (data_dir / UPLOADS).resolve()
        self._path = data_dir.resolve() / "jobs.sqlite3"
        with self._transaction() as connection:
            connection.execute(_SCHEMA)
            if all(column["name"] != "caller_groups" for column in connection.execute("PRAGMA table_info(jobs)")):
                connection.execute(_ADD_GROUPS)

    def new_id(self) -> str:
        """A job's id, which nobody can guess."""
        return f"job_{uuid.uuid4().hex}"

    def make_folder(self, job_id: str) -> Path:
        """An empty folder for a job's files."""
        self.folder(job_id).mkdir()
        return self.folder(job_id)

    def folder(self, job_id: str) -> Path:
        """Where a job's files are."""
        return self._uploads / job_id

    def drop_folder(self, job_id: str) -> None:
        """Removes a job's files; nothing where there are none. What cannot be removed is logged and left to `tidy`."""
        if self.folder(job_id).exists():
            _remove(self.folder(job_id))

    def submit(self, job: Job) -> Job:
        """Puts a job at the queue's end. Its files, fsynced already, and their names are on the disk first."""
        for folder in (self.folder(job.job_id), self._uploads):
            _sync(folder)
        job = replace(job, created_at=_now())
        row = _to_row(job)
        with self._transaction() as connection:
            marks = ", ".join(f":{name}" for name in row)
            connection.execute(f"INSERT INTO jobs ({', '.join(row)}) VALUES ({marks})", row)
        return job

    def find(self, job_id: str) -> Job:
        """Raises UnknownJobError."""
        with self._transaction() as connection:
            row = connection.execute("SELECT * FROM jobs WHERE job_id = ?", (job_id,)).fetchone()
        if row is None:
            raise UnknownJobError(f"there is no job {job_id[:80]!r}; finished ones are forgotten after some days")
        return _from_row(row)

    def start_next(self, waiting: Collection[str] = ()) -> Job | None:
        """The oldest unfinished job that may begin, now running; None where there is none.

        Those `waiting` may not, and no job before an earlier one that has a source with it: the former upload would
        replace the latter. Only one process may call this at a time: a job that it finds running was left by a process
        that is gone.
        """
        with self._transaction() as connection:
            rows = connection.execute(f"SELECT * FROM jobs WHERE {_UNFINISHED} ORDER BY rowid")
            job = _first_free(map(_from_row, rows), waiting)
            if job is None:
                return None
            job = replace(job, state="running", attempts=job.attempts + 1, started_at=job.started_at or _now())
            _update(connection, job)
        return job

    def save(self, job: Job) -> None:
        """Keeps a job's state and documents."""
        with self._transaction() as connection:
            _update(connection, job)

    def finish(self, job: Job, state: Literal["done", "failed"], documents: Sequence[JobDocument]) -> None:
        """Keeps how a job ended, then removes its files."""
        self.save(replace(job, state=state, documents=tuple(documents), finished_at=_now()))
        self.drop_folder(job.job_id)

    def unfinished(self) -> int:
        """How many jobs are queued or run."""
        with self._transaction() as connection:
            (number,) = connection.execute(f"SELECT count(*) FROM jobs WHERE {_UNFINISHED}").fetchone()
        return int(number)

    def stored_bytes(self) -> int:
        """The files of unfinished jobs, all together."""
        with self._transaction() as connection:
            (size,) = connection.execute(f"SELECT coalesce(sum(bytes), 0) FROM jobs WHERE {_UNFINISHED}").fetchone()
        return int(size)

    def tidy(self, keep_days: float) -> None:
        """Forgets the jobs that finished earlier than that, and removes the files that belong to no unfinished one.

        What cannot be removed is logged; what is no job's folder is left alone.
        """
        oldest = (datetime.now(UTC) - timedelta(days=keep_days)).isoformat(timespec="milliseconds")
        with self._transaction() as connection:
            connection.execute(f"DELETE FROM jobs WHERE NOT {_UNFINISHED} AND finished_at < ?", (oldest,))
            states = dict(connection.execute("SELECT job_id, state FROM jobs").fetchall())
        for folder in filter(_is_a_jobs, self._uploads.iterdir()):
            state = states.get(folder.name)
            if state in ("done", "failed") or (state is None and _is_abandoned(folder)):
                _remove(folder)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # A connection of its own for each: they may not be shared between threads, and cost little.
        with closing(sqlite3.connect(self._path, timeout=BUSY_S, isolation_level=None)) as connection:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("BEGIN IMMEDIATE")
            with ExitStack() as unless_ended:
                # Not left to the closing: a statement that is not read to its end would keep the transaction open.
                unless_ended.callback(connection.execute, "ROLLBACK")
                yield connection
                unless_ended.pop_all()
            connection.execute("COMMIT")


def _first_free(jobs: Iterable[Job], waiting: Collection[str]) -> Job | None:
    passed: list[Job] = []
    for job in jobs:
        if job.job_id not in waiting and not any(_share_a_source(job, other) for other in passed):
            return job
        passed.append(job)
    return None


def _share_a_source(job: Job, other: Job) -> bool:
    """Whether they may hold documents of one name; which ones a file of rows holds is not known before it is read."""
    if job.collection != other.collection:
        return False
    names = [{one.source for one in each.documents if one.file is not None} for each in (job, other)]
    files = {one.file or "" for each in (job, other) for one in each.documents} - {TEXT_FILE}
    return any(Path(file).suffix in ROWS for file in files) or not names[0].isdisjoint(names[1])


def _update(connection: sqlite3.Connection, job: Job) -> None:
    row = _to_row(job)
    changes = ", ".join(f"{name} = :{name}" for name in row)
    connection.execute(f"UPDATE jobs SET {changes} WHERE job_id = :job_id", row)


def _to_row(job: Job) -> dict[str, Any]:
    row = asdict(job)
    return row | {name: json.dumps(row[name], ensure_ascii=True) for name in _JSON_COLUMNS}


def _from_row(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in row.keys()}  # noqa: SIM118  # a Row iterates over its values
    return Job(
        **values
        | {
            "acl": tuple(json.loads(row["acl"])),
            "caller_groups": tuple(json.loads(row["caller_groups"])),
            "metadata": json.loads(row["metadata"]),
            "documents": tuple(JobDocument(**one) for one in json.loads(row["documents"])),
        }
    )


def _is_a_jobs(folder: Path) -> bool:
    return _JOB_ID.fullmatch(folder.name) is not None


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        logger.warning("%s cannot be removed (%s); remove it by hand", folder, error)


def _is_abandoned(folder: Path) -> bool:
    try:
        newest = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:  # no folder, or one that its own process removes just now
        return False
    return time.time() - newest > ABANDONED_S


def _sync(folder: Path) -> None:
    """Makes the names within a folder last."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
