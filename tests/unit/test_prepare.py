"""Reading ahead of whoever embeds."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.load import load_documents
from ingest.prepare import Prepared, Work, prepare_here
from rag.errors import DocumentError
from rag.types import Document
from tests.ingest_fakes import count_words, small_settings

SETTINGS = small_settings()
LARGE = "A long line of words.\n" * 30_000  # more bytes than are read ahead


def make_works(folder: Path, texts: list[str], pulled: list[int] | None = None) -> Iterator[Work]:
    for number, text in enumerate(texts):
        path = folder / f"{number:03}.txt"
        path.write_text(text, encoding="utf-8")
        (document,) = load_documents(path, max_file_bytes=10**8)
        assert isinstance(document, Document)
        if pulled is not None:
            pulled.append(number)
        yield Work(document, path, len(text))


def test_each_work_comes_with_its_own_outcome_in_order(tmp_path: Path) -> None:
    texts = [f"Number {number}." if number % 7 else " " for number in range(600)]
    outcomes = list(prepare_here(SETTINGS, count_words)(make_works(tmp_path, texts)))
    assert [work.path.name for work, _ in outcomes] == [f"{number:03}.txt" for number in range(600)]
    for number, (work, outcome) in enumerate(outcomes):
        if number % 7:
            assert isinstance(outcome, Prepared)
            assert outcome.document is work.document
            assert outcome.chunks[0].text == f"Number {number}."
        else:
            assert isinstance(outcome, DocumentError)


@pytest.mark.parametrize(("text", "most"), [("Short.", 257), (LARGE, 3)], ids=["small", "large"])
def test_no_more_is_taken_than_is_read_ahead(tmp_path: Path, text: str, most: int) -> None:
    pulled: list[int] = []
    prepared = prepare_here(SETTINGS, count_words)(make_works(tmp_path, [text] * 300, pulled))
    next(prepared)
    assert len(pulled) == most
    prepared.close()
    assert len(pulled) == most


def test_the_next_document_is_read_while_the_caller_is_busy(tmp_path: Path) -> None:
    read = threading.Event()

    def count(text: str) -> int:
        if "second" in text:
            read.set()
        return count_words(text)

    prepared = prepare_here(SETTINGS, count)(make_works(tmp_path, [LARGE, "The second. " + LARGE, LARGE]))
    next(prepared)
    assert read.wait(20)  # though nobody has asked for it


def test_whoever_stops_early_leaves_nobody_reading(tmp_path: Path) -> None:
    before = threading.active_count()
    prepared = prepare_here(SETTINGS, count_words)(make_works(tmp_path, ["Short."] * 400))
    next(prepared)
    assert threading.active_count() == before + 1
    prepared.close()
    assert threading.active_count() == before


def test_what_is_no_fault_of_the_document_is_raised(tmp_path: Path) -> None:
    def count(text: str) -> int:
        raise ZeroDivisionError(text)

    with pytest.raises(ZeroDivisionError):
        list(prepare_here(SETTINGS, count)(make_works(tmp_path, ["Short."])))
