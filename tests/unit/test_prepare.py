"""Reading ahead of whoever embeds, and what a document is measured in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.chunk import embedding_text
from ingest.load import load_documents
from ingest.prepare import Prepared, Work, choose_counter, count_by_chars, prepare_here
from rag.config import load_settings
from rag.errors import DocumentError
from rag.language import Language
from rag.types import Chunk, Document
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


# --- what a document is measured in ---

ENGLISH = "The service listens on port 8000 of the machine and answers every question that it is asked. "
KOREAN = "서비스는 이 컴퓨터의 8000번 포트에서 요청을 기다리고 받은 모든 질문에 답합니다. "
MOST = load_settings(profile="embedded").chunk.max_tokens


def count_fine(text: str) -> int:
    """A counter like an English WordPiece's: a letter outside its alphabet takes more than one token."""
    return sum(1 if word.isascii() else 2 * len(word) for word in text.split())


def chunks_of(folder: Path, text: str, languages: tuple[Language, ...] | None) -> list[Chunk]:
    settings = load_settings(profile="embedded", embedder={"languages": languages})
    ((_, outcome),) = prepare_here(settings, count_fine)(make_works(folder, [text]))
    assert isinstance(outcome, Prepared)
    for chunk in outcome.chunks:
        assert chunk.text == text[chunk.start_char : chunk.end_char]
    return list(outcome.chunks)


def test_a_language_that_the_embedder_does_not_understand_is_measured_in_characters(tmp_path: Path) -> None:
    chunks = chunks_of(tmp_path, KOREAN * 60, ("latin",))
    assert len(chunks) > 5
    for chunk in chunks:
        assert MOST < len(chunk.text) <= 2.5 * MOST
        assert count_fine(chunk.text) > 256  # as many as the embedder reads


@pytest.mark.parametrize(
    ("text", "languages"),
    [
        pytest.param(ENGLISH * 60, ("latin",), id="understood"),
        pytest.param(KOREAN * 60, ("latin", "ko"), id="understood_beside_another"),
        pytest.param(KOREAN * 60, None, id="everything_understood"),
        pytest.param(ENGLISH * 40 + KOREAN, ("latin",), id="a_few_foreign_words"),
    ],
)
def test_a_language_that_it_understands_is_measured_in_its_tokens(
    tmp_path: Path, text: str, languages: tuple[Language, ...] | None
) -> None:
    chunks = chunks_of(tmp_path, text, languages)
    assert chunks == chunks_of(tmp_path, text, None)
    assert max(count_fine(embedding_text(chunk)) for chunk in chunks) <= MOST
    assert max(count_fine(chunk.text) for chunk in chunks) > MOST / 2


def test_all_chunks_of_a_document_are_measured_in_one_way(tmp_path: Path) -> None:
    text = f"{ENGLISH * 20}\n\n{KOREAN * 40}"
    chunks = chunks_of(tmp_path, text, ("latin",))
    assert max(len(chunk.text) for chunk in chunks) <= 2.5 * MOST
    assert chunks[0].text in ENGLISH * 20
    assert len(chunks[0].text) < max(len(chunk.text) for chunk in chunks_of(tmp_path, ENGLISH * 20, ("latin",))) / 2


@pytest.mark.parametrize(
    ("text", "by_characters"),
    [
        pytest.param(ENGLISH * 20_000 + KOREAN * 40_000, True, id="a_preface"),
        pytest.param(KOREAN * 20_000 + ENGLISH * 60_000, False, id="a_first_chapter"),
        pytest.param("가" * 20_000_000, True, id="as_long_as_may_be"),
        pytest.param("", False, id="empty"),
    ],
)
def test_a_long_text_is_judged_by_a_sample_of_all_its_parts(text: str, by_characters: bool) -> None:
    started = time.monotonic()
    counter = choose_counter(text, ("latin",), count_fine)
    assert time.monotonic() - started < 0.5  # the whole of the longest takes seconds, and a gigabyte
    assert counter is (count_by_chars if by_characters else count_fine)


def test_five_characters_are_two_tokens() -> None:
    assert [count_by_chars("가" * count) for count in (0, 1, 2, 3, 5, 6)] == [0, 1, 1, 2, 2, 3]
