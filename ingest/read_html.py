"""HTML -> its main text: blocks with a blank line between, list entries and table rows on lines of their own.

What a browser would not show is taken out first. Trafilatura finds the main content; where it finds none, the whole
body is taken, less scripts, styles and navigation.
Both trees are written out by the same walk. Runs in the child.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import lxml.etree
import lxml.html
import trafilatura

from ingest import lines
from ingest.hidden_html import drop_hidden
from ingest.lines import Line, Request, storable

_XML_DECLARATION = re.compile(r"\s*<\?xml[^>]*\?>")  # lxml refuses text that declares an encoding
_SPACES = re.compile(r"[ \t\r\n\f\v]+")
_SPACES_AT_BREAK = re.compile(r" *\n *")
_SILENT = ("script", "style", "noscript", "template", "svg", "iframe", "object", "button", "select", "nav", "footer")

# HTML's tags and trafilatura's own, by what they mean for the text.
_HEADINGS = {"head", "h1", "h2", "h3", "h4", "h5", "h6"}
_LISTS = {"list", "ul", "ol", "dl", "menu"}
_ENTRIES = {"item", "li", "dt", "dd"}
_ROWS = {"row", "tr"}
_CELLS = {"cell", "td", "th"}
_BREAKS = {"lb", "br"}
_VERBATIM = {"pre"}
_CONTAINERS = {
    "p",
    "div",
    "section",
    "article",
    "main",
    "aside",
    "quote",
    "blockquote",
    "figure",
    "figcaption",
    "table",
}
_BLOCKS = _HEADINGS | _LISTS | _ENTRIES | _VERBATIM | _CONTAINERS | _ROWS | _CELLS


DAMAGE: tuple[type[Exception], ...] = (*lines.DAMAGE, lxml.etree.LxmlError)


@dataclass(frozen=True, slots=True)
class _Block:
    text: str
    level: int = 0  # of a heading; 0: no heading
    verbatim: bool = False


def read(request: Request) -> Iterator[Line]:
    """{"title": str | null}, that of `<title>`, then for each block of the main text {"text", "level", "verbatim"}.

    `level` is a heading's, else 0; `verbatim`: it is code, which may hold blank lines.
    """
    source = _XML_DECLARATION.sub("", request["text"], count=1)
    tree = lxml.html.document_fromstring(source)
    yield {"title": _inline(tree.findtext(".//title") or "") or None}
    if drop_hidden(tree):  # else trafilatura reads the page as it is
        source = lxml.html.tostring(tree, encoding="unicode")
    for block in _with_headline(_main_blocks(source), tree) or _body_blocks(tree):
        yield {"text": storable(block.text), "level": block.level, "verbatim": block.verbatim}


def _main_blocks(source: str) -> list[_Block]:
    found = trafilatura.bare_extraction(source, include_comments=False, include_tables=True)
    return list(_blocks(found.body)) if found is not None else []


def _with_headline(blocks: list[_Block], tree: lxml.html.HtmlElement) -> list[_Block]:
    """The main blocks under the page's only <h1>: it often stands outside of what trafilatura takes for the content."""
    headlines = [_inline(_inline_source(found)).replace("\n", " ") for found in tree.iter("h1")]
    if not blocks or len(headlines) != 1 or not headlines[0]:
        return blocks
    if any(block.level and (block.level == 1 or block.text.replace("\n", " ") == headlines[0]) for block in blocks):
        return blocks
    return [_Block(headlines[0], level=1), *blocks]


def _body_blocks(tree: lxml.html.HtmlElement) -> list[_Block]:
    lxml.etree.strip_elements(tree, lxml.etree.Comment, lxml.etree.ProcessingInstruction, *_SILENT, with_tail=False)
    body = tree.find("body")
    return list(_blocks(body)) if body is not None else []


def _blocks(element: lxml.etree._Element) -> Iterator[_Block]:
    """The blocks of an element, in order; text that stands loose between them is a block too."""
    loose = [element.text or ""]
    for child in element:
        if _is_block(child):
            yield from _text_block("".join(loose))
            yield from _child_blocks(child)
            loose = []
        else:
            loose.append(_inline_source(child))
        loose.append(child.tail or "")
    yield from _text_block("".join(loose))


def _child_blocks(child: lxml.etree._Element) -> Iterator[_Block]:
    if child.tag in _HEADINGS:
        yield from _text_block(_inline_source(child), level=_level(child))
    elif child.tag in _LISTS:
        yield from _lines_block(_list_lines(child))
    elif child.tag == "table" and child.find(".//table") is None:  # one that holds tables is there for the layout
        yield from _lines_block(_table_lines(child))
    elif child.tag in _VERBATIM or child.tag == "code":
        text = _verbatim(child).strip("\n")
        if text.strip():
            yield _Block(text, verbatim=True)
    else:
        yield from _blocks(child)


def _is_block(element: lxml.etree._Element) -> bool:
    if element.tag == "code":  # trafilatura's name for both kinds
        return "\n" in _verbatim(element).strip("\n")
    return element.tag in _BLOCKS or any(_is_block(child) for child in element)


def _text_block(source: str, level: int = 0) -> Iterator[_Block]:
    text = _inline(source)
    if text:
        yield _Block(text, level)


def _lines_block(lines: Iterator[str]) -> Iterator[_Block]:
    text = "\n".join(lines)
    if text.strip():
        yield _Block(text)


def _list_lines(element: lxml.etree._Element) -> Iterator[str]:
    ordered = element.tag == "ol" or element.get("rend") == "ol"
    entries = [child for child in element if isinstance(child.tag, str)]
    for number, entry in enumerate(entries, start=1):
        mark = f"{number}. " if ordered else "- "
        blocks = _child_blocks(entry) if entry.tag in _LISTS else _blocks(entry)
        lines = [line for block in blocks for line in block.text.splitlines()]
        for position, line in enumerate(lines):
            yield (" " * len(mark) if position or entry.tag in _LISTS else mark) + line


def _table_lines(element: lxml.etree._Element) -> Iterator[str]:
    for row in element.iter(*_ROWS):
        cells = ([block.text for block in _blocks(cell)] for cell in row if cell.tag in _CELLS)
        line = " | ".join(" ".join(texts).replace("\n", " ") for texts in cells)
        if line.strip(" |"):
            yield line


def _verbatim(element: lxml.etree._Element) -> str:
    if element.tag in _BREAKS:
        return "\n"
    if not isinstance(element.tag, str):  # a comment
        return ""
    return (element.text or "") + "".join(_verbatim(child) + (child.tail or "") for child in element)


def _inline_source(element: lxml.etree._Element) -> str:
    """The element's text, line breaks as U+0085 so that they outlive the collapsing of white space."""
    if element.tag in _BREAKS:
        return "\x85"
    if not isinstance(element.tag, str):  # a comment
        return ""
    inner = "".join(_inline_source(child) + (child.tail or "") for child in element)
    return (element.text or "") + inner


def _inline(source: str) -> str:
    return _SPACES_AT_BREAK.sub("\n", _SPACES.sub(" ", source).replace("\x85", "\n")).strip()


def _level(element: lxml.etree._Element) -> int:
    tag = element.get("rend", "h2") if element.tag == "head" else element.tag
    digits = str(tag)[1:]
    return int(digits) if digits.isdigit() else 2
