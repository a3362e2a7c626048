"""What the readers found -> ParsedDocument: pages with exact offsets, headings, a title."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ingest.lines import Line
from ingest.outline import place_outline
from rag.errors import DocumentError
from rag.types import Document, Heading, Page, ParsedDocument, Span

_NO_TITLES = {"", "untitled"}  # the latter is what some programs write for want of one
_REPAIR = "open it and save it anew as PDF, or give its text in another format"


def assemble_pages(lines: Sequence[Line], document: Document) -> ParsedDocument:
    """A page for each of a PDF's, numbered from 1, its text ended by a line end; read_pdf.py describes the lines.

    A page that could not be read is left empty and counted in `skipped_pages`. The title is the file's own, else its
    name. Raises DocumentError where no page has text.
    """
    head, found = lines[0], lines[1:]
    pages: list[Page] = []
    start = 0
    for number, line in enumerate(found, start=1):
        text = line["text"].rstrip() + "\n" if "text" in line else ""
        label = head["labels"][number - 1] if head["labels"] else None
        pages.append(Page(number, text, start, label if label != str(number) else None))
        start += len(text)
    damages = [line["damage"] for line in found if "damage" in line]
    if not any(page.text.strip() for page in pages):
        raise DocumentError(_no_text(len(pages), damages))
    title = " ".join((head["title"] or "").split())
    if title.lower() in _NO_TITLES:
        title = Path(document.source).stem
    headings = place_outline(head["outline"], pages)
    return ParsedDocument(document, title, tuple(pages), headings, paged=True, skipped_pages=len(damages))


def assemble_blocks(lines: Sequence[Line], document: Document) -> ParsedDocument:
    """One page of blocks with a blank line between; read_html.py describes the lines, and read_docx.py gives the same.

    The title is the first heading of level 1, else the one given, else the file's name. Raises DocumentError where
    there is no text.
    """
    pieces: list[str] = []
    headings: list[Heading] = []
    verbatim: list[Span] = []
    length = 0
    for line in lines[1:]:
        text = line["text"]
        if line["level"]:
            headings.append(Heading(line["level"], text.replace("\n", " "), length, length + len(text)))
        if line.get("verbatim"):
            verbatim.append((length, length + len(text) + 1))
        pieces.append(text + "\n\n")
        length += len(pieces[-1])
    if not pieces:
        raise DocumentError("it holds no text, only markup; save a page that scripts fill in as the browser shows it")
    title = _first_title(headings) or lines[0]["title"] or Path(document.source).stem
    return ParsedDocument(document, title, (Page(1, "".join(pieces), 0),), tuple(headings), tuple(verbatim))


def assemble_markdown(lines: Sequence[Line], document: Document, text: str) -> ParsedDocument:
    """One page holding `text` unchanged, with the title and headings that read_markdown.py found in it.

    Without a title of its own it is called by its first heading of level 1, else by the file's name.
    """
    headings = tuple(
        Heading(line["level"], line["heading"], line["start"], line["end"]) for line in lines[1:] if "heading" in line
    )
    verbatim = tuple((line["start"], line["end"]) for line in lines[1:] if "heading" not in line)
    title = lines[0]["title"] or _first_title(headings) or Path(document.source).stem
    return ParsedDocument(document, title, (Page(1, text, 0),), headings, verbatim)


def _first_title(headings: Iterable[Heading]) -> str | None:
    return next((heading.text for heading in headings if heading.level == 1 and heading.text), None)


def _no_text(pages: int, damages: Sequence[str]) -> str:
    if not pages:
        return f"it has no pages; {_REPAIR}"
    if damages:
        return f"no page of it can be read (pages: {pages}, the first damage: {damages[0]}); {_REPAIR}"
    return (
        f"no text layer (pages: {pages}), only images perhaps; read them by OCR (rag ingest --ocr, or the setting "
        "ingest.ocr), or add a text layer first, for example: ocrmypdf --force-ocr IN OUT"
    )
