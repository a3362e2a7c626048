"""A document that no row of the store could hold costs itself, and no later run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ingest.journal import Journal, Unfinished
from ingest.load import document_id_of, load_document
from tests.ingest_fakes import COLLECTION, FINGERPRINT, Store, counts, ingest, paragraphs


def nested(levels: int) -> Any:
    return {"x": nested(levels - 1)} if levels else 1


UNSTORABLE: dict[str, tuple[dict[str, Any], str]] = {
    "large metadata": ({"metadata": {"x": "가" * 30_000}}, "metadata has 90[0-9]{3} bytes, at most 65535 fit"),
    "large integer": ({"metadata": {"x": [{"y": -(2**63) - 1}]}}, "integer beyond 64 bits; write it as text"),
    "deep metadata": ({"metadata": nested(101)}, "nested deeper than 100 levels; make it flat"),
    "long id": ({"id": "가" * 30_000}, "source has 90000 bytes, at most 65535 fit; shorten it"),
}
STORABLE = {"metadata": {"x": [2**63 - 1, -(2**63), 0.5, True, None], "deep": nested(90)}}


def write(path: Path, *rows: dict[str, Any]) -> Path:
    lines = (json.dumps({"id": str(number), "text": paragraphs("apples"), **row}) for number, row in enumerate(rows))
    path.write_text("".join(line + "\n" for line in lines))
    return path


def begin(store: Store, entry: Unfinished) -> None:
    """As a run did that came no further."""
    with Journal(store.journal, "memory") as journal:
        journal.begin([entry])


def unfinished(store: Store) -> list[Unfinished]:
    with Journal(store.journal, "memory") as journal:
        return journal.all_unfinished()


@pytest.mark.parametrize(("row", "told"), UNSTORABLE.values(), ids=UNSTORABLE)
def test_a_row_that_cannot_be_stored_is_a_failure_and_the_others_go_on(
    tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    store = Store()
    file = write(tmp_path / "rows.jsonl", STORABLE, row, STORABLE)
    for expected in ((2, 0, 0, 0, 1), (0, 0, 2, 0, 1)):
        report = ingest(store, file)
        assert counts(report) == expected
        assert report.failures[0].source == row.get("id", "1")
        with pytest.raises(AssertionError, match=told):
            raise AssertionError(report.failures[0].reason)
        assert unfinished(store) == []


def test_more_groups_than_fit_are_told_and_the_stored_ones_stay(tmp_path: Path) -> None:
    store = Store()
    (tmp_path / "a.txt").write_text(paragraphs("apples"))
    ingest(store, tmp_path, acl=["staff"])
    report = ingest(store, tmp_path, acl=[str(number) for number in range(5000)])
    assert counts(report) == (0, 0, 0, 0, 1)
    assert "acl has 5000 entries, at most 4096 fit; give fewer" in report.failures[0].reason
    assert counts(ingest(store, tmp_path)) == (0, 0, 1, 0, 0)
    assert [document.acl for document in store.stored_documents(COLLECTION)] == [("staff",)]


@pytest.mark.parametrize("known", [False, True])
def test_a_journal_that_holds_such_a_document_gets_rid_of_it_and_keeps_the_stored_one(
    tmp_path: Path, known: bool
) -> None:
    store = Store()
    ingest(store, tmp_path)
    path = tmp_path / "a.txt"
    path.write_text(paragraphs("apples"))
    if known:
        ingest(store, tmp_path, acl=["staff"])
    document = load_document(path, max_file_bytes=10_000)
    facts = (document.document_id, document.revision, document.source, document.source)
    begin(store, Unfinished(*facts, ("boss",), {"x": 2**70}, FINGERPRINT.index_version, "2026-11-21T10:00:00.000"))
    said: list[str] = []
    report = ingest(store, tmp_path, said=said)
    assert counts(report) == ((0, 0, 1, 0, 0) if known else (1, 0, 0, 0, 0))
    assert [one.acl for one in store.stored_documents(COLLECTION)] == [("staff",) if known else ()]
    assert unfinished(store) == []
    assert any(f"{path}: an earlier run could not store it (metadata holds an integer" in line for line in said)


def test_a_file_that_the_system_refuses_to_look_for_does_not_end_the_next_run(tmp_path: Path) -> None:
    store = Store()
    ingest(store, tmp_path)
    begin(store, Unfinished("d", "r", "/" + "x" * 300, "/" + "x" * 300, (), {}, "v", "2026-11-21T10:00:00.000"))
    assert counts(ingest(store, tmp_path)) == (0, 0, 0, 0, 0)
    assert unfinished(store) == []


def test_a_row_that_an_earlier_version_journalled_fails_alone(tmp_path: Path) -> None:
    store = Store()
    file = write(tmp_path / "rows.jsonl", STORABLE, {"metadata": {"x": 2**70}})
    ingest(store, file)
    (stored,) = store.stored_documents(COLLECTION)
    entry = Unfinished(document_id_of("1"), "r", "1", file.as_posix(), (), {"x": 2**70}, "v", stored.updated_at)
    begin(store, replace(entry, written=0))
    assert counts(ingest(store, file)) == (0, 0, 1, 0, 1)
    assert unfinished(store) == []
