"""ParsedDocument -> chunks: sections first, whole blocks where they fit, sentences where they do not.

What is measured is what will be embedded: the heading path, a line end, and the chunk's text, in tokens as the caller
counts them (ingest.prepare says which).
Heading lines are left out of the text, since they stand in `heading`; a section that is only a heading yields nothing.
The document's text is not stored beside its chunks: each holds, as `lead`, what stands between those before and itself,
and ingest.rebuild puts all together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from itertools import takewhile

from ingest.blocks import Block, find_blocks, overlap_starts, split_block
from rag.language import Language
from rag.step_settings import ChunkSettings
from rag.types import Chunk, CountTokens, Heading, ParsedDocument, Span

# Part of the index's fingerprint: raise it when parsing or splitting gives other chunks for the same file.
SPLITTER_VERSION = "5"

HEADING_SEPARATOR = " > "

_MAX_CHARS_PER_TOKEN = 12  # a run that the tokenizer takes for one unknown word is long text all the same
_MAX_CHARS = 16_000  # the store holds 65,535 bytes of text, a character takes up to 4
_COUNTS_KEPT = 8192
_MAX_HEADING_FRACTION = 0.25
_MAX_OVERLAP_FRACTION = 0.25


def splitter_name(settings: ChunkSettings, languages: tuple[Language, ...] | None) -> str:
    """The splitter's part of an index's fingerprint: chunks made under another name do not mix with these.

    `languages` are those that the embedder understands (None: all), in any order: documents in others are measured
    otherwise.
    """
    understood = "all" if languages is None else "+".join(sorted(set(languages)))
    return f"{SPLITTER_VERSION}:{settings.max_tokens}:{settings.overlap_tokens}:{understood}"


def embedding_text(chunk: Chunk) -> str:
    """What is embedded for a chunk: its heading path, when it has one, on a line before its text."""
    return f"{chunk.heading}\n{chunk.text}" if chunk.heading else chunk.text


def chunk_document(parsed: ParsedDocument, settings: ChunkSettings, count_tokens: CountTokens) -> list[Chunk]:
    """The document's chunks in text order, `ordinal` from 0; no chunk is blank or has white space at its ends.

    `count_tokens(embedding_text(chunk)) <= settings.max_tokens` for each, whether or not the counter counts special
    tokens. Chunks of one section overlap by up to `settings.overlap_tokens`, whole sentences where possible. Every
    character outside heading lines that is no white space is in at least one chunk.
    """
    text = parsed.text
    measure = _Measure(count_tokens, settings.max_tokens)
    page_starts = [page.start_char for page in parsed.pages] if parsed.paged else []
    chunks: list[Chunk] = []
    reached = 0  # where the chunks so far end
    for heading, (start, end) in _sections(parsed.headings, len(text), measure):
        for span in _section_spans(text, start, end, heading, parsed, settings, measure):
            lead = text[reached : span[0]][:_MAX_CHARS]
            chunks.append(_make_chunk(parsed, len(chunks), text, span, heading, lead, page_starts))
            reached = span[1]
    return chunks


class _Measure:
    """Tokens of a text, special tokens aside; `limit` is the most that a chunk with its heading may have."""

    def __init__(self, count_tokens: CountTokens, max_tokens: int) -> None:
        self._count_tokens = lru_cache(_COUNTS_KEPT)(count_tokens)  # the splitter asks for each part several times
        self._special_tokens = count_tokens("")
        self._chars_per_token = min(_MAX_CHARS_PER_TOKEN, _MAX_CHARS / max_tokens)
        self.limit = max_tokens - self._special_tokens

    def __call__(self, text: str) -> int:
        by_chars = int(len(text) / self._chars_per_token)
        if by_chars > self.limit:  # it will be split anyway; counting it would take long
            return by_chars
        return max(by_chars, self._count_tokens(text) - self._special_tokens)


def _sections(headings: Sequence[Heading], length: int, measure: _Measure) -> Iterator[tuple[str, Span]]:
    """Heading path and span of the text between two headings, the first one without a heading."""
    path: list[Heading] = []
    start = 0
    for heading in headings:
        yield _heading_path(path, measure), (start, heading.start_char)
        path = [*(above for above in path if above.level < heading.level), heading]
        start = heading.end_char
    yield _heading_path(path, measure), (start, length)


def _heading_path(path: Sequence[Heading], measure: _Measure) -> str:
    """ "A > B > C"; the leading parts, then the end of the last one, are left out where it would grow too long."""
    most = int(measure.limit * _MAX_HEADING_FRACTION)
    parts = [heading.text for heading in path if heading.text]
    while len(parts) > 1 and measure(HEADING_SEPARATOR.join(parts)) > most:
        parts = parts[1:]
    joined = HEADING_SEPARATOR.join(parts)
    while measure(joined) > most:
        joined = joined[: len(joined) * 3 // 4].rstrip()
    return joined


def _section_spans(
    text: str, start: int, end: int, heading: str, parsed: ParsedDocument, settings: ChunkSettings, measure: _Measure
) -> Iterator[Span]:
    room = measure.limit - (measure(heading) + 1 if heading else 0)  # 1: some tokenizers spend one on the join
    overlap = min(settings.overlap_tokens, int(room * _MAX_OVERLAP_FRACTION))
    start, end = _trim(text, (start, end))
    if start == end:
        return

    def fits(span_start: int, span_end: int) -> bool:
        whole = text[span_start:span_end].strip()
        return measure(f"{heading}\n{whole}" if heading else whole) <= measure.limit

    if fits(start, end):
        yield start, end
        return
    units = list(_units(text, find_blocks(text, start, end, parsed.verbatim), room, overlap, measure))
    previous = start
    for span in _pack(units, [measure(text[a:b]) for a, b in units], room, overlap, fits):
        left, right = _trim(text, span)
        if left == right:
            continue
        starts = overlap_starts(text, previous + 1, left) if left > start and overlap else iter(())
        begin = _overlap_start(text, starts, (left, right), overlap, measure, fits)
        yield _trim(text, (begin, right))
        previous = left


def _units(text: str, blocks: Iterator[Block], room: int, overlap: int, measure: _Measure) -> Iterator[Span]:
    """Blocks that fit, and the parts of those that do not: contiguous, none above `room` tokens."""
    for block in blocks:
        if measure(text[block.start : block.end]) <= room:
            yield block.start, block.end
            continue
        for start, end in split_block(text, block, room - overlap, room, measure):
            if measure(text[start:end]) <= room:
                yield start, end
            else:
                yield from _cut(text, start, end, room - overlap, measure)


def _cut(text: str, start: int, end: int, most: int, measure: _Measure) -> Iterator[Span]:
    """Cuts a run that holds no place to split at, wherever the limit falls."""
    size = end - start
    while start < end:
        size = min(size, end - start)
        while size > 1 and measure(text[start : start + size]) > most:
            size = size * 3 // 4
        yield start, start + size
        start, size = start + size, size * 2


def _pack(
    units: Sequence[Span], tokens: Sequence[int], room: int, overlap: int, fits: Callable[[int, int], bool]
) -> Iterator[Span]:
    """Joins neighbours up to `room` less `overlap` tokens; what is left at the end may use all of `room`."""
    left = sum(tokens)
    first = 0
    while first < len(units):
        last, total = first + 1, tokens[first]
        most = room if left <= room else room - overlap
        while last < len(units) and total + tokens[last] <= most:
            total += tokens[last]
            last += 1
        # The parts' tokens add up to the whole's only where the tokenizer splits at white space.
        while last - first > 1 and not fits(units[first][0], units[last - 1][1]):
            last -= 1
        yield units[first][0], units[last - 1][1]
        left -= sum(tokens[first:last])
        first = last


def _overlap_start(
    text: str, starts: Iterator[int], span: Span, overlap: int, measure: _Measure, fits: Callable[[int, int], bool]
) -> int:
    """The earliest of `starts`, given latest first, that keeps overlap and chunk small enough; else the span's own."""
    left, right = span
    small = takewhile(lambda start: measure(text[start:left].strip()) <= overlap, starts)
    return next((start for start in reversed(list(small)) if fits(start, right)), left)


def _trim(text: str, span: Span) -> Span:
    """The span without white space at its ends; an empty span where there is nothing else."""
    start, end = span
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, start + len(piece.strip())


def _make_chunk(
    parsed: ParsedDocument,
    ordinal: int,
    text: str,
    span: Span,
    heading: str,
    lead: str,
    page_starts: Sequence[int],
) -> Chunk:
    document = parsed.document
    identity = f"{document.document_id}:{document.revision}:{ordinal}"
    chunk = Chunk(
        chunk_id=blake2b(identity.encode(), digest_size=16).hexdigest(),
        document_id=document.document_id,
        revision=document.revision,
        ordinal=ordinal,
        text=text[span[0] : span[1]],
        start_char=span[0],
        end_char=span[1],
        heading=heading,
        lead=lead,
    )
    if not page_starts:
        return chunk
    first, last = (bisect_right(page_starts, char) - 1 for char in (span[0], span[1] - 1))
    return replace(
        chunk,
        first_page=parsed.pages[first].number,
        last_page=parsed.pages[last].number,
        page_starts=tuple(page_starts[first : last + 1]),
    )
