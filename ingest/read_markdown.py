"""Markdown: the text stays as it is in the file; its headings and its title are read out of it. Runs in the child."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from markdown_it import MarkdownIt
from markdown_it.token import Token

from ingest.lines import DAMAGE, Line, Request

__all__ = ["DAMAGE", "find_marks", "read"]

_FRONT_MATTER = re.compile(r"---[ \t]*(?:\r\n|\r|\n)(.*?)(?:\r\n|\r|\n)(?:---|\.\.\.)[ \t]*(?:\r\n|\r|\n|$)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title[ \t]*:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_CODE = {"fence", "code_block"}
_LINE_END = re.compile(r"\r\n|\r|\n")  # markdown-it's; str.splitlines knows more
_ATTRIBUTES = re.compile(r"\s*\{:?\s*[#.][^{}]*\}\s*$")  # `{ #anchor }`, `{: .class }`


def read(request: Request) -> Iterator[Line]:
    """{"title": str | null}, then in text order for each heading {"heading", "level", "start", "end"}, its lines in the
    text, and for each code block {"start", "end"}.

    Headings are the ATX and setext ones outside of lists, quotes and code, their text without markup and attributes.
    The title is the front matter's, if it has one.
    """
    text = request["text"]
    front = _FRONT_MATTER.match(text)
    # Front matter would read as a setext heading: it is blanked out, line by line, for the parser only.
    body = text if front is None else "\n" * len(_LINE_END.findall(front[0])) + text[front.end() :]
    yield {"title": _front_title(front[1]) if front else None}
    yield from find_marks(body, _line_starts(text))


def find_marks(body: str, line_starts: Sequence[int]) -> Iterator[Line]:
    """The headings and code blocks of Markdown; `line_starts[i]` is where line i starts, one more for the end."""
    markdown = MarkdownIt("commonmark").enable("table")
    markdown.core.ruler.disable("inline")  # only the headings' own text is read, below
    for opening, content in pairwise([*markdown.parse(body), Token("end", "", 0)]):
        if opening.map is None:
            continue
        span = {"start": line_starts[opening.map[0]], "end": line_starts[opening.map[1]]}
        if opening.type == "heading_open" and opening.level == 0:
            yield {"heading": _plain_text(markdown, content.content), "level": int(opening.tag[1:]), **span}
        elif opening.type in _CODE:
            yield span


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
