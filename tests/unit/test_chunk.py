"""ParsedDocument -> chunks: spans, limits, headings, pages, overlap."""

import re
import time
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.assemble import assemble_markdown
from ingest.chunk import chunk_document, embedding_text, splitter_name
from ingest.load import HTML, MARKDOWN, PDF, TEXT
from ingest.prepare import count_by_chars
from ingest.read_markdown import read
from rag.language import Language
from rag.step_settings import ChunkSettings
from rag.types import Chunk, Document, Page, ParsedDocument

SMALL = ChunkSettings(max_tokens=16, overlap_tokens=4)
WORD = re.compile(r"\w+|[^\w\s]")


def count_words(text: str) -> int:
    """A counter like WordPiece's: words and marks, a run without spaces of any length counting one."""
    return len(WORD.findall(text))


def count_chars(text: str) -> int:
    """A counter like a byte tokenizer's at its worst: every character, white space too."""
    return len(text)


def count_with_special(text: str) -> int:
    return count_words(text) + 2


COUNTERS = {
    "words": count_words,
    "chars": count_chars,
    "special_tokens": count_with_special,
    "characters": count_by_chars,
}


def document(media_type: str = MARKDOWN, revision: str = "r1") -> Document:
    return Document("d1", "/docs/guide.md", revision, media_type)


def plain(text: str, media_type: str = TEXT) -> ParsedDocument:
    return ParsedDocument(document(media_type), "guide", (Page(1, text, 0),))


def paged(texts: list[str]) -> ParsedDocument:
    pages, start = [], 0
    for number, text in enumerate(texts, start=1):
        pages.append(Page(number, text, start))
        start += len(text)
    return ParsedDocument(document(PDF), "guide", tuple(pages), paged=True)


def markdown(text: str, revision: str = "r1") -> ParsedDocument:
    return assemble_markdown(list(read({"text": text})), document(revision=revision), text)


