from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from deployments.jobs import ABANDONED_S, TEXT_FILE, Job, JobDocument, JobStore
from rag.errors import UnknownJobError


@pytest.fixture
def jobs(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path)


def submit(jobs: JobStore, *sources: str, size: int = 10) -> Job:
    job_id = jobs.new_id()
    folder = jobs.make_folder(job_id)
    documents = tuple(JobDocument(source, str(number)) for number, source in enumerate(sources or ("upload/a.md",)))
    for document in documents:
        (folder / str(document.file)).write_text("text")
    return jobs.submit(Job(job_id, "docs", documents, ("staff",), {"lang": "ko", "tags": ["가"]}, size))


def test_a_job_comes_back_as_it_was_submitted(jobs: JobStore, tmp_path: Path) -> None:
    job = submit(jobs, 'upload/가 "나".md', "upload/b.md")
    assert job.created_at
    assert JobStore(tmp_path).find(job.job_id) == job
    assert (job.state, job.attempts, job.started_at, job.finished_at) == ("queued", 0, None, None)


def test_jobs_start_in_the_order_of_their_submission(jobs: JobStore) -> None:
    submitted = [submit(jobs).job_id for _ in range(5)]
    started = []
    while (job := jobs.start_next()) is not None:
        started.append(job.job_id)
        jobs.finish(job, "done", job.documents)
    assert started == submitted


def test_a_job_that_is_to_wait_is_passed_over(jobs: JobStore) -> None:
    first, second = submit(jobs, "upload/a.md"), submit(jobs, "upload/b.md")
    started = jobs.start_next({first.job_id})
    assert started is not None
    assert started.job_id == second.job_id
    assert jobs.find(first.job_id) == first
    assert jobs.start_next({first.job_id, second.job_id}) is None


def test_a_later_upload_of_a_source_does_not_overtake_one_that_waits(jobs: JobStore) -> None:
    first, later, last = submit(jobs, "upload/a.md"), submit(jobs, "upload/b.md", "upload/a.md"), submit(jobs, "c.md")
    started = jobs.start_next({first.job_id})
    assert started is not None
    assert started.job_id == last.job_id
    jobs.finish(started, "done", started.documents)
    assert jobs.start_next({first.job_id}) is None
    after = submit(jobs, "upload/b.md")  # waits for the one that waits
    assert jobs.start_next({first.job_id}) is None
    assert [jobs.find(one.job_id).state for one in (first, later, after)] == ["queued"] * 3


def test_rows_wait_for_every_earlier_upload_of_their_collection_and_the_others_for_them(jobs: JobStore) -> None:
    def submit_rows(collection: str) -> Job:
        job_id = jobs.new_id()
        jobs.make_folder(job_id)
        return jobs.submit(Job(job_id, collection, (JobDocument("upload/rows.jsonl", "0.jsonl"),)))

    first = submit(jobs, "upload/a.md")
    rows = submit_rows("docs")
    submit(jobs, "upload/c.md")
    elsewhere = submit_rows("notes")
    started = jobs.start_next({first.job_id})
    assert started is not None
    assert started.job_id == elsewhere.job_id
    jobs.finish(jobs.find(first.job_id), "done", first.documents)
    assert jobs.start_next({rows.job_id, elsewhere.job_id}) is None


def test_a_text_that_came_as_json_waits_for_its_own_source_only(jobs: JobStore) -> None:
    def submit_text(source: str) -> Job:
        job_id = jobs.new_id()
        jobs.make_folder(job_id)
        return jobs.submit(Job(job_id, "docs", (JobDocument(source, TEXT_FILE),)))

    first = submit_text("https://wiki/lamp")
    again, other = submit_text("https://wiki/lamp"), submit_text("https://wiki/oil")
    started = jobs.start_next({first.job_id})
    assert started is not None
    assert started.job_id == other.job_id
    assert jobs.find(again.job_id).state == "queued"


def test_a_running_job_is_started_again_and_counts_it(jobs: JobStore, tmp_path: Path) -> None:
    submit(jobs)
    first = jobs.start_next()
    again = JobStore(tmp_path).start_next()
    assert first is not None
    assert again is not None
    assert (first.job_id, first.attempts, again.attempts) == (again.job_id, 1, 2)
    assert again.started_at == first.started_at
    assert jobs.find(first.job_id) == again


