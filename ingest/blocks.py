"""Where a text may be cut: blocks between blank lines, and within a block entries, sentences, lines, clauses, words."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter

from langchain_text_splitters import RecursiveCharacterTextSplitter

from rag.types import Span

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|$)")
_TABLE_ROW = re.compile(r"\s*\|.*\||.* \| ")

# Patterns of what ends a part; none may hold a capturing group, the splitter adds its own.
_ENTRY_END = r"(?:\r\n|\r|\n)(?=[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t])"
# Not after "1." of a list, nor before a small letter or a digit: "e.g. a", "Fig. 3".
_SENTENCE_END = r"""(?:(?<=\D[.!?…])|(?<=\d{3}[.!?])|(?<=[.!?…]["'”’)\]]))\s+(?=[^\sa-z0-9])|(?<=[。！？])"""
_LINE_END = r"\r\n|\r|\n"
_CLAUSE_END = r"(?<=[,;:，、；：])\s+"
_WORD_END = r"\s+"
# Where a block is cut: between whole parts, and within one that does not fit by itself.
_PROSE = ([_ENTRY_END, _SENTENCE_END], [_LINE_END, _CLAUSE_END, _WORD_END])
_ROWS = ([_LINE_END], [_CLAUSE_END, _WORD_END])

_OVERLAP_WINDOW_CHARS = 2000
_WHOLE_START = re.compile(rf"(?:{_ENTRY_END}|{_SENTENCE_END}|(?:\r\n|\r|\n)[ \t]*(?:\r\n|\r|\n)\s*)")
_ENDED = re.compile(r"(?:[.!?…。！？:][\"'”’)\]]*\s*|\s*[\r\n]\s*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, list, table or code block with the blank lines after it; `rows`: its lines stand by themselves."""

    start: int
    end: int
    rows: bool = False


def find_blocks(text: str, start: int, end: int, verbatim: Sequence[Span]) -> Iterator[Block]:
    """The blocks of `text[start:end]`: contiguous, in order, covering it.

    Each of the spans `verbatim` (whole lines, in order, apart) is a block of its own, blank lines and all, and so is a
    table, whether or not blank lines part it from its neighbours.
    """
    following = bisect_right(verbatim, start, key=itemgetter(1))
    block_start, kind = start, ""
    apart = False  # what comes next begins a block
    for line in _LINE.finditer(text, start, end):
        while following < len(verbatim) and verbatim[following][1] <= line.start():
            following, apart = following + 1, True
        inside = following < len(verbatim) and verbatim[following][0] <= line.start()
        if not line[0].strip():
            apart = apart or not inside
            continue
        line_kind = "code" if inside else "table" if _TABLE_ROW.match(line[0]) else "prose"
        if kind and (apart or line_kind != kind):
            yield Block(block_start, line.start(), kind != "prose")
            block_start = line.start()
        kind, apart = line_kind, False
    if block_start < end:
        yield Block(block_start, end, kind not in ("", "prose"))


def split_block(
    text: str, block: Block, max_tokens: int, whole_tokens: int, measure: Callable[[str], int]
) -> Iterator[Span]:
    """Parts of a block, contiguous and covering it, up to `max_tokens` where it has a place to split at.

    A sentence, entry or row is cut only above `whole_tokens`.
    """
    between, within = _ROWS if block.rows else _PROSE
    for start, end in _split(text, block.start, block.end, between, max_tokens, measure):
        if measure(text[start:end]) <= whole_tokens:
            yield start, end
            continue
        # The splitter adds up its parts' tokens, of which the whole may have more: smaller groups before any cut.
        for left, right in _split(text, start, end, between, max(max_tokens // 2, 1), measure):
            if measure(text[left:right]) <= whole_tokens:
                yield left, right
            else:
                yield from _split(text, left, right, within, max_tokens, measure)


def _split(
    text: str, start: int, end: int, separators: list[str], max_tokens: int, measure: Callable[[str], int]
) -> Iterator[Span]:
    splitter = RecursiveCharacterTextSplitter(
        separators=separators,
        is_separator_regex=True,
        keep_separator="end",
        chunk_size=max_tokens,
        chunk_overlap=0,
        # Parts of no tokens (white space) count as one: the splitter would put them into two neighbours.
        length_function=lambda part: max(measure(part), 1 if part else 0),
        strip_whitespace=False,  # so the parts, laid end to end, are the text: their offsets need no search
    )
    for part in splitter.split_text(text[start:end]):
        yield start, start + len(part)
        start += len(part)


def overlap_starts(text: str, start: int, end: int) -> Iterator[int]:
    """Where an overlap before `end` may begin, latest first, none before `start`.

    At whole sentences, entries and paragraphs; at words only where `end` itself is inside a sentence.
    """
    start = max(start, end - _OVERLAP_WINDOW_CHARS)
    window = text[start:end]
    starts = [start + found.end() for found in _WHOLE_START.finditer(window) if window[found.end() :].strip()]
    if not starts and not _ENDED.search(window):
        starts = [start + found.end() for found in re.finditer(_WORD_END, window) if window[found.end() :].strip()]
    yield from reversed(starts)