def texts_of(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


line = st.one_of(
    st.text(max_size=60),
    st.sampled_from(
        [
            "", "", "# Guide", "## Install it", "### 설치 방법 { #install }", "Title\n=====", "```python", "```", "~~~",
            "| a | b |", "| --- | --- |", "- one entry", "1. first", "> quoted text.", "The same line. The same line.",
            "서울은 한국의 수도이다. 부산은 항구 도시이다.", "x" * 90, "    indented = code()",
            "\t", "日本語の文。次の文。",
        ]
    ),
)  # fmt: skip
documents = st.builds(
    lambda lines, eol: eol.join(lines), st.lists(line, max_size=30), st.sampled_from(["\n", "\r\n", "\n\n"])
)
sizes = st.builds(ChunkSettings, max_tokens=st.integers(16, 60), overlap_tokens=st.integers(0, 20))


@example(
    text="0\n0:\n```0\n0\x080{0\n\n\n```\n#",
    size=SMALL.model_copy(update={"overlap_tokens": 0}),
    counter="special_tokens",
)
@given(text=documents, size=sizes, counter=st.sampled_from(sorted(COUNTERS)))
@settings(deadline=None, max_examples=150)
def test_spans_rebuild_the_text_and_lose_nothing(text: str, size: ChunkSettings, counter: str) -> None:
    parsed = markdown(text)
    chunks = chunk_document(parsed, size, COUNTERS[counter])
    covered = {position for heading in parsed.headings for position in range(heading.start_char, heading.end_char)}
    for ordinal, chunk in enumerate(chunks):
        assert chunk.ordinal == ordinal
        assert chunk.text == text[chunk.start_char : chunk.end_char]
        assert chunk.text == chunk.text.strip()
        assert chunk.text
        assert COUNTERS[counter](embedding_text(chunk)) <= size.max_tokens
        for heading in parsed.headings:
            assert chunk.end_char <= heading.start_char or chunk.start_char >= heading.end_char
        covered.update(range(chunk.start_char, chunk.end_char))
    assert [text[i] for i in range(len(text)) if i not in covered and not text[i].isspace()] == []
    starts = [chunk.start_char for chunk in chunks]
    ends = [chunk.end_char for chunk in chunks]
    assert starts == sorted(set(starts))
    assert ends == sorted(set(ends))


@given(
    texts=st.lists(st.one_of(st.just(""), documents), min_size=1, max_size=8),
    size=sizes,
    counter=st.sampled_from(["words", "characters"]),
)
@settings(deadline=None, max_examples=75)
def test_a_chunk_knows_the_page_of_each_of_its_characters(texts: list[str], size: ChunkSettings, counter: str) -> None:
    parsed = paged(texts)
    page_of = [page.number for page in parsed.pages for _ in page.text]
    for chunk in chunk_document(parsed, size, COUNTERS[counter]):
        assert chunk.first_page == page_of[chunk.start_char]
        assert chunk.last_page == page_of[chunk.end_char - 1]
        assert len(chunk.page_starts) == chunk.last_page - chunk.first_page + 1
        for position in range(chunk.start_char, chunk.end_char):
            assert chunk.page_at(position) == page_of[position]


def test_a_format_without_pages_gives_none() -> None:
    (chunk,) = chunk_document(plain("Some text."), SMALL, count_words)
    assert (chunk.first_page, chunk.last_page, chunk.page_starts, chunk.page_at(3)) == (None, None, (), None)


def test_ids_are_stable_and_belong_to_one_revision() -> None:
    text = "First paragraph of the text.\n\n" * 8
    once = [chunk.chunk_id for chunk in chunk_document(markdown(text), SMALL, count_words)]
    again = [chunk.chunk_id for chunk in chunk_document(markdown(text), SMALL, count_words)]
    other = [chunk.chunk_id for chunk in chunk_document(markdown(text, revision="r2"), SMALL, count_words)]
    assert once == again
    assert len(set(once)) == len(once) > 1
    assert not set(once) & set(other)


def test_each_chunk_carries_the_path_of_its_own_heading() -> None:
    text = "intro\n\n# Guide\n\na\n\n## Install\n\nb\n\n### Linux\n\nc\n\n## Use\n\nd\n\n# API\n\ne\n"
    chunks = chunk_document(markdown(text), ChunkSettings(max_tokens=40), count_words)
    assert [(chunk.heading, chunk.text) for chunk in chunks] == [
        ("", "intro"),
        ("Guide", "a"),
        ("Guide > Install", "b"),
        ("Guide > Install > Linux", "c"),
        ("Guide > Use", "d"),
        ("API", "e"),
    ]


def test_a_long_heading_path_leaves_room_for_the_text() -> None:
    text = f"# {'alpha ' * 30}\n\n## Beta\n\n### {'gamma ' * 30}\n\n{'text ' * 100}\n"
    chunks = chunk_document(markdown(text), SMALL, count_words)
    assert all(0 < count_words(chunk.heading) <= SMALL.max_tokens // 3 for chunk in chunks)
    assert all(chunk.heading.startswith("gamma") for chunk in chunks)


def test_only_headings_or_white_space_give_no_chunk() -> None:
    assert chunk_document(markdown("# Guide\n\n## Install\n \n\t\n"), SMALL, count_words) == []
    assert chunk_document(plain(" \r\n\t\u3000"), SMALL, count_words) == []


def test_the_same_text_again_and_again_has_its_own_offsets() -> None:
    text = "Same words here. " * 40
    chunks = chunk_document(plain(text), ChunkSettings(max_tokens=16, overlap_tokens=0), count_words)
    assert "".join(text[a.end_char : b.start_char] for a, b in pairwise(chunks)).strip() == ""
    assert [chunk.start_char for chunk in chunks] == sorted({chunk.start_char for chunk in chunks})
    assert all(chunk.text == text[chunk.start_char : chunk.end_char] for chunk in chunks)


def test_paragraphs_then_sentences_before_words() -> None:
    text = "One two three four five.\n\nSix seven eight. Nine ten eleven twelve. A b c d e f g h i.\n\nLast one here."
    chunks = chunk_document(plain(text), ChunkSettings(max_tokens=16, overlap_tokens=0), count_words)
    assert all(chunk.text.endswith(".") for chunk in chunks)
    assert texts_of(chunks)[0].startswith("One two three four five.")


@pytest.mark.parametrize(
    "block",
    ["```python\nfirst = 1\n\nsecond = 2\n```", "| a | b |\n| - | - |\n| 1 | 2 |"],
    ids=["fence", "table"],
)
def test_a_block_that_fits_stays_whole(block: str) -> None:
    size = ChunkSettings(max_tokens=24, overlap_tokens=0)
    filler = "Some words that come before the block and fill a chunk up."
    text = f"{filler}\n\n{block}\n\n{filler}\n\n{block}\n"
    chunks = chunk_document(markdown(text), size, count_words)
    assert len(chunks) > 1
    assert sum(text.count(block) for text in texts_of(chunks)) == 2


sentences = st.lists(
    st.integers(1, 40).flatmap(
        lambda length: st.sampled_from(
            [
                "Word " + "more " * (length - 1) + "end.",
                "서울은 " + "큰 " * (length - 1) + "도시이다.",
                "End" * length + "!",
            ]
        )
    ),
    min_size=1,
    max_size=12,
)


@given(paragraphs=st.lists(sentences, min_size=1, max_size=5), size=sizes, gap=st.sampled_from(["\n\n", "\n", " "]))
@example([["End" * 27 + "!", "End" * 40 + "!"]], ChunkSettings(max_tokens=16, overlap_tokens=0), " ")
@settings(deadline=None, max_examples=100)
def test_a_sentence_that_fits_is_not_cut(paragraphs: list[list[str]], size: ChunkSettings, gap: str) -> None:
    text = gap.join(" ".join(paragraph) for paragraph in paragraphs)
    chunks = chunk_document(plain(text), size, count_words)
    start = 0
    for sentence in (sentence for paragraph in paragraphs for sentence in paragraph):
        start = text.index(sentence, start)
        if count_words(sentence) <= size.max_tokens and len(sentence) <= size.max_tokens * 12:
            assert any(chunk.start_char <= start and start + len(sentence) <= chunk.end_char for chunk in chunks)
        start += len(sentence)


def make_table(rows: int) -> str:
    return "| a | b |\n| - | - |\n" + "".join(f"| {row} | x |\n" for row in range(rows))


blocks = st.one_of(
    st.integers(0, 8).map(make_table),
    st.integers(1, 20).map(lambda lines: "```\n" + "call(x)\n\n" * lines + "```\n"),
    sentences.map(lambda found: " ".join(found) + "\n"),
)


@given(parts=st.lists(blocks, min_size=1, max_size=8), size=sizes, gap=st.sampled_from(["", "\n"]))
@settings(deadline=None, max_examples=100)
def test_tables_and_code_that_fit_stay_whole_with_or_without_a_blank_line_around(
    parts: list[str], size: ChunkSettings, gap: str
) -> None:
    whole = [after for before, after in pairwise(["", *parts]) if not (before[:2] == after[:2] == "| ")]
    text = gap.join(whole)
    chunks = chunk_document(markdown(text), size, count_words)
    start = 0
    for part in whole:
        start = text.index(part, start)
        end = start + len(part.rstrip())
        if part[:2] in ("| ", "``") and count_words(part) <= size.max_tokens:
            assert any(chunk.start_char <= start and end <= chunk.end_char for chunk in chunks)
        start += len(part)


def test_code_without_fences_stays_whole_where_its_span_is_known() -> None:
    before, code, after = "word " * 11 + "end.", "a = 1\n\nb = 2", "More words follow the code."
    text = f"{before}\n\n{code}\n\n{after}"
    start = text.index(code)
    size = ChunkSettings(max_tokens=16, overlap_tokens=0)
    marked = replace(plain(text, HTML), verbatim=((start, start + len(code) + 1),))
    assert texts_of(chunk_document(marked, size, count_words)) == [before, f"{code}\n\n{after}"]
    assert texts_of(chunk_document(plain(text, HTML), size, count_words))[0] == f"{before}\n\na = 1"


def test_a_fence_that_does_not_fit_is_cut_between_its_lines() -> None:
    lines = [f"value_{number} = compute({number})" for number in range(40)]
    text = "```python\n" + "\n".join(lines) + "\n```\n"
    for chunk in chunk_document(markdown(text), ChunkSettings(max_tokens=30, overlap_tokens=0), count_words):
        assert set(chunk.text.splitlines()) <= {*lines, "```python", "```"}


def test_neighbours_overlap_within_a_section_only() -> None:
    section = "".join(f"Sentence number {n} of it. " for n in range(12))
    text = f"# A\n\n{section}\n\n# B\n\n{section}\n"
    chunks = chunk_document(markdown(text), ChunkSettings(max_tokens=40, overlap_tokens=8), count_words)
    for before, after in pairwise(chunks):
        repeated = text[after.start_char : before.end_char]
        assert bool(repeated) == (before.heading == after.heading)
        assert count_words(repeated) <= 8
        assert after.text.startswith("Sentence number")


@pytest.mark.parametrize("media_type", [TEXT, MARKDOWN, HTML])
@pytest.mark.parametrize("run", ["A" * 200_000, "가나다" * 50_000, "a-" * 50_000], ids=["latin", "hangul", "marks"])
def test_a_run_without_spaces_is_cut(media_type: str, run: str) -> None:
    started = time.monotonic()
    chunks = chunk_document(plain(run, media_type), ChunkSettings(max_tokens=64, overlap_tokens=0), count_words)
    assert "".join(texts_of(chunks)) == run
    assert all(count_words(chunk.text) <= 64 for chunk in chunks)
    assert max(len(chunk.text) for chunk in chunks) <= 64 * 13
    assert time.monotonic() - started < 10


def test_a_large_text_takes_seconds() -> None:
    section = (
        "## Section\n\n" + "A sentence of eight words stands right here. " * 12 + "\n\n- entry one\n- entry two\n\n"
    )
    parsed = markdown(section * 1200)
    started = time.monotonic()
    chunks = chunk_document(parsed, ChunkSettings(), count_words)
    assert len(chunks) == 1200
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("changed", [ChunkSettings(max_tokens=100), ChunkSettings(overlap_tokens=0)])
def test_the_splitter_is_named_by_its_sizes(changed: ChunkSettings) -> None:
    assert splitter_name(ChunkSettings(), None) == splitter_name(ChunkSettings(), None)
    assert splitter_name(changed, None) != splitter_name(ChunkSettings(), None)


def test_the_splitter_is_named_by_what_the_embedder_understands() -> None:
    sets: list[tuple[Language, ...] | None] = [None, (), ("latin",), ("latin", "ko")]
    assert len({splitter_name(ChunkSettings(), languages) for languages in sets}) == len(sets)
    assert splitter_name(ChunkSettings(), ("ko", "latin", "ko")) == splitter_name(ChunkSettings(), ("latin", "ko"))
