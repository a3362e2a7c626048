"""Jobs worked off over the real job store and the real ingest pipeline; embedder and Milvus are fakes."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployments import job_worker
from deployments.ingest_job import ingest_job
from deployments.job_worker import MAX_ATTEMPTS, JobWorker
from deployments.jobs import Job, JobDocument, JobStore
from ingest.journal import Journal, Unfinished, open_free_journal, open_journal
from ingest.load import document_id_of
from ingest.pipeline import IngestReport
from rag.config import Settings, load_settings
from rag.errors import IndexMismatchError, RagError, SettingsError, StageError, StoreUnavailableError
from rag.filters import Filter
from rag.types import IndexFingerprint, StoredDocument
from tests.fakes import HashEmbedder, InMemoryStore

FINGERPRINT = IndexFingerprint("hash", 64, True, "", "", "splitter", "analyzer")


class Bench:
    """A data directory, a store, and workers over both."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.jobs = JobStore(data_dir)
        self.store = InMemoryStore()
        self.faults: list[Exception] = []
        self.stuck: dict[str, RagError] = {}
        self.reports: list[IngestReport] = []
        self.ends: list[tuple[str, str]] = []
        self.undone: list[str] = []

    def submit(self, files: dict[str, bytes], **job: Any) -> Job:
        job_id = self.jobs.new_id()
        folder = self.jobs.make_folder(job_id)
        documents = []
        for number, (source, content) in enumerate(files.items()):
            name = f"{number}{Path(source).suffix}"
            (folder / name).write_bytes(content)
            documents.append(JobDocument(source, name))
        return self.jobs.submit(Job(job_id, "docs", tuple(documents), **job))

    def run_job(self, job: Job) -> list[JobDocument]:
        if self.faults:
            raise self.faults.pop(0)
        if job.job_id in self.stuck:
            raise self.stuck[job.job_id]
        settings = load_settings(profile="embedded", data_dir=self.data_dir, ingest={"max_file_bytes": 10_000})
        with open_free_journal(settings, job.collection) as journal:
            return self.ingest(job, settings, journal)

    def ingest(self, job: Job, settings: Settings, journal: Journal) -> list[JobDocument]:
        return ingest_job(
            job,
            self.jobs.folder(job.job_id),
            store=self.store,
            journal=journal,
            say=print,
            embed=HashEmbedder().embed_passages,
            analyze=str.lower,
            count_tokens=lambda text: len(text.split()),
            fingerprint=FINGERPRINT,
            settings=settings,
            reported=self.reports.append,
        )

    def undo_job(self, job: Job) -> None:
        self.undone.append(job.job_id)
        raise StoreUnavailableError("Milvus is down")

    def ended(self, job: Job, state: str) -> None:
        self.ends.append((job.job_id, state))

    def worker(self) -> JobWorker:
        lock_file = self.data_dir / "indexer.lock"
        return JobWorker(self.jobs, self.run_job, self.undo_job, self.ended, lock_file, keep_jobs_days=7)

    @contextmanager
    def working(self) -> Iterator[None]:
        worker = self.worker()
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            yield
        finally:
            worker.stop()
            thread.join(20)
            assert not thread.is_alive()

    def finish(self, job: Job) -> Job:
        wait_until(lambda: self.jobs.find(job.job_id).finished_at is not None)
        return self.jobs.find(job.job_id)


