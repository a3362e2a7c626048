"""Sentences of English and Korean text, Markdown included, as spans of that text.

Block structure is read first (blank lines, headings, list points, table rows, code), since no sentence crosses it;
inside a block the library `sentencex` finds the sentences. Marks such as `#`, `-` or `1.` belong to no sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import sentencex

from rag.types import Span

_HANGUL = re.compile(r"[\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3]")

_FENCE = re.compile(r"\s{0,3}(?:>\s*)*(?:```+|~~~+)\s*(\S*)")
_HEADING = re.compile(r"\s{0,3}#{1,6}\s+")
_QUOTED = re.compile(r"\s{0,3}(?:>\s?)+")
_BULLET = re.compile(r"\s*[-*+•◦▪‣·]\s+(?:\[[ xX]\]\s+)?(?=\S)")
_NUMBERED = re.compile(r"\s*(?:\d{1,3}[.)]|[①-⑳])\s+(?=\S)")
_FIRST_NUMBER = re.compile(r"\s*(?:1[.)]|①)\s")
_TABLE_ROW = re.compile(r"\s*\|.*\|\s*$")
_UNDERLINE = re.compile(r"\s*(?:=+|-{2,})\s*$")
_TERMINATED = re.compile(r"[.!?。！？…:;]['\"”’)\]*_`]*(?:\s*\[\d+\])*\s*$")
_ENDED = re.compile(r"[.!?。！？…]['\"”’)\]*_`]*(?:\s*\[\d+\])*$")
_LEADING_MARKERS = re.compile(r"(?:\[\d+(?:\s*[,;]\s*\d+)*\]\s*)+")
_STARTS_AFRESH = re.compile(r"[\"'“‘(\[*_`]*(?:[A-Z0-9]|[\uac00-\ud7a3])")
# Abbreviations that sentencex takes for the end of a sentence; after a number they are units.
_ABBREVIATION = re.compile(
    r"(?:^|(?<!\d)[\s(])(?:approx|incl|excl|resp|cf|al|sept|pp|ver|vol|chap|sec|min|max)\.$", re.IGNORECASE
)
# A unit that ends a sentence, which sentencex takes for an abbreviation ("It takes 5 s. Then").
_ENDS_IN_UNIT = re.compile(r"\d\s?(?:s|ms|sec|min|h|hr|g|kg|m|cm|mm|km|[kKMGT]i?B)\.(?=\s+[A-Z\"“(가-힣])")
_CODE_SPAN = re.compile(r"`[^`]*(?:`|$)")
# A Korean date, 2024. 6. 10.(월): each of its numbers has a full stop. After the last one a sentence may go on.
_KOREAN_DATE = re.compile(
    r"(?<![\d.])(?:\d{4}\.\s?\d{1,2}\.(?:\s?\d{1,2}\.)?|['’]?\d{2}\.\s?\d{1,2}\.\s?\d{1,2}\.)"
    r"(?=\s*(?:[\d(~–가-힣-]|$))"
    r"|(?<![\d.])\d{1,2}\.\s?\d{1,2}\.(?=\s?(?:[(~]|부터|까지))"
)
_CLOSING_QUOTES = "\"'”’」』"
# A point's number inside a paragraph belongs to what follows it.
_ONLY_NUMBER = re.compile(r"\(?\d{1,2}[.)]$")
# A PDF heading is a line that ends far before the block's right edge; below this width no edge can be told.
_WRAP_CHARS = 60
_SHORT_LINE_FRACTION = 0.5


def split_sentences(text: str) -> list[Span]:
    """The sentences of `text` as (start, end): trimmed, in order, not overlapping, none empty.

    Lines wrapped inside a paragraph stay one sentence. A heading and a list point's paragraph end where they end; each
    table row and each line of code is one span. Lines without a letter or a digit (rules, fences) are no sentence.
    A citation marker `[1]` after the full stop belongs to the sentence before it.
    """
    spans: list[Span] = []
    for start, end, is_whole in _blocks(text):
        found = [_trim(text, start, end)] if is_whole else _in_block(text, start, end)
        spans.extend(span for span in found if any(char.isalnum() for char in text[span[0] : span[1]]))
    return spans


def complete_sentences(text: str, done: bool, start: int = 0) -> list[Span]:
    """The sentences from `start` on of a text still being written that are complete; all that are left when `done`.

    A sentence is complete when a whole word of the next one follows, or when it is terminated and its line has ended.
    So "e.g.", "2." before "5" and a marker `[1]` still to come are waited for. To follow a stream, pass as `start` the
    end of the last sentence taken: then none is given twice, even where block marks still to come (a fence, a table)
    would cut anew what was taken.
    """
    spans = [(start + left, start + right) for left, right in split_sentences(text[start:])]
    if done or not spans:
        return spans
    *before, (left, right) = spans
    if "\n" in text[right:] and _TERMINATED.search(text[left:right]):
        return spans
    if re.search(r"\w\s", text[left:]):
        return before
    return before[:-1] if before and "\n" not in text[before[-1][1] : left] else before


def last_sentences(text: str, start: int, *, cut: bool) -> list[Span]:
    """Those left at the end of a text, from `start` on; `cut`: a last one that has no end was cut off, and is none."""
    spans = complete_sentences(text, done=True, start=start)
    if cut and spans and not _ENDED.search(text[slice(*spans[-1])]):
        return spans[:-1]
    return spans


def _blocks(text: str) -> Iterator[tuple[int, int, bool]]:
    """Blocks as (start, end, whether it is one span), block marks left out."""
    lines = [(found.start(), found.end()) for found in re.finditer(r"[^\n]+", text)]
    code = _code_lines([text[start:end] for start, end in lines])
    paragraph: list[Span] = []
    in_list = False
    previous_end = -1
    for index, (start, end) in enumerate(lines):
        line = text[start:end]
        after_blank = text.count("\n", max(previous_end, 0), start) > 1 or not line.strip()
        previous_end = end
        if after_blank or index in code:
            yield from _paragraphs(text, paragraph)
            paragraph = []
        if index in code:
            if not _FENCE.match(line):
                yield start, end, True
            continue
        if not line.strip():
            in_list = False
            continue
        quoted = _QUOTED.match(line)
        body = start + (quoted.end() if quoted else 0)
        rest = text[body:end]
        mark = _HEADING.match(rest) or _BULLET.match(rest) or _numbered(rest, in_list or not paragraph)
        if mark or _TABLE_ROW.match(rest) or _UNDERLINE.match(rest):
            yield from _paragraphs(text, paragraph)
            paragraph = []
            in_list = bool(mark) and not _HEADING.match(rest)
            if mark is None or _HEADING.match(rest):
                yield body + (mark.end() if mark else 0), end, mark is None
                continue
        paragraph.append((body + (mark.end() if mark else 0), end))
    yield from _paragraphs(text, paragraph)


def _numbered(line: str, may_start: bool) -> re.Match[str] | None:
    """A numbered point; inside a paragraph only "1." starts one, since a wrapped line may begin with any number."""
    return _NUMBERED.match(line) if may_start or _FIRST_NUMBER.match(line) else None


def _code_lines(lines: list[str]) -> set[int]:
    """Indices of the lines that are fences or stand between them.

    A chunk may start inside a fence: a bare fence that is followed by one with an info string, or by none, closes.
    """
    fences = [(index, found.group(1)) for index, line in enumerate(lines) if (found := _FENCE.match(line))]
    code: set[int] = set()
    opened: int | None = None
    for position, (index, language) in enumerate(fences):
        code.add(index)
        if opened is not None and not language:
            code.update(range(opened, index))
            opened = None
        elif language or (position + 1 < len(fences) and not fences[position + 1][1]):
            opened = index
        elif position == 0:
            code.update(range(index))
    if opened is not None:
        code.update(range(opened, len(lines)))
    return code


def _paragraphs(text: str, lines: list[Span]) -> Iterator[tuple[int, int, bool]]:
    """One paragraph's lines, cut after a line that looks like a heading without marks (as PDF text has them)."""
    if not lines:
        return
    widest = max(end - start for start, end in lines)
    first = lines[0][0]
    for (start, end), (after, _) in pairwise(lines):
        line = text[start:end].rstrip()
        short = widest >= _WRAP_CHARS and len(line) < widest * _SHORT_LINE_FRACTION
        if (
            short
            and not _TERMINATED.search(line)
            and not line.endswith(",")
            and _STARTS_AFRESH.match(text[after:].lstrip())
        ):
            yield first, end, False
            first = after
    yield first, lines[-1][1], False


