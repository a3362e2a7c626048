"""Where a text may be cut: blocks between blank lines, and within a block entries, sentences, lines, clauses, words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from langchain_text_splitters import RecursiveCharacterTextSplitter

from ingest.load import MARKDOWN
from rag.types import Span

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|$)")
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_TABLE_ROW = re.compile(r"\s*\|.*\||.* \| ")

# Patterns of what ends a part; none may hold a capturing group, the splitter adds its own.
_ENTRY_END = r"(?:\r\n|\r|\n)(?=[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t])"
# Not after "1." of a list, nor before a small letter or a digit: "e.g. a", "Fig. 3".
_SENTENCE_END = r"""(?:(?<=\D[.!?…])|(?<=\d{3}[.!?])|(?<=[.!?…]["'”’)\]]))\s+(?=[^\sa-z0-9])|(?<=[。！？])"""
_LINE_END = r"\r\n|\r|\n"
_CLAUSE_END = r"(?<=[,;:，、；：])\s+"
_WORD_END = r"\s+"
_PROSE = [_ENTRY_END, _SENTENCE_END, _LINE_END, _CLAUSE_END, _WORD_END]
_ROWS = [_LINE_END, _CLAUSE_END, _WORD_END]

_OVERLAP_WINDOW_CHARS = 2000
_WHOLE_START = re.compile(rf"(?:{_ENTRY_END}|{_SENTENCE_END}|(?:\r\n|\r|\n)[ \t]*(?:\r\n|\r|\n)\s*)")
_ENDED = re.compile(r"(?:[.!?…。！？:][\"'”’)\]]*\s*|\s*[\r\n]\s*)$")


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, list, table or code fence with the blank lines after it; `rows`: its lines stand by themselves."""

    start: int
    end: int
    rows: bool = False


def find_blocks(text: str, start: int, end: int, media_type: str) -> Iterator[Block]:
    """The blocks of `text[start:end]`: contiguous, in order, covering it. In Markdown a code fence is one block."""
    block_start = start
    fence = ""
    fenced = blank = False
    for line in _LINE.finditer(text, start, end):
        mark = _FENCE.match(line[0]) if media_type == MARKDOWN else None
        if blank and line[0].strip() and not fence:
            yield _block(text, block_start, line.start(), fenced)
            block_start, fenced = line.start(), False
        blank = not line[0].strip()
        if mark and not fence:
            fence, fenced = mark[1], True
        elif mark and mark[1].startswith(fence) and not line[0][mark.end() :].strip():
            fence = ""
    if block_start < end:
        yield _block(text, block_start, end, fenced)


def _block(text: str, start: int, end: int, fenced: bool) -> Block:
    first_line = _LINE.match(text, start, end)
    return Block(start, end, fenced or (first_line is not None and _TABLE_ROW.match(first_line[0]) is not None))


def split_block(text: str, block: Block, max_tokens: int, measure: Callable[[str], int]) -> Iterator[Span]:
    """Parts of a block, contiguous and covering it, up to `max_tokens` where it has a place to split at."""
    splitter = RecursiveCharacterTextSplitter(
        separators=_ROWS if block.rows else _PROSE,
        is_separator_regex=True,
        keep_separator="end",
        chunk_size=max_tokens,
        chunk_overlap=0,
        # Parts of no tokens (white space) count as one: the splitter would put them into two neighbours.
        length_function=lambda part: max(measure(part), 1 if part else 0),
        strip_whitespace=False,  # so the parts, laid end to end, are the block: their offsets need no search
    )
    start = block.start
    for part in splitter.split_text(text[block.start : block.end]):
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
