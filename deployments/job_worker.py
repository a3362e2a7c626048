"""Works off the jobs one after the other, in a thread of its own. Knows nothing of Ray."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deployments.jobs import Job, JobDocument, JobStore
from rag.errors import ModelError, OverloadedError, RagError, SettingsError, StageError, StoreUnavailableError

logger = logging.getLogger("ray.serve")

PERIOD_S = 0.5  # how often it looks for a job, or for the lock
TIDY_S = 3600.0
MAX_ATTEMPTS = 10
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0
MAX_STAGE_WAITS = 2_880  # about a day, for an operator; a stage that is up and fails at this very job does so for ever

# What passes by itself, or when an operator mends it (a full disk is a SettingsError): the job waits for that.
PASSING = (StoreUnavailableError, StageError, OverloadedError, ModelError, SettingsError)

RunJob = Callable[[Job], Sequence[JobDocument]]  # what became of each document; raises RagError
UndoJob = Callable[[Job], None]  # removes what one that is given up left half written; raises RagError
JobEnded = Callable[[Job, Literal["done", "failed"]], None]


@dataclass(slots=True)
class _Wait:
    """Why a job is not begun yet: at `until`, of the monotonic clock, its next try is due."""

    until: float = 0.0
    seconds: float = 0.0
    stage_errors: int = 0


class JobWorker:
    """`run` works until `stop`. A job that was begun by a process that is gone is begun anew.

    A job that meets what passes waits, longer each time, and the others go on; one at which a stage failed more than
    MAX_STAGE_WAITS times is given up.

    Of several workers over one data directory, in whatever processes, one works; the next one takes over when it ends.
    A job during which the process ended MAX_ATTEMPTS times, so perhaps by it, is given up.
    """

    def __init__(
        self,
        jobs: JobStore,
        run_job: RunJob,
        undo_job: UndoJob,
        ended: JobEnded,
        lock_file: Path,
        keep_jobs_days: float,
    ) -> None:
        self._jobs = jobs
        self._run_job = run_job
        self._undo_job = undo_job
        self._ended = ended
        self._lock_file = lock_file
        self._keep_jobs_days = keep_jobs_days
        self._waits: dict[str, _Wait] = {}  # by job id
        self._stopping = threading.Event()

    def stop(self) -> None:
        """`run` returns after the job that it is at."""
        self._stopping.set()

    def run(self) -> None:
        """Until stopped."""
        tidied_at = float("-inf")
        with self._sole_worker():
            while not self._stopping.is_set():
                if time.monotonic() - tidied_at > TIDY_S:
                    tidied_at = time.monotonic()
                    self._jobs.tidy(self._keep_jobs_days)
                now = time.monotonic()
                job = self._jobs.start_next({job_id for job_id, wait in self._waits.items() if wait.until > now})
                if job is not None:
                    self._work(job)
                else:
                    self._stopping.wait(PERIOD_S)

    @contextmanager
    def _sole_worker(self) -> Iterator[None]:
        """Waits until no other process works, however that one ended."""
        with self._lock_file.open("w") as lock:
            while not self._stopping.is_set():
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._stopping.wait(PERIOD_S)
                else:
                    break
            yield

    def _work(self, job: Job) -> None:
        """One try of a job: it ends, or waits for the next one."""
        if job.attempts > MAX_ATTEMPTS:
            reason = (
                f"the indexer ended {MAX_ATTEMPTS} times while it read this upload; its log says how. Send it in parts"
            )
            self._give_up(job, reason)
            return
        try:
            documents = self._run_job(job)
        except PASSING as error:
            self._wait(job, error)
        except RagError as error:
            self._give_up(job, str(error))
        else:
            succeeded = any(one.state == "done" for one in documents)
            self._finish(job, "done" if succeeded else "failed", documents)

    def _wait(self, job: Job, error: RagError) -> None:
        wait = self._waits.setdefault(job.job_id, _Wait())
        wait.stage_errors += isinstance(error, StageError)
        if wait.stage_errors > MAX_STAGE_WAITS:
            reason = f"{error}; tried {wait.stage_errors} times. Send it again when that is mended"
            self._give_up(job, reason)
            return
        wait.seconds = min(wait.seconds * 2, LONGEST_WAIT_S) or FIRST_WAIT_S
        wait.until = time.monotonic() + wait.seconds
        logger.warning("%s waits %g s: %s", job.job_id, wait.seconds, error)
        documents = tuple(replace(one, reason=f"waiting: {error}") for one in job.documents)
        # This attempt did not end the process, so it does not count.
        self._jobs.save(replace(job, state="queued", attempts=job.attempts - 1, documents=documents))

    def _give_up(self, job: Job, reason: str) -> None:
        try:
            self._undo_job(job)
        except RagError as error:
            logger.warning("%s: what it left half written stays until the next ingest: %s", job.job_id, error)
        documents = [replace(one, state="failed", reason=reason) for one in job.documents if one.file is not None]
        self._finish(job, "failed", documents)

    def _finish(self, job: Job, state: Literal["done", "failed"], documents: Sequence[JobDocument]) -> None:
        self._waits.pop(job.job_id, None)
        self._jobs.finish(job, state, documents)
        self._ended(job, state)
