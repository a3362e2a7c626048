"""The journal's file and its lock; what it is good for is tested with whole runs in test_ingest_killed."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.journal import Journal, Recorded, Unfinished, open_journal
from rag.config import load_settings
from rag.errors import SettingsError
from rag.types import StoredDocument

ROOT = Path(__file__).parents[2]
ENTRY = Unfinished("d1", "r2", "/docs/a.md", "/docs/a.md", ("staff",), {"lang": "en"}, "v1", "2026-11-21T10:00:00.000")
HOLD = """
import sys, time
from ingest.journal import open_journal
from rag.config import load_settings
say = lambda sentence: print(sentence, flush=True)
with open_journal(load_settings(data_dir=sys.argv[1]), "docs", say):
    say("mine")
    time.sleep(600)
"""


def stored(document_id: str, revision: str = "r1", source: str | None = None) -> StoredDocument:
    name = source or f"/docs/{document_id}.md"
    return StoredDocument(document_id, name, "title", revision, 3, None, (), {}, "2026-11-20T10:00:00.000")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite", "here")
    yield opened
    opened.close()


def anew(journal: Journal, identity: str = "here") -> Journal:
    """As the next process opens it."""
    journal.close()
    return Journal(journal.path, identity)


def test_what_was_begun_is_there_after_the_process_is_gone_and_what_was_finished_is_not(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    first = Journal(path, "here")
    assert first.fault == "is new"
    first.begin([ENTRY, replace(ENTRY, document_id="d2", moved_from="d9")])
    first.advance({"d1": 7})
    left = Journal(path, "here")  # the first one is still open, as a killed process leaves it
    assert left.fault == ""
    assert left.all_unfinished() == [replace(ENTRY, written=7), replace(ENTRY, document_id="d2", moved_from="d9")]
    first.finish([(ENTRY, 8)])
    assert [entry.document_id for entry in left.all_unfinished()] == ["d2"]
    first.close()
    left.close()


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    source=st.text(st.characters(codec=None), min_size=1),
    acl=st.lists(st.text(st.characters(codec=None))),
    metadata=st.dictionaries(st.text(), st.text() | st.integers(-(2**60), 2**60) | st.booleans() | st.none()),
)
def test_an_entry_comes_back_as_it_was(journal: Journal, source: str, acl: list[str], metadata: dict) -> None:
    entry = replace(ENTRY, source=source, origin=source, acl=tuple(acl), metadata=metadata)
    journal.begin([entry])
    assert journal.unfinished("d1") == entry
    journal.finish([(entry, 3)])
    assert journal.unfinished("d1") is None
    found = journal.recorded("d1")
    assert found == Recorded("d1", "r2", source, source, tuple(acl), metadata, 3, entry.updated_at)


def test_the_store_is_compared_with_what_is_known(journal: Journal) -> None:
    assert not journal.trusted
    first = journal.load_store([stored("d1"), stored("d2")])
    assert (first.unknown, first.missing) == (2, 0)
    assert journal.trust([]) == 2
    assert journal.trusted
    second = journal.load_store([stored("d1", "r7"), stored("d3")])
    assert (second.unknown, second.missing) == (2, 1)
    journal.begin([replace(ENTRY, document_id="d1")])
    third = journal.load_store([stored("d1", "r7"), stored("d3")])
    assert (third.unknown, third.missing) == (1, 0)


def test_where_a_document_came_from_is_kept_and_otherwise_its_source(journal: Journal) -> None:
    journal.load_store([stored("d1"), stored("d2", source="row 2")])
    journal.trust([])
    journal.note_origin("d2", "/docs/rows.jsonl")
    journal.save()
    later = anew(journal)
    later.load_store([stored("d1"), stored("d2", source="row 2")])
    documents = {document.document_id: document for document in later.unseen()}
    assert documents["d1"].origin == "/docs/d1.md"
    assert documents["d2"].origin == "/docs/rows.jsonl"
    later.close()


def test_unseen_documents_are_listed_while_they_are_forgotten(journal: Journal) -> None:
    names = [f"d{number:05}" for number in range(2500)]
    journal.load_store(map(stored, names))
    journal.trust([])
    assert journal.mark_seen("d01234", "/docs/a.md") is None
    assert journal.mark_seen("d01234", "/docs/b.md") == "/docs/a.md"
    found = []
    for document in journal.unseen():
        journal.forget(document.document_id)
        found.append(document.document_id)
    assert found == [name for name in names if name != "d01234"]
    assert list(journal.unseen()) == []


def test_another_stores_journal_is_not_believed(journal: Journal) -> None:
    journal.begin([ENTRY])
    other = anew(journal, "elsewhere")
    assert other.fault == "belongs to another store or collection"
    assert other.all_unfinished() == []
    other.close()


def test_another_versions_journal_is_not_believed(journal: Journal) -> None:
    journal.begin([ENTRY])
    with sqlite3.connect(journal.path) as database:
        database.execute("PRAGMA user_version = 99")
    other = anew(journal)
    assert "another version" in other.fault
    assert other.all_unfinished() == []
    other.close()


def test_a_journal_that_cannot_be_written_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file where the folder should be")
    with (
        pytest.raises(SettingsError, match="RAG_DATA_DIR"),
        open_journal(load_settings(data_dir=tmp_path / "data"), "docs", print),
    ):
        raise AssertionError("it was opened")


def test_collections_have_journals_of_their_own(tmp_path: Path) -> None:
    said: list[str] = []
    here = load_settings(data_dir=tmp_path)
    there = load_settings(data_dir=tmp_path, store={"uri": "http://elsewhere:19530"})
    with open_journal(here, "a", said.append) as first:
        first.begin([ENTRY])
        with open_journal(here, "b", said.append) as second, open_journal(there, "a", said.append) as third:
            assert second.all_unfinished() == third.all_unfinished() == []
    assert said == []


def test_a_second_process_waits_until_the_first_is_gone_even_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "mine\n"
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as second:
            assert second.stdout is not None
            said = second.stdout.readline()
            assert said == f"collection 'docs' is being written to by process {first.pid}; waiting until that ends\n"
            os.kill(first.pid, signal.SIGKILL)
            assert second.stdout.readline() == "mine\n"
            second.kill()
