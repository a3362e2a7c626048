"""What a killed run left and the next one cannot finish: nothing that was complete is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.ingest_fakes import COLLECTION, Store, counts, ingest, kill, paragraphs, rows, write_document

STAFF = {"acl": ["staff"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_document(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    file = tmp_path / "other.txt"
    file.write_text("Another thing.")
    return file


def half_given_to(path: Path, **given: Any) -> Store:
    """A store that holds the document, some of whose rows a killed run gave other groups or metadata."""
    store = Store()
    ingest(store, path)
    assert kill(store, 4, path, **given)
    assert len({(row.acl, str(row.metadata)) for row in store._rows[COLLECTION].values()}) == 2
    return store


def made_empty(path: Path) -> None:
    path.write_bytes(b"")


def moved_away(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.mark.parametrize("spoil", [made_empty, moved_away])
@pytest.mark.parametrize("given", [STAFF, {"metadata": {"year": 2024}}], ids=["acl", "metadata"])
def test_a_document_whose_groups_were_being_changed_stays_though_its_file_cannot_be_read(
    path: Path, other: Path, spoil: Callable[[Path], None], given: dict[str, Any]
) -> None:
    store = half_given_to(path, **given)
    before, said = rows(store), list[str]()
    text = path.read_text()
    spoil(path)
    for added in (1, 0):  # a second time, too
        report = ingest(store, other, said=said)
        assert counts(report) == (added, 0, 1 - added, 0, 1)
        (failure,) = report.failures
        assert failure.source == str(path)
        assert "make the file readable" in failure.reason
        assert "rag documents delete" in failure.reason
        assert rows(store).items() >= before.items()
    assert failure.reason in said[-1]
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert counts(ingest(store, other)) == (0, 1, 1, 0, 0)
    fresh = Store()
    ingest(fresh, path, **given)
    ingest(fresh, other)
    assert rows(store) == rows(fresh)


def test_a_file_that_was_given_and_cannot_be_read_is_one_failure(path: Path) -> None:
    store, said = half_given_to(path, **STAFF), list[str]()
    path.write_bytes(b"")
    report = ingest(store, path, said=said)
    assert counts(report) == (0, 0, 0, 0, 1)
    assert "it is empty" in report.failures[0].reason
    assert "rag documents delete" in said[-1]


def test_the_groups_that_were_asked_for_hold_for_what_the_file_says_later(path: Path, other: Path) -> None:
    store = half_given_to(path, **STAFF)
    path.write_bytes(b"")
    ingest(store, other)
    path.write_text(paragraphs("pears"))
    assert counts(ingest(store, path)) == (0, 1, 0, 0, 0)
    (document,) = [one for one in store.stored_documents(COLLECTION) if one.source == str(path)]
    assert document.acl == ("staff",)
    assert "apples" not in str(rows(store))


def test_a_document_whose_file_is_gone_can_still_be_pruned(path: Path, other: Path) -> None:
    store = half_given_to(path, **STAFF)
    path.unlink()
    assert counts(ingest(store, path.parent, prune=True)) == (0, 0, 0, 1, 0)
    assert rows(store) == {}
    assert counts(ingest(store, other)) == (1, 0, 0, 0, 0)


def test_it_stays_also_where_the_journal_was_lost(path: Path, other: Path) -> None:
    store = half_given_to(path, **STAFF)
    before = rows(store)
    store.journal.unlink()
    path.write_bytes(b"")
    report = ingest(store, other)
    assert counts(report) == (1, 0, 0, 0, 1)
    assert rows(store).items() >= before.items()


def test_what_never_was_complete_is_removed(path: Path, other: Path) -> None:
    store = Store()
    assert kill(store, 4, path)
    path.unlink()
    assert counts(ingest(store, other)) == (1, 0, 0, 0, 0)
    assert {row.source for row in store._rows[COLLECTION].values()} == {str(other)}