def wait_until(fulfilled: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not fulfilled():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(job_worker, "PERIOD_S", 0.02)
    monkeypatch.setattr(job_worker, "FIRST_WAIT_S", 0.02)
    return Bench(tmp_path)


def text_of(bench: Bench, source: str) -> str:
    (document,) = [one for one in bench.store.stored_documents("docs") if one.source == source]
    return "".join(chunk.text for chunk in bench.store.chunks("docs", document.document_id))


def test_a_done_job_s_documents_are_in_the_store_under_their_sources(bench: Bench) -> None:
    with bench.working():
        files = {"upload/a.md": b"# Lamp\n\nIt burns oil.", "https://wiki/b.html": b"<html><body><p>Whale oil.</p>"}
        job = bench.finish(bench.submit(files, acl=("staff",), metadata={"year": 2024}))
    assert job.state == "done"
    assert [(one.source, one.state, one.reason, one.pages, one.chunks) for one in job.documents] == [
        ("upload/a.md", "done", None, None, 1),
        ("https://wiki/b.html", "done", None, None, 1),
    ]
    stored = {one.source: one for one in bench.store.stored_documents("docs")}
    assert set(stored) == set(files)
    assert stored["upload/a.md"].title == "Lamp"
    assert all((one.acl, one.metadata) == (("staff",), {"year": 2024}) for one in stored.values())
    assert not bench.jobs.folder(job.job_id).exists()


def test_a_job_lists_its_whole_collection_once(bench: Bench) -> None:
    class Counting(InMemoryStore):
        listed = 0

        def stored_documents(self, collection: str, where: Filter | None = None) -> list[StoredDocument]:
            found = super().stored_documents(collection, where)
            self.listed += len(found)
            return found

    bench.store = Counting()
    bench.run_job(bench.submit({f"upload/{number}.md": b"It burns oil." for number in range(20)}))
    bench.store.listed = 0
    (document,) = bench.run_job(bench.submit({"upload/late.md": b"It burns late."}))
    assert (document.state, document.chunks) == ("done", 1)
    assert bench.store.listed == 20 + 1


def test_the_same_name_again_replaces_the_document(bench: Bench) -> None:
    with bench.working():
        bench.finish(bench.submit({"upload/a.md": b"It burns whale oil."}))
        job = bench.finish(bench.submit({"upload/a.md": b"It burns petroleum."}))
        assert job.state == "done"
        assert text_of(bench, "upload/a.md") == "It burns petroleum."
        unchanged = bench.finish(bench.submit({"upload/a.md": b"It burns petroleum."}))
    assert (unchanged.state, unchanged.documents[0].chunks) == ("done", 1)


def test_the_same_bytes_under_two_names_are_two_documents(bench: Bench) -> None:
    with bench.working():
        bench.finish(bench.submit({"upload/a.md": b"It burns whale oil."}))
        bench.finish(bench.submit({"upload/b.md": b"It burns whale oil."}))
    assert [one.source for one in bench.store.stored_documents("docs")] == ["upload/a.md", "upload/b.md"]


def test_a_bad_file_costs_itself_only_and_says_why(bench: Bench) -> None:
    with bench.working():
        job = bench.finish(bench.submit({"upload/a.md": b"Good.", "upload/b.md": b"", "upload/c.txt": b"x" * 10_001}))
        all_bad = bench.finish(bench.submit({"upload/d.md": b"\0\1\2"}))
    assert job.state == "done"
    assert [one.state for one in job.documents] == ["done", "failed", "failed"]
    assert "empty" in str(job.documents[1].reason)
    assert "10,001 bytes" in str(job.documents[2].reason)
    assert all_bad.state == "failed"
    assert "binary" in str(all_bad.documents[0].reason)
    assert bench.ends == [(job.job_id, "done"), (all_bad.job_id, "failed")]
    assert [(report.added, report.failed, report.chunks) for report in bench.reports] == [(1, 2, 1), (0, 1, 0)]


def test_a_replacement_that_cannot_be_read_has_failed_though_the_former_one_is_there(bench: Bench) -> None:
    with bench.working():
        bench.finish(bench.submit({"upload/a.md": b"It burns whale oil."}))
        job = bench.finish(bench.submit({"upload/a.md": b"\0\1\2"}))
    assert job.state == "failed"
    assert text_of(bench, "upload/a.md") == "It burns whale oil."


def test_a_job_that_a_dead_process_left_running_is_done_by_the_next(bench: Bench) -> None:
    submitted = bench.submit({"upload/a.md": b"Good."})
    assert bench.jobs.start_next() is not None  # and then the process was killed
    with bench.working():
        job = bench.finish(submitted)
    assert (job.state, job.attempts) == ("done", 2)


def test_a_job_waits_while_the_store_is_down_and_says_so(bench: Bench) -> None:
    bench.faults = [StoreUnavailableError("Milvus is down")] * 3
    seen: set[str | None] = set()
    submitted = bench.submit({"upload/a.md": b"Good."})
    with bench.working():
        while (job := bench.jobs.find(submitted.job_id)).finished_at is None:
            seen.add(job.documents[0].reason)
            time.sleep(0.005)
    assert "waiting: Milvus is down" in seen
    assert (job.state, job.documents[0].reason, job.attempts) == ("done", None, 1)


def test_a_job_waits_while_its_journal_cannot_be_written(bench: Bench) -> None:
    bench.faults = [SettingsError("the journal cannot be written: disk full")] * 2
    with bench.working():
        job = bench.finish(bench.submit({"upload/a.md": b"Good."}))
    assert (job.state, job.documents[0].reason) == ("done", None)


@pytest.mark.parametrize("error", [StoreUnavailableError("down"), StageError("embed", "down")])
def test_a_job_that_waits_lets_the_others_pass(bench: Bench, error: RagError) -> None:
    stuck = bench.submit({"upload/a.md": b"Stuck."})
    bench.stuck[stuck.job_id] = error
    with bench.working():
        assert bench.finish(bench.submit({"upload/b.md": b"Good."})).state == "done"
        waiting = bench.jobs.find(stuck.job_id)
        assert waiting.finished_at is None
        assert waiting.documents[0].reason == f"waiting: {error}"
        assert bench.jobs.folder(stuck.job_id).exists()
        del bench.stuck[stuck.job_id]
        job = bench.finish(stuck)
    assert (job.state, job.attempts) == ("done", 1)


def test_a_job_whose_collection_is_being_written_to_waits_and_those_of_others_do_not(bench: Bench) -> None:
    settings = load_settings(profile="embedded", data_dir=bench.data_dir)
    held = bench.submit({"upload/a.md": b"Held."})
    other = Job(bench.jobs.new_id(), "notes", (JobDocument("upload/b.md", "0.md"),))
    (bench.jobs.make_folder(other.job_id) / "0.md").write_bytes(b"Free.")
    with ExitStack() as writing:
        writing.enter_context(open_journal(settings, "docs", print))  # before the worker can begin the job
        with bench.working():
            assert bench.finish(bench.jobs.submit(other)).state == "done"
            wait_until(lambda: bench.jobs.find(held.job_id).documents[0].reason is not None)
            waiting = bench.jobs.find(held.job_id).documents[0].reason
            assert waiting == f"waiting: collection 'docs' is being written to by process {os.getpid()}"
            writing.close()
            assert bench.finish(held).state == "done"
    assert text_of(bench, "upload/a.md") == "Held."


def test_a_job_at_which_a_stage_fails_every_time_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_worker, "LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(job_worker, "MAX_STAGE_WAITS", 3)
    stuck = bench.submit({"upload/a.md": b"Stuck."})
    bench.stuck[stuck.job_id] = StageError("embed", "KeyError: bug")
    with bench.working():
        job = bench.finish(stuck)
    assert job.state == "failed"
    assert "KeyError: bug" in str(job.documents[0].reason)
    assert "4 times" in str(job.documents[0].reason)
    assert bench.undone == [job.job_id]
    assert "Send it again" in str(job.documents[0].reason)


def test_a_job_that_cannot_be_done_fails_with_the_reason_and_the_next_one_runs(bench: Bench) -> None:
    bench.faults = [IndexMismatchError("built with another embedder")]
    first, second = bench.submit({"upload/a.md": b"Good."}), bench.submit({"upload/b.md": b"Good."})
    with bench.working():
        assert bench.finish(second).state == "done"
    failed = bench.jobs.find(first.job_id)
    assert (failed.state, failed.documents[0].reason) == ("failed", "built with another embedder")
    assert bench.undone == [first.job_id]


def test_a_job_during_which_the_process_ended_again_and_again_is_given_up(bench: Bench) -> None:
    submitted = bench.submit({"upload/a.md": b"Good."})
    for _ in range(MAX_ATTEMPTS):
        assert bench.jobs.start_next() is not None
    with bench.working():
        job = bench.finish(submitted)
    assert job.state == "failed"
    assert f"{MAX_ATTEMPTS} times" in str(job.documents[0].reason)
    assert bench.undone == [job.job_id]
    assert not bench.jobs.folder(job.job_id).exists()


def test_an_uploaded_file_that_is_gone_is_said_to_be(bench: Bench) -> None:
    submitted = bench.submit({"upload/a.md": b"Good.", "upload/b.md": b"Good."})
    (bench.jobs.folder(submitted.job_id) / "0.md").unlink()
    with bench.working():
        job = bench.finish(submitted)
    assert [one.state for one in job.documents] == ["failed", "done"]
    assert "send it again" in str(job.documents[0].reason)


def test_a_second_worker_waits_until_the_first_has_ended(bench: Bench) -> None:
    with (bench.data_dir / "indexer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        submitted = bench.submit({"upload/a.md": b"Good."})
        with bench.working():
            time.sleep(0.2)
            assert bench.jobs.find(submitted.job_id).state == "queued"
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert bench.finish(submitted).state == "done"


def test_a_waiting_worker_stops_at_once(bench: Bench) -> None:
    with (bench.data_dir / "indexer.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with bench.working():
            time.sleep(0.05)


def test_a_bug_ends_the_worker_so_that_its_replica_is_seen_to_be_sick(bench: Bench) -> None:
    bench.faults = [KeyError("bug")]
    submitted = bench.submit({"upload/a.md": b"Good."})
    with pytest.raises(KeyError):
        bench.worker().run()
    with bench.working():
        assert bench.finish(submitted).state == "done"


def test_a_document_that_its_sender_may_not_see_is_neither_replaced_nor_told_of(bench: Bench) -> None:
    rows = b'{"id": "x", "text": "Row one."}\n{"id": "y", "text": "Row two."}\n'
    with bench.working():
        hidden = bench.submit({"upload/a.md": b"Hidden."}, acl=("staff",), metadata={"author": "the boss"})
        bench.finish(hidden)
        bench.finish(bench.submit({"upload/rows.jsonl": rows.splitlines()[0]}, acl=("staff",)))
        before = bench.store.stored_documents("docs")
        files = {"upload/a.md": b"Mine.", "upload/b.md": b"Good.", "upload/mine.jsonl": rows}
        job = bench.finish(bench.submit(files, acl=("mine",), caller_groups=("mine",)))
        seen = bench.finish(bench.submit({"upload/a.md": b"Ours."}, caller_groups=("staff",)))
    assert job.state == "done"
    assert [(one.source, one.state) for one in job.documents] == [
        ("upload/a.md", "failed"), ("upload/b.md", "done"), ("upload/mine.jsonl", "done"), ("x", "failed")
    ]  # fmt: skip
    reason = "a document of that source exists that you may not see; choose another source"
    assert (job.documents[0].reason, job.documents[3].reason) == (reason, reason)
    assert "1 of the 2" in str(job.documents[2].reason)
    stored = {one.source: one for one in bench.store.stored_documents("docs")}
    assert stored["x"] == before[1]
    assert stored["y"].acl == ("mine",)
    assert (seen.state, text_of(bench, "upload/a.md")) == ("done", "Ours.")
    assert (stored["upload/a.md"].acl, stored["upload/a.md"].metadata) == (("staff",), {"author": "the boss"})


def test_what_a_job_wrote_before_it_was_stopped_is_its_own_though_its_sender_may_not_see_it(bench: Bench) -> None:
    submitted = bench.submit(
        {"upload/a.md": b"Good.", "upload/b.jsonl": b'{"id": "x", "text": "Row."}'}, acl=("staff",)
    )
    job = bench.jobs.start_next()
    assert job is not None
    bench.run_job(job)  # and then the process was killed
    with bench.working():
        again = bench.finish(submitted)
    assert [(one.state, one.reason) for one in again.documents] == [("done", None)] * 2


def test_a_document_that_is_being_written_for_others_is_not_taken_over(bench: Bench) -> None:
    job = bench.submit({"upload/a.md": b"Good."})
    settings = load_settings(profile="embedded", data_dir=bench.data_dir)
    bench.store.ensure_collection("docs", FINGERPRINT)
    with open_journal(settings, "docs", print) as journal:
        begun = Unfinished(document_id_of("upload/a.md"), "r1", "upload/a.md", "/gone", ("staff",), {}, "v", "2026")
        journal.trust([])
        journal.begin([begun])
    with bench.working():
        ended = bench.finish(job)
    assert "you may not see" in str(ended.documents[0].reason)


def test_of_two_files_with_one_row_s_name_the_second_alone_failed_and_names_the_first(bench: Bench) -> None:
    first = b'{"id": "x", "text": "One."}\n{"id": "y", "text": "Two."}'
    second = b'{"id": "x", "text": "Other."}\n{"id": "z", "text": "Three."}'
    with bench.working():
        job = bench.finish(bench.submit({"upload/first.jsonl": first, "upload/second.jsonl": second}))
    assert [(one.source, one.state, one.reason) for one in job.documents] == [
        ("upload/first.jsonl", "done", None),
        ("upload/second.jsonl", "done", "1 of the 2 documents in it failed"),
        ("x", "failed", "this run took a document of that name from upload/first.jsonl; rename or remove one"),
    ]
    assert job.documents[0].chunks == 2
    assert text_of(bench, "x") == "One."