def test_a_finished_job_says_how_it_ended_and_leaves_no_files(jobs: JobStore) -> None:
    submit(jobs)
    job = jobs.start_next()
    assert job is not None
    assert jobs.folder(job.job_id).is_dir()
    ended = replace(job.documents[0], state="done", pages=2, chunks=7)
    jobs.finish(job, "done", [ended])
    found = jobs.find(job.job_id)
    assert (found.state, found.documents) == ("done", (ended,))
    assert found.finished_at is not None
    assert not jobs.folder(job.job_id).exists()
    assert jobs.start_next() is None


def test_an_unknown_job_is_named(jobs: JobStore) -> None:
    with pytest.raises(UnknownJobError, match="job_nope"):
        jobs.find("job_nope")


def test_only_unfinished_jobs_take_room(jobs: JobStore) -> None:
    assert jobs.stored_bytes() == 0
    submit(jobs, size=3)
    submit(jobs, size=4)
    assert jobs.stored_bytes() == 7
    job = jobs.start_next()
    assert job is not None
    assert jobs.stored_bytes() == 7
    jobs.finish(job, "failed", job.documents)
    assert jobs.stored_bytes() == 4


def test_ids_are_never_the_same(jobs: JobStore) -> None:
    assert len({jobs.new_id() for _ in range(100)}) == 100


def test_old_finished_jobs_are_forgotten_and_others_kept(jobs: JobStore) -> None:
    finished, waiting = submit(jobs), submit(jobs)
    job = jobs.start_next()
    assert job is not None
    jobs.finish(job, "done", job.documents)
    jobs.tidy(keep_days=1)
    assert jobs.find(finished.job_id).state == "done"
    time.sleep(0.002)
    jobs.tidy(keep_days=0)
    with pytest.raises(UnknownJobError):
        jobs.find(finished.job_id)
    assert jobs.find(waiting.job_id) == waiting
    assert jobs.folder(waiting.job_id).is_dir()


def test_files_that_belong_to_no_job_are_removed_once_nobody_writes_to_them(jobs: JobStore) -> None:
    arriving = jobs.make_folder(jobs.new_id())
    abandoned = jobs.make_folder(jobs.new_id())
    (arriving / "0").write_text("half")
    (abandoned / "0").write_text("half")
    long_ago = time.time() - ABANDONED_S - 60
    for path in (abandoned / "0", abandoned):
        os.utime(path, (long_ago, long_ago))
    os.utime(arriving, (long_ago, long_ago))  # its file is still written to
    jobs.tidy(keep_days=1)
    assert arriving.is_dir()
    assert not abandoned.exists()


def test_what_is_no_job_s_folder_is_left_alone_and_one_that_cannot_be_removed_costs_the_others_nothing(
    jobs: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    uploads = tmp_path / "uploads"
    stray = [uploads / "lost+found", uploads / "job_backup", uploads / ".DS_Store", uploads / f"job_{0:032x}"]
    for path in stray[:2]:
        path.mkdir()
    for path in stray[2:]:
        path.write_text("x")
    (uploads / f"job_{1:032x}").symlink_to(stray[0], target_is_directory=True)
    folders = sorted(jobs.make_folder(jobs.new_id()) for _ in range(3))
    for path in (*folders, *stray):
        os.utime(path, (0, 0))
    removed = shutil.rmtree

    def refuse(folder: Path) -> None:  # as another user's would be: this process may remove anything where it is root
        if folder == folders[1]:
            raise PermissionError(13, "Permission denied")
        removed(folder)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    jobs.tidy(keep_days=1)
    assert [folder.exists() for folder in folders] == [False, True, False]
    assert all(path.exists() for path in stray)
    assert folders[1].name in caplog.text


def test_files_that_a_killed_process_left_of_a_finished_job_are_removed(jobs: JobStore) -> None:
    submit(jobs)
    job = jobs.start_next()
    assert job is not None
    jobs.save(replace(job, state="done"))
    jobs.tidy(keep_days=1)
    assert not jobs.folder(job.job_id).exists()
    assert jobs.find(job.job_id).state == "done"


def test_a_transaction_that_fails_changes_nothing(jobs: JobStore) -> None:
    job = submit(jobs)
    with pytest.raises(sqlite3.IntegrityError):
        jobs.submit(job)
    assert jobs.find(job.job_id) == job
    assert jobs.stored_bytes() == job.bytes


def test_jobs_of_a_service_that_did_not_know_their_senders_groups_go_on(tmp_path: Path) -> None:
    old = submit(JobStore(tmp_path))
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite3")) as connection:
        connection.execute("ALTER TABLE jobs DROP COLUMN caller_groups")
    jobs = JobStore(tmp_path)
    assert jobs.find(old.job_id) == old
    assert jobs.find(submit(jobs).job_id).caller_groups == ()
