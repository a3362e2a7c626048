"""JSON lines through whole runs: many documents of one file, which come, change and go with their rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.ingest_fakes import COLLECTION, Store, counts, ingest, kill, paragraphs, rows


def write_rows(path: Path, texts: Mapping[str, str], metadata: Mapping[str, Mapping[str, str]] | None = None) -> None:
    metadata = metadata or {}
    lines = [json.dumps({"id": name, "text": text, "metadata": metadata.get(name, {})}) for name, text in texts.items()]
    path.write_text("\n".join(lines) + "\n")


def sources(store: Store) -> Sequence[str]:
    return [document.source for document in store.stored_documents(COLLECTION)]


OLD = {"one": paragraphs("apples", 5), "two": paragraphs("pears", 2), "three": "A line."}
NEW = {"one": paragraphs("figs", 5), "three": "A line.", "four": paragraphs("pears", 2)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "docs" / "corpus.jsonl"
    path.parent.mkdir()
    write_rows(path, OLD)
    return path


def test_rows_that_are_gone_from_their_file_are_pruned_and_only_then(file: Path) -> None:
    store = Store()
    assert counts(ingest(store, file)) == (3, 0, 0, 0, 0)
    assert counts(ingest(store, file)) == (0, 0, 3, 0, 0)
    write_rows(file, NEW)
    assert counts(ingest(store, file)) == (1, 1, 1, 0, 0)
    assert sources(store) == ["four", "one", "three", "two"]
    assert counts(ingest(store, file, prune=True)) == (0, 0, 3, 1, 0)
    assert sources(store) == ["four", "one", "three"]


def test_no_row_is_pruned_of_a_file_with_a_bad_line(file: Path) -> None:
    store = Store()
    ingest(store, file)
    write_rows(file, {"one": OLD["one"]})
    with file.open("a") as opened:
        opened.write("{not json\n")
    assert counts(ingest(store, file, prune=True)) == (0, 0, 1, 0, 1)
    assert len(sources(store)) == 3


def test_a_file_of_rows_that_is_gone_is_pruned_and_one_that_moved_is_followed(file: Path) -> None:
    store = Store()
    ingest(store, file.parent)
    moved = file.rename(file.with_name("elsewhere.jsonl"))
    assert counts(ingest(store, file.parent, prune=True)) == (0, 0, 3, 0, 0)
    moved.unlink()
    assert counts(ingest(store, file.parent, prune=True)) == (0, 0, 0, 3, 0)


def test_a_row_of_two_files_is_taken_once_and_the_other_is_named(file: Path) -> None:
    write_rows(file.with_name("other.jsonl"), {"one": "Another text."})
    store = Store()
    report = ingest(store, file.parent)
    assert counts(report) == (3, 0, 0, 0, 1)
    assert str(file) in report.failures[0].reason
    assert counts(ingest(store, file.parent)) == (0, 0, 3, 0, 1)


def test_a_rows_own_metadata_follow_the_row_and_those_given_stay(file: Path) -> None:
    store = Store()
    write_rows(file, OLD, {"one": {"year": "2024"}})
    ingest(store, file, metadata={"lang": "en"})
    assert counts(ingest(store, file)) == (0, 0, 3, 0, 0)
    write_rows(file, OLD)
    assert counts(ingest(store, file, metadata={"lang": "en"})) == (0, 1, 2, 0, 0)
    assert {str(dict(document.metadata)) for document in store.stored_documents(COLLECTION)} == {"{'lang': 'en'}"}


def test_a_run_over_rows_killed_at_any_write_is_made_good_by_the_next(file: Path) -> None:
    def after(writes: int | None) -> object:
        store = Store()
        write_rows(file, OLD)
        ingest(store, file)
        write_rows(file, NEW)
        if writes is not None and not kill(store, writes, file, prune=True):
            return None
        ingest(store, file, prune=True)
        return rows(store)

    wanted, writes = after(None), 0
    while (state := after(writes)) is not None:
        assert state == wanted, writes
        writes += 1
    assert writes > 8
