"""A document put together from its stored chunks: its text, pages and sections, as far as chunks tell them.

Chunks hold every character up to the last one's end: what is in none of them is their `lead`, but for a gap too long to
be stored. What parsing knew beside (which lines are code, a page's label) is not stored, and of a heading only the path
that its section's chunks have.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from ingest.chunk import HEADING_SEPARATOR
from rag.errors import DocumentError
from rag.types import Chunk, Document, Heading, Page, ParsedDocument, StoredDocument


def rebuild_document(stored: StoredDocument, rows: Iterable[Chunk]) -> ParsedDocument:
    """The document of its stored rows, in any order; those of other revisions among them are left aside.

    `text` is the document's text up to the last chunk's end, at the same offsets. A lead that was too long to be stored
    whole ends in spaces, and a new section begins behind it, so that no later chunk holds them. Raises DocumentError
    where chunks are missing.
    """
    # A revision that was split into more before may still have rows behind its own.
    own = {row.ordinal: row for row in rows if row.revision == stored.revision and row.ordinal < stored.chunks}
    if len(own) != stored.chunks:
        raise DocumentError(f"{len(own)} of its {stored.chunks} chunks are stored; ingest it again, or delete it")
    chunks = [own[ordinal] for ordinal in range(stored.chunks)]
    text = "".join(_pieces(chunks))
    document = Document(stored.document_id, stored.source, stored.revision, "", stored.acl, stored.metadata)
    starts = _page_starts(chunks)
    pages = [
        Page(number, text[start:end], start)
        for number, (start, end) in enumerate(pairwise([*starts, len(text)]), start=1)
    ]
    return ParsedDocument(
        document,
        stored.title,
        tuple(pages) or (Page(1, text, 0),),
        headings=tuple(_headings(chunks)),
        paged=bool(pages),
    )


def _pieces(chunks: Sequence[Chunk]) -> Iterator[str]:
    """Parts of the text that, joined, are all of it."""
    reached = 0
    for chunk in chunks:
        if chunk.start_char > reached:
            yield chunk.lead.ljust(chunk.start_char - reached)
            reached = chunk.start_char
        yield chunk.text[reached - chunk.start_char :]
        reached = chunk.end_char


def _page_starts(chunks: Sequence[Chunk]) -> list[int]:
    """Where page 1, 2, ... starts; one that no chunk reaches into, where the next one does. Empty without pages."""
    known = {
        (chunk.first_page or 1) + number: start for chunk in chunks for number, start in enumerate(chunk.page_starts)
    }
    starts: list[int] = []
    following = 0
    for page in range(max(known, default=0), 0, -1):
        following = known.get(page, following)
        starts.append(following)
    if starts:
        starts[-1] = 0
    return starts[::-1]


def _headings(chunks: Sequence[Chunk]) -> Iterator[Heading]:
    """A path of headings in front of each section; the lines themselves are the first one's."""
    reached, path = 0, ""
    for chunk in chunks:
        lead = chunk.lead if chunk.start_char > reached else ""
        whole = len(lead) == max(chunk.start_char - reached, 0)
        if chunk.heading != path or lead.strip() or not whole:
            start = reached
            for level, part in enumerate(chunk.heading.split(HEADING_SEPARATOR), start=1):
                yield Heading(level, part, start, chunk.start_char)
                start = chunk.start_char
            path = chunk.heading
        reached = chunk.end_char
