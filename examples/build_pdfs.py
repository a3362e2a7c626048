"""Builds the PDFs of `corpus/` from `pdf-sources/*.md`.

    python examples/build_pdfs.py [--out FOLDER]

The sources are a small subset of Markdown: `#`, `##` and `###` headings, `- ` list entries and paragraphs, one line
each. The result depends on the sources and on reportlab's version alone: no dates, no random ids, only the standard
fonts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from xml.sax.saxutils import escape

from reportlab.lib.pagesizes import A5
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, PageTemplate, Paragraph

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "pdf-sources"
CORPUS = HERE / "corpus"
MARGIN = 18 * mm

BODY = ParagraphStyle("body", fontName="Helvetica", fontSize=10, leading=14, spaceAfter=6)
ENTRY = ParagraphStyle("entry", parent=BODY, leftIndent=12, bulletIndent=2, spaceAfter=3)
HEADINGS = {
    1: ParagraphStyle("title", fontName="Helvetica-Bold", fontSize=20, leading=26, spaceAfter=10, keepWithNext=True),
    2: ParagraphStyle(
        "h2", fontName="Helvetica-Bold", fontSize=14, leading=18, spaceBefore=8, spaceAfter=5, keepWithNext=True
    ),
    3: ParagraphStyle(
        "h3", fontName="Helvetica-Bold", fontSize=11, leading=15, spaceBefore=5, spaceAfter=3, keepWithNext=True
    ),
}


class WholeParagraph(Paragraph):  # type: ignore[misc]  # reportlab ships no types
    """A paragraph that moves to the next page rather than being split over two."""

    # reportlab calls it with these names.
    def split(self, availWidth: float, availHeight: float) -> list[Flowable]:  # noqa: ARG002, N803
        return []


class Heading(Paragraph):  # type: ignore[misc]  # reportlab ships no types
    """A heading that also becomes an entry of the PDF's outline."""

    def __init__(self, text: str, level: int) -> None:
        super().__init__(escape(text), HEADINGS[level])
        self.title, self.level = text, level

    def draw(self) -> None:
        key = f"{self.level}-{self.title}"
        self.canv.bookmarkPage(key)
        self.canv.addOutlineEntry(self.title, key, self.level - 1)
        super().draw()


def parse_source(text: str) -> tuple[str, list[Flowable]]:
    """A source -> its title (the `#` heading) and the flowables of its body, in order.

    Raises ValueError without a `#` heading on the first line.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not lines[0].startswith("# "):
        raise ValueError("a source starts with a line '# Title'")
    story: list[Flowable] = []
    for line in lines:
        marks, _, rest = line.partition(" ")
        if marks in ("#", "##", "###"):
            story.append(Heading(rest, len(marks)))
        elif marks == "-":
            story.append(WholeParagraph(escape(rest), ENTRY, bulletText="-"))
        else:
            story.append(WholeParagraph(escape(line), BODY))
    return lines[0][2:], story


def build_pdf(source: Path, target: Path) -> None:
    """Writes one PDF.

    A paragraph never runs over a page's end, the header is drawn before the page's text and the footer after it:
    so neither lands inside a sentence when the text is extracted in drawing order.
    """
    title, story = parse_source(source.read_text(encoding="utf-8"))
    width, height = A5

    def draw_header(canvas: Canvas, _: BaseDocTemplate) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawString(MARGIN, height - 11 * mm, f"rag documentation: {title}")

    def draw_footer(canvas: Canvas, _: BaseDocTemplate) -> None:
        canvas.setFont("Helvetica", 8)
        canvas.drawCentredString(width / 2, 10 * mm, f"Page {canvas.getPageNumber()}")

    frame = Frame(MARGIN, MARGIN, width - 2 * MARGIN, height - 2 * MARGIN, leftPadding=0, rightPadding=0)
    pages = PageTemplate(frames=[frame], onPage=draw_header, onPageEnd=draw_footer)
    BaseDocTemplate(
        str(target),
        pagesize=A5,
        pageTemplates=[pages],
        title=title,
        author="The rag project",
        subject="Documentation of the rag question-answering service",
        lang="en",
        invariant=1,
    ).build(story)


def main() -> None:
    """Builds every source's PDF and prints where it is."""
    parser = argparse.ArgumentParser(description="Builds the example PDFs from their sources.")
    parser.add_argument("--out", type=Path, default=CORPUS, help="folder to write to (default: examples/corpus)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for source in sorted(SOURCES.glob("*.md")):
        target = out / f"{source.stem}.pdf"
        build_pdf(source, target)
        print(target)


if __name__ == "__main__":
    main()
