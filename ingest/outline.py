"""A PDF's outline -> headings: each at the line that bears its title, where the page has one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice

from rag.types import Heading, Page, Span

_LINE = re.compile(r"[^\n]+")
_NO_LETTERS = re.compile(r"[\W_]+")
_NUMBERING = re.compile(r"(?:chapter|section|part|appendix|제)?[0-9ivxlc.]{0,12}[a-z]?(?:장|절|편)?")
_MAX_TITLE_LINES = 3
_MAX_NUMBERING_CHARS = 24
_MAX_LINES = 300  # of a page that are looked at; real ones have fewer


def place_outline(outline: Sequence[tuple[int, str, int]], pages: Sequence[Page]) -> tuple[Heading, ...]:
    """Headings of the entries (level from 1, title, page number), in text order.

    A heading spans the line, or up to three, that hold its title and nothing else but a number before it. Where the
    page has none it is an empty span at the page's start, or after the page's heading before it. Where the headings
    would leave no other text, as in slides of titles, there are none.
    """
    headings: list[Heading] = []
    by_page = sorted((entry for entry in outline if 1 <= entry[2] <= len(pages)), key=lambda entry: entry[2])
    titles: list[tuple[Span, str]] = []
    end, current = 0, 0
    for level, title, number in by_page:
        page = pages[number - 1]
        if number != current:
            end, current = page.start_char, number
            titles = list(_title_candidates(page))
        start, end = _find_title(titles, title, end) or (end, end)
        headings.append(Heading(level, title, start, end))
    text = "".join(page.text for page in pages)
    starts = [0, *(heading.end_char for heading in headings)]
    ends = [*(heading.start_char for heading in headings), len(text)]
    has_more = any(text[start:end].strip() for start, end in zip(starts, ends, strict=True))
    return tuple(headings) if has_more else ()


def _title_candidates(page: Page) -> Iterator[tuple[Span, str]]:
    """Each run of up to three lines, its span within the document's text and its letters."""
    lines = [(found.start(), found.end()) for found in islice(_LINE.finditer(page.text), _MAX_LINES)]
    for first in range(len(lines)):
        for last in range(first, min(first + _MAX_TITLE_LINES, len(lines))):
            start, end = lines[first][0], lines[last][1]
            yield (page.start_char + start, page.start_char + end), _letters(page.text[start:end])


def _find_title(candidates: Sequence[tuple[Span, str]], title: str, start: int) -> Span | None:
    wanted = _letters(title)
    if not wanted:
        return None
    for span, letters in candidates:
        before = len(letters) - len(wanted)
        if span[0] < start or before > _MAX_NUMBERING_CHARS or not letters.endswith(wanted):
            continue
        if _NUMBERING.fullmatch(letters[:before]):
            return span
    return None


def _letters(text: str) -> str:
    return _NO_LETTERS.sub("", text).casefold()
