"""Markdown: the text stays as it is in the file; only its headings and its title are read out of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from rag.types import Document, Heading, Page, ParsedDocument

_FRONT_MATTER = re.compile(r"---[ \t]*(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)(?:---|\.\.\.)[ \t]*(?:\r\n|\r|\n|$)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title[ \t]*:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_LINE_END = re.compile(r"\r\n|\r|\n")  # markdown-it's; str.splitlines knows more
_ATTRIBUTES = re.compile(r"\s*\{:?\s*[#.][^{}]*\}\s*$")  # `{ #anchor }`, `{: .class }`


def parse_markdown(text: str, document: Document) -> ParsedDocument:
    """One page holding `text` unchanged.

    Headings are the ATX and setext ones outside of lists, quotes and code, their text without markup and attributes.
    The title is the front matter's, else the first heading of level 1, else the file's name.
    """
    front = _FRONT_MATTER.match(text)
    # Front matter would read as a setext heading: it is blanked out, line by line, for the parser only.
    body = text if front is None else "\n" * len(_LINE_END.findall(front[0])) + text[front.end() :]
    headings = find_headings(body, _line_starts(text))
    titles = (heading.text for heading in headings if heading.level == 1 and heading.text)
    title = _front_title(front[1]) if front else None
    title = title or next(titles, None) or Path(document.source).stem
    return ParsedDocument(document, title, pages=(Page(1, text, 0),), headings=headings)


def find_headings(body: str, line_starts: Sequence[int]) -> tuple[Heading, ...]:
    """The headings of Markdown in order; `line_starts[i]` is the offset to report for line i, one more for the end."""
    markdown = MarkdownIt("commonmark").enable("table")
    markdown.core.ruler.disable("inline")  # only the headings' own text is read, below
    tokens = markdown.parse(body)
    return tuple(
        Heading(
            level=int(opening.tag[1:]),
            text=_plain_text(markdown, content.content),
            start_char=line_starts[opening.map[0]],
            end_char=line_starts[opening.map[1]],
        )
        for opening, content in pairwise(tokens)
        if opening.type == "heading_open" and opening.level == 0 and opening.map is not None
    )


def _plain_text(markdown: MarkdownIt, source: str) -> str:
    tokens: list[Token] = []
    markdown.inline.parse(_ATTRIBUTES.sub("", source), markdown, {}, tokens)
    pieces = ("\n" if "break" in token.type else token.content for token in tokens if token.type != "html_inline")
    return " ".join("".join(pieces).split())


def _line_starts(text: str) -> list[int]:
    starts = [0, *(end.end() for end in _LINE_END.finditer(text))]
    return starts if starts[-1] == len(text) else [*starts, len(text)]


def _front_title(front_matter: str) -> str | None:
    found = _FRONT_TITLE.search(front_matter)
    return found[1].strip("\"'").strip() or None if found else None
