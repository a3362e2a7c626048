"""Stored chunks -> the document that they were made of."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.chunk import chunk_document
from ingest.rebuild import rebuild_document
from rag.errors import DocumentError
from rag.step_settings import ChunkSettings
from rag.types import Chunk, Heading, Page, ParsedDocument, StoredDocument
from tests.unit.test_chunk import COUNTERS, SMALL, count_words, document, documents, markdown, paged, plain, sizes

LARGE = ChunkSettings(max_tokens=60, overlap_tokens=0)


def stored(parsed: ParsedDocument, chunks: list[Chunk]) -> StoredDocument:
    one = parsed.document
    pages = len(parsed.pages) if parsed.paged else None
    return StoredDocument(
        one.document_id, one.source, parsed.title, one.revision, len(chunks), pages, ("g",), {"year": 2024}, "1"
    )


def rebuilt(parsed: ParsedDocument, size: ChunkSettings, counter: str = "words") -> tuple[ParsedDocument, list[Chunk]]:
    chunks = chunk_document(parsed, size, COUNTERS[counter])
    return rebuild_document(stored(parsed, chunks), chunks), chunks


@given(text=documents, size=sizes, counter=st.sampled_from(sorted(COUNTERS)))
@settings(deadline=None, max_examples=100)
def test_the_text_is_the_documents_own(text: str, size: ChunkSettings, counter: str) -> None:
    again, chunks = rebuilt(markdown(text), size, counter)
    assert again.text == text[: chunks[-1].end_char if chunks else 0]


@given(text=documents, small=sizes, large=sizes)
@settings(deadline=None, max_examples=100)
def test_what_is_split_anew_is_the_documents_text_whole_and_under_its_headings(
    text: str, small: ChunkSettings, large: ChunkSettings
) -> None:
    parsed = markdown(text)
    again, before = rebuilt(parsed, small)
    heading_at = {at: chunk.heading for chunk in before for at in range(chunk.start_char, chunk.end_char)}
    covered: set[int] = set()
    for chunk in chunk_document(again, large, count_words):
        assert chunk.text == text[chunk.start_char : chunk.end_char]
        inside = {heading_at[at] for at in range(chunk.start_char, chunk.end_char) if at in heading_at}
        assert len(inside) == 1
        # The path may be cut otherwise: its length goes by the chunk's.
        (heading,) = inside
        assert heading.endswith(chunk.heading) or chunk.heading.startswith(heading[:1])
        covered.update(range(chunk.start_char, chunk.end_char))
    assert [at for at in heading_at if at not in covered and not text[at].isspace()] == []


@given(texts=st.lists(st.one_of(st.just(""), documents), min_size=1, max_size=8), size=sizes)
@settings(deadline=None, max_examples=75)
def test_each_character_stays_on_its_page(texts: list[str], size: ChunkSettings) -> None:
    parsed = paged(texts)
    again, before = rebuilt(parsed, size)
    page_of = [page.number for page in parsed.pages for _ in page.text]
    assert again.paged is bool(before)
    for chunk in chunk_document(again, LARGE, count_words):
        for position in range(chunk.start_char, chunk.end_char):
            if not again.text[position].isspace():
                assert chunk.page_at(position) == page_of[position]


def test_the_same_sizes_give_the_same_chunks() -> None:
    text = (
        "# Guide\n\nAbout it. "
        + "More words follow here. " * 9
        + "\n\n## Install > it\n\nRun it.\n\n## Use\n\n"
        + "A. " * 30
    )
    parsed = markdown(text)
    again, before = rebuilt(parsed, SMALL)
    assert len({chunk.heading for chunk in before}) == 3
    assert chunk_document(again, SMALL, count_words) == before


def test_larger_chunks_join_smaller_ones_within_a_section_only() -> None:
    parsed = markdown("# A\n\n" + "One two three four.\n\n" * 6 + "# B\n\n" + "Five six seven eight.\n\n" * 3)
    again, before = rebuilt(parsed, SMALL)
    after = chunk_document(again, LARGE, count_words)
    assert after == chunk_document(parsed, LARGE, count_words)
    assert len(after) < len(before)


def test_a_repeated_heading_parts_its_sections() -> None:
    parsed = markdown("# A\n\nOne.\n\n# A\n\nTwo.\n")
    again, _ = rebuilt(parsed, SMALL)
    assert [chunk.text for chunk in chunk_document(again, LARGE, count_words)] == ["One.", "Two."]


def test_a_heading_without_a_line_of_its_own_is_kept() -> None:
    """A PDF's outline names places."""
    parsed = replace(
        paged(["One two.\n", "Three four.\n"]), headings=(Heading(1, "Start", 0, 0), Heading(1, "End", 9, 9))
    )
    again, before = rebuilt(parsed, SMALL)
    assert chunk_document(again, SMALL, count_words) == before
    assert [(chunk.heading, chunk.first_page) for chunk in before] == [("Start", 1), ("End", 2)]


def test_a_page_that_no_chunk_reaches_counts() -> None:
    parsed = paged(["One.\n", "", "  \n", "Four.\n"])
    again, _ = rebuilt(parsed, SMALL)
    (chunk,) = chunk_document(again, LARGE, count_words)
    assert (chunk.first_page, chunk.last_page, chunk.page_at(chunk.text.index("Four"))) == (1, 4, 4)


@pytest.mark.parametrize("space", [" ", "\n"])
def test_no_chunk_holds_a_gap_that_was_too_long_to_be_stored(space: str) -> None:
    text = "One." + space * 20_000 + "Two."
    again, before = rebuilt(plain(text), SMALL)
    assert again.text[:4] + again.text[-4:] == "One.Two."
    assert len(again.text) == len(text)
    assert max(len(chunk.lead) for chunk in before) < len(text) - 8
    assert [chunk.text for chunk in chunk_document(again, LARGE, count_words)] == ["One.", "Two."]


def test_rows_of_other_revisions_and_from_a_former_splitting_are_left_aside() -> None:
    parsed = markdown("# A\n\n" + "One two three four.\n\n" * 6)
    chunks = chunk_document(parsed, SMALL, count_words)
    others = [replace(chunks[0], revision="r0"), replace(chunks[-1], ordinal=len(chunks))]
    again = rebuild_document(stored(parsed, chunks), [*others, *reversed(chunks)])
    assert again.text == parsed.text[: chunks[-1].end_char]


def test_a_document_with_chunks_missing_is_not_made_up() -> None:
    parsed = markdown("# A\n\n" + "One two three four.\n\n" * 6)
    chunks = chunk_document(parsed, SMALL, count_words)
    with pytest.raises(DocumentError, match=f"{len(chunks) - 1} of its {len(chunks)} chunks are stored"):
        rebuild_document(stored(parsed, chunks), chunks[:1] + chunks[2:])


def test_the_documents_facts_are_kept() -> None:
    again, _ = rebuilt(markdown("# T\n\nText."), SMALL)
    assert (again.title, again.document.source, again.document.revision) == ("T", "/docs/guide.md", "r1")
    assert (again.document.acl, again.document.metadata) == (("g",), {"year": 2024})
    assert again.pages == (Page(1, "# T\n\nText.", 0),)
    assert document().document_id == again.document.document_id