def _in_block(text: str, start: int, end: int) -> list[Span]:
    """Sentences of one block.

    Line breaks are made spaces first, and a code span (to the block's end while it is not closed) and a Korean date one
    long word: the same length, and no end of a sentence.
    """
    block = _CODE_SPAN.sub(_one_word, re.sub(r"\s", " ", text[start:end]))
    language = "ko" if _HANGUL.search(block) else "en"
    if language == "ko":
        block = _KOREAN_DATE.sub(_one_word, block)
    spans: list[Span] = []
    joined = False
    ends = {boundary["end_index"] for boundary in sentencex.get_sentence_boundaries(language, block)}
    ends.update(found.end() for found in _ENDS_IN_UNIT.finditer(block))
    for piece_start, piece_end in pairwise([0, *sorted(ends)]):
        left, right = _trim(text, start + piece_start, start + piece_end)
        if spans and (markers := _LEADING_MARKERS.match(text, left, right)):
            spans[-1] = (spans[-1][0], left + len(markers.group().rstrip()))
            left = markers.end()
        if left >= right:
            continue
        # A Korean particle goes on behind a quotation: "왜?"라고 물었다.
        quoted = text[left - 1] in _CLOSING_QUOTES and spans and spans[-1][1] == left
        if spans and (joined or quoted):
            spans[-1] = (spans[-1][0], right)
        else:
            spans.append((left, right))
        whole = text[spans[-1][0] : right]
        joined = bool(_ABBREVIATION.search(whole) or _ONLY_NUMBER.match(whole))
    return spans


def _one_word(found: re.Match[str]) -> str:
    return "X" * len(found.group())


def _trim(text: str, start: int, end: int) -> Span:
    """The span without white space at its ends."""
    piece = text[start:end]
    return start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
