"""What nobody would see on a PDF page is not read; what is seen, and a scan's own text, is."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, NullObject
from reportlab.lib.pagesizes import A5
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from ingest.read_pdf import read

SEEN = "The port is 8000."
GHOST = "The port is GHOST."
Draw = Callable[[Canvas], object]


def make_pdf(draw: Draw) -> bytes:
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=A5, pageCompression=0, invariant=1)
    canvas.setFont("Helvetica", 10)
    canvas.drawString(40, 500, SEEN)
    draw(canvas)
    canvas.save()
    return file.getvalue()


def text_of(raw: bytes) -> str:
    asked = {"path": io.BytesIO(raw), "passwords": [], "max_pages": 9, "max_chars": 10_000, "ocr": None}
    return "\n".join(line["text"] for line in list(read(asked))[1:])


def image() -> ImageReader:
    return ImageReader(Image.new("RGB", (40, 40), "grey"))


def ghost(canvas: Canvas, **options: int) -> None:
    canvas.drawString(40, 400, GHOST, **options)


def white(canvas: Canvas) -> None:
    canvas.setFillColorRGB(1, 1, 1)
    ghost(canvas)


def white_cmyk(canvas: Canvas) -> None:
    canvas.setFillColorCMYK(0, 0, 0, 0)
    ghost(canvas)


def white_on_white(canvas: Canvas) -> None:
    canvas.setFillColorRGB(1, 1, 1)
    canvas.rect(30, 390, 200, 30, fill=1, stroke=1)
    ghost(canvas)


def white_elsewhere(canvas: Canvas) -> None:
    canvas.rect(30, 100, 200, 30, fill=1)
    canvas.drawImage(image(), 30, 200, 50, 50)
    white(canvas)


def after_restore(canvas: Canvas) -> None:
    canvas.setFillColorRGB(1, 1, 1)
    canvas.saveState()
    canvas.setFillColorRGB(0, 0, 0)
    canvas.restoreState()
    ghost(canvas)


def transparent(canvas: Canvas) -> None:
    canvas.setFillAlpha(0)
    ghost(canvas)


def tiny(canvas: Canvas) -> None:
    canvas.setFont("Helvetica", 0.3)
    ghost(canvas)


def scaled_away(canvas: Canvas) -> None:
    canvas.scale(0.01, 0.01)
    canvas.drawString(4000, 40000, GHOST)


def moved_away(canvas: Canvas) -> None:
    canvas.translate(0, -1000)
    ghost(canvas)


def in_white_form(canvas: Canvas) -> None:
    canvas.beginForm("note")
    white(canvas)
    canvas.endForm()
    canvas.doForm("note")


def form_moved_away(canvas: Canvas) -> None:
    canvas.beginForm("note")
    ghost(canvas)
    canvas.endForm()
    canvas.translate(3000, 0)
    canvas.doForm("note")


def invisible_beside_image(canvas: Canvas) -> None:
    canvas.drawImage(image(), 300, 20, 50, 50)
    ghost(canvas, mode=3)


@pytest.mark.parametrize(
    "draw",
    [
        white,
        white_cmyk,
        white_on_white,
        white_elsewhere,
        after_restore,
        transparent,
        tiny,
        scaled_away,
        moved_away,
        in_white_form,
        form_moved_away,
        invisible_beside_image,
        lambda canvas: ghost(canvas, mode=3),
        lambda canvas: canvas.drawString(40, -200, GHOST),
        lambda canvas: canvas.drawString(2000, 400, GHOST),
    ],
)
def test_hidden(draw: Draw) -> None:
    assert text_of(make_pdf(draw)).split("\n") == [SEEN]


def on_dark_box(canvas: Canvas) -> None:
    canvas.rect(30, 390, 200, 30, fill=1)
    white(canvas)


def on_dark_line(canvas: Canvas) -> None:
    canvas.setLineWidth(30)
    canvas.line(30, 402, 300, 402)
    white(canvas)


def on_shade(canvas: Canvas) -> None:
    canvas.linearGradient(0, 0, 400, 600, ("navy", "black"))
    white(canvas)


def on_image(canvas: Canvas) -> None:
    canvas.drawImage(image(), 30, 390, 200, 40)
    white(canvas)


def scan(canvas: Canvas) -> None:
    canvas.drawImage(image(), 0, 0, *A5)
    ghost(canvas, mode=3)


def scan_drawn_last(canvas: Canvas) -> None:
    ghost(canvas, mode=3)
    canvas.drawImage(image(), 0, 0, *A5)


def inline_scan(canvas: Canvas) -> None:
    canvas.drawInlineImage(Image.new("RGB", (40, 40), "grey"), 0, 0, *A5)
    ghost(canvas, mode=3)


def dark_form(canvas: Canvas) -> None:
    canvas.beginForm("note")
    canvas.rect(30, 390, 200, 30, fill=1)
    white(canvas)
    canvas.endForm()
    canvas.translate(20, 20)
    canvas.doForm("note")


def after_white(canvas: Canvas) -> None:
    canvas.saveState()
    canvas.setFillColorRGB(1, 1, 1)
    canvas.restoreState()
    ghost(canvas)


def scaled_up(canvas: Canvas) -> None:
    canvas.scale(20, 20)
    canvas.setFont("Helvetica", 0.5)
    canvas.drawString(2, 20, GHOST)


@pytest.mark.parametrize(
    "draw",
    [
        ghost,
        on_dark_box,
        on_dark_line,
        on_shade,
        on_image,
        scan,
        scan_drawn_last,
        inline_scan,
        dark_form,
        after_white,
        scaled_up,
        lambda canvas: canvas.drawString(-10, 400, GHOST),
        lambda canvas: ghost(canvas, mode=1),
        lambda canvas: ghost(canvas, mode=7),
    ],
)
def test_shown(draw: Draw) -> None:
    assert GHOST in text_of(make_pdf(draw))


def test_a_page_whose_box_makes_no_sense_is_read() -> None:
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(make_pdf(ghost))))
    for box in ("/CropBox", "/MediaBox"):
        writer.pages[0][NameObject(box)] = NullObject()
        file = io.BytesIO()
        writer.write(file)
        assert GHOST in text_of(file.getvalue())


@pytest.mark.parametrize(
    "operators",
    [
        b"Do",
        b"/X Do",
        b"[1] Do",
        b"Q Q Q",
        b"gs",
        b"/G gs",
        b"cs scn",
        b"Tr",
        b"(x) Tr",
        b"re f",
        b"1 re f",
        b"Tf",
        b"cm",
    ],
)
def test_damaged_operators_cost_no_text(operators: bytes) -> None:
    raw = make_pdf(ghost)
    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(raw)))
    contents = writer.pages[0].get_contents()
    assert contents is not None
    contents.set_data(b"q " + operators + b" Q\n" + contents.get_data())
    writer.pages[0].replace_contents(contents)
    file = io.BytesIO()
    writer.write(file)
    assert GHOST in text_of(file.getvalue())
