"""A job's files through the real pipeline, without its worker: what its rows may not do, and what is undone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from deployments.ingest_job import ingest_job, undo_job
from deployments.jobs import Job, JobDocument, JobStore
from ingest.journal import open_journal
from ingest.pipeline import IngestReport, ingest_documents
from ingest.prepare import prepare_here
from rag.config import Settings
from rag.types import StoredDocument
from tests.fakes import InMemoryStore
from tests.ingest_fakes import COLLECTION, FINGERPRINT, Countdown, DyingStore, Killed, count_words, embed, paragraphs
from tests.ingest_fakes import small_settings as _settings


class Bench:
    """A data directory and a store; files are ingested by path, as `rag ingest` does, or sent."""

    def __init__(self, data_dir: Path) -> None:
        self.settings: Settings = _settings().model_copy(update={"data_dir": data_dir})
        self.jobs = JobStore(data_dir)
        self.store = InMemoryStore()
        self.parts: dict[str, Any] = {"store": self.store, "embed": embed, "analyze": str.lower, "say": print}

    def ingest(self, *paths: Path, **options: Any) -> IngestReport:
        with open_journal(self.settings, COLLECTION, print) as journal:
            return ingest_documents(
                paths,
                journal=journal,
                prepare=prepare_here(self.settings, count_words),
                fingerprint=FINGERPRINT,
                settings=self.settings,
                collection=COLLECTION,
                **self.parts,
                **options,
            )

    def make_job(self, name: str, content: str, **options: Any) -> Job:
        job_id = self.jobs.new_id()
        file = f"0{Path(name).suffix}"
        (self.jobs.make_folder(job_id) / file).write_text(content)
        return Job(job_id, COLLECTION, (JobDocument(name, file),), **options)

    def work(self, job: Job, reported: Callable[[IngestReport], None] = print, **parts: Any) -> list[JobDocument]:
        with open_journal(self.settings, COLLECTION, print) as journal:
            return ingest_job(
                job,
                self.jobs.folder(job.job_id),
                journal=journal,
                count_tokens=count_words,
                fingerprint=FINGERPRINT,
                settings=self.settings,
                reported=reported,
                **{**self.parts, **parts},
            )

    def send_rows(self, rows: Sequence[dict[str, Any]], **options: Any) -> list[JobDocument]:
        return self.work(self.make_job("upload/rows.jsonl", "\n".join(map(json.dumps, rows)), **options))

    def stop(self, job: Job, writes: int) -> None:
        """Works on the job until so many rows are written."""
        with pytest.raises(Killed):
            self.work(job, store=DyingStore(self.store, Countdown(writes)))

    def undo(self, job: Job) -> None:
        with open_journal(self.settings, COLLECTION, print) as journal:
            undo_job(job, self.jobs.folder(job.job_id), store=self.store, journal=journal, say=print)

    def documents(self) -> dict[str, StoredDocument]:
        return {one.source: one for one in self.store.stored_documents(COLLECTION)}

    def text_of(self, source: str) -> str:
        return "".join(chunk.text for chunk in self.store.chunks(COLLECTION, self.documents()[source].document_id))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "data")


def test_no_row_of_an_upload_passes_for_a_file_of_this_machine(bench: Bench, tmp_path: Path) -> None:
    policy = tmp_path / "docs" / "policy.txt"
    policy.parent.mkdir()
    policy.write_text("Refunds are allowed.")
    bench.ingest(policy)
    rows = [
        {"id": "1", "source": str(policy), "text": "Refunds are never allowed."},
        {"id": str(policy), "text": "Nor are they by an id."},
        {"id": "2", "text": "Good."},
    ]
    whole, refused, again = bench.send_rows(rows)
    assert (whole.state, whole.reason) == ("done", "2 of the 3 documents in it failed")
    assert (refused.source, refused.state) == (str(policy), "failed")
    assert "it is a path of a machine; give a name or a URL" in str(refused.reason)
    assert (again.source, again.state) == ("upload/rows.jsonl:2", "failed")
    assert set(bench.documents()) == {str(policy), "2"}
    assert bench.text_of(str(policy)) == "Refunds are allowed."
    policy.unlink()
    assert bench.ingest(policy.parent, prune=True).removed == 1


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("a\nb", "control character"),
        (" /srv/a.txt", "a path of a machine"),
        ("x" * 1001, "at most 1000"),
        (" ", "least"),
    ],
    ids=["line end", "path after a space", "long", "blank"],
)
def test_a_rows_source_has_to_be_one_that_a_client_may_name(bench: Bench, source: str, reason: str) -> None:
    _, refused = bench.send_rows([{"id": "1", "source": source, "text": "Bad."}, {"id": "2", "text": "Good."}])
    assert reason in str(refused.reason)
    assert str(refused.reason).startswith("its source (or its id, without one) cannot be taken: ")
    assert set(bench.documents()) == {"2"}


def test_a_row_of_a_file_that_is_given_by_path_may_name_any_source(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "1", "source": "/srv/a.txt", "text": "Good."}')
    assert bench.ingest(file).added == 1
    assert set(bench.documents()) == {"/srv/a.txt"}


def test_a_second_row_of_a_refused_name_is_not_taken_in_place_of_the_first(bench: Bench) -> None:
    bench.send_rows([{"id": "x", "text": "Hidden."}], acl=("staff",))
    twice = [{"id": name, "text": f"Mine, {time}."} for name in ("x", "/srv/a.txt") for time in ("once", "again")]
    bench.send_rows([*twice, {"id": "y", "text": "Good."}], caller_groups=("mine",))
    assert set(bench.documents()) == {"x", "y"}
    assert bench.text_of("x") == "Hidden."


# --- given up ---


def test_what_a_job_that_is_given_up_was_writing_goes_and_the_rest_stays(bench: Bench) -> None:
    bench.work(bench.make_job("upload/a.txt", paragraphs("apples")))
    before = bench.documents()
    job = bench.make_job("upload/a.txt", paragraphs("pears"))
    bench.stop(job, 3)
    bench.undo(job)
    assert bench.documents() == before
    assert "pears" not in bench.text_of("upload/a.txt")
    new = bench.make_job("upload/b.txt", paragraphs("plums"))
    bench.stop(new, 3)
    bench.undo(job)
    assert len(bench.store._rows[COLLECTION]) > before["upload/a.txt"].chunks  # another job's is left alone
    bench.undo(new)
    assert len(bench.store._rows[COLLECTION]) == before["upload/a.txt"].chunks


def test_a_document_that_a_job_was_giving_other_groups_stays_when_that_is_given_up(bench: Bench) -> None:
    bench.work(bench.make_job("upload/a.txt", paragraphs("apples")))
    job = bench.make_job("upload/a.txt", paragraphs("apples"), acl=("staff",))
    bench.stop(job, 3)
    bench.undo(job)
    bench.jobs.drop_folder(job.job_id)
    assert bench.documents()["upload/a.txt"].chunks == len(bench.store._rows[COLLECTION])
    assert bench.ingest().failed == 1
    bench.work(bench.make_job("upload/a.txt", paragraphs("apples"), caller_groups=("staff",)))
    assert bench.documents()["upload/a.txt"].acl == ("staff",)
    assert bench.ingest().failed == 0
