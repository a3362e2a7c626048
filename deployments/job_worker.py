"""Works off the jobs one after the other, in a thread of its own. Knows nothing of Ray."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from deployments.jobs import Job, JobDocument, JobStore
from rag.errors import ModelError, OverloadedError, RagError, StageError, StoreUnavailableError

logger = logging.getLogger("ray.serve")

PERIOD_S = 0.5  # how often it looks for a job, or for the lock
TIDY_S = 3600.0
MAX_ATTEMPTS = 10
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 30.0

# What passes by itself, or when an operator mends it: the job waits for that.
PASSING = (StoreUnavailableError, StageError, OverloadedError, ModelError)

RunJob = Callable[[Job], Sequence[JobDocument]]  # what became of each document; raises RagError


class JobWorker:
    """`run` works until `stop`. A job that was begun by a process that is gone is begun anew.

    Of several workers over one data directory, in whatever processes, one works; the next one takes over when it ends.
    A job during which the process ended MAX_ATTEMPTS times, so perhaps by it, is given up.
    """

    def __init__(self, jobs: JobStore, run_job: RunJob, lock_file: Path, keep_jobs_days: float) -> None:
        self._jobs = jobs
        self._run_job = run_job
        self._lock_file = lock_file
        self._keep_jobs_days = keep_jobs_days
        self._stopping = threading.Event()

    def stop(self) -> None:
        """`run` returns after the job that it is at, or at once where that waits."""
        self._stopping.set()

    def run(self) -> None:
        """Until stopped."""
        tidied_at = float("-inf")
        with self._sole_worker():
            while not self._stopping.is_set():
                if time.monotonic() - tidied_at > TIDY_S:
                    tidied_at = time.monotonic()
                    self._jobs.tidy(self._keep_jobs_days)
                job = self._jobs.start_next()
                if job is not None:
                    self._finish(job)
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

    def _finish(self, job: Job) -> None:
        if job.attempts > MAX_ATTEMPTS:
            reason = (
                f"the indexer ended {MAX_ATTEMPTS} times while it read this upload; its log says how. Send it in parts"
            )
            self._jobs.finish(job, "failed", _all_failed(job, reason))
            return
        wait_s = FIRST_WAIT_S
        while not self._stopping.is_set():
            try:
                documents = self._run_job(job)
            except PASSING as error:
                logger.warning("%s waits %g s: %s", job.job_id, wait_s, error)
                waiting = [replace(one, reason=f"waiting: {error}") for one in job.documents]
                self._jobs.save(replace(job, documents=tuple(waiting)))
                self._stopping.wait(wait_s)
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
            except RagError as error:
                self._jobs.finish(job, "failed", _all_failed(job, str(error)))
                return
            else:
                succeeded = any(one.state == "done" for one in documents)
                self._jobs.finish(job, "done" if succeeded else "failed", documents)
                return


def _all_failed(job: Job, reason: str) -> list[JobDocument]:
    return [replace(one, state="failed", reason=reason) for one in job.documents if one.file is not None]
