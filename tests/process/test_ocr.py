"""Scanned PDFs: read by tesseract where it is installed, a sentence saying what to install where it is not."""

from __future__ import annotations

import importlib.util
import io
import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from ingest.load import load_document
from ingest.parse import parse_document
from rag.errors import DocumentError
from rag.step_settings import MIB, IngestSettings
from rag.types import ParsedDocument

OCR = IngestSettings(ocr=True, ocr_languages="eng")
MISSING = [name for name in ("pypdfium2", "pytesseract") if importlib.util.find_spec(name) is None]
if shutil.which("tesseract") is None:
    MISSING.append("tesseract")
needs_ocr = pytest.mark.skipif(bool(MISSING), reason=f"OCR needs what is not installed: {', '.join(MISSING)}")


KOREAN_FONTS = sorted(Path("/usr/share/fonts").rglob("Nanum*.ttf"))


def scan(text: str, font: Path | None = None) -> Image.Image:
    image = Image.new("L", (1700, 600), 255)
    chosen = ImageFont.load_default(size=70) if font is None else ImageFont.truetype(font, size=70)
    ImageDraw.Draw(image).text((100, 200), text, fill=0, font=chosen)
    return image


def make_scanned(pages: list[str | Image.Image], size: tuple[float, float] = (612, 792)) -> bytes:
    """A PDF of pages that hold text, or an image of some."""
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=size)
    for page in pages:
        if isinstance(page, str):
            canvas.drawString(72, 700, page)
        else:
            canvas.drawImage(ImageReader(page), 36, 400, width=540, height=190)
        canvas.showPage()
    canvas.save()
    return file.getvalue()


def parse(folder: Path, raw: bytes, limits: IngestSettings) -> ParsedDocument:
    path = folder / "스캔 scan.pdf"
    path.write_bytes(raw)
    return parse_document(load_document(path, max_file_bytes=limits.max_file_bytes), limits)


def test_without_ocr_a_scan_has_no_text_layer(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"^no text layer \(pages: 1\).*--ocr"):
        parse(tmp_path, make_scanned([scan("Hidden")]), IngestSettings())


@pytest.mark.skipif(not MISSING, reason="all that OCR needs is installed")
def test_what_is_missing_for_ocr_is_named_with_the_commands_that_install_it(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"pip install 'rag\[ocr\]' and apt-get install tesseract-ocr"):
        parse(tmp_path, make_scanned([scan("Hidden")]), OCR)
    assert parse(tmp_path, make_scanned(["A text layer."]), OCR).text == "A text layer.\n"


@needs_ocr
def test_pages_without_text_are_read_from_their_image(tmp_path: Path) -> None:
    parsed = parse(tmp_path, make_scanned(["A text layer.", scan("Scanned page number two"), "The third."]), OCR)
    assert [page.text for page in parsed.pages] == ["A text layer.\n", "Scanned page number two\n", "The third.\n"]
    assert (parsed.skipped_pages, parsed.pages[1].start_char) == (0, 14)


@needs_ocr
@pytest.mark.skipif(not KOREAN_FONTS, reason="a Korean font is needed (Debian: fonts-nanum)")
@pytest.mark.parametrize("languages", ["eng+kor", "kor+eng"])
def test_korean_words_stay_whole(tmp_path: Path, languages: str) -> None:
    limits = OCR.model_copy(update={"ocr_languages": languages})
    text = parse(tmp_path, make_scanned([scan("서비스의 기본 포트는 8000번입니다.", KOREAN_FONTS[0])]), limits).text
    assert {"서비스의", "기본"} <= set(text.split())


@needs_ocr
def test_a_page_of_any_size_fits_the_memory(tmp_path: Path) -> None:
    raw = make_scanned([scan("Large paper")], size=(14_000, 14_000))
    assert parse(tmp_path, raw, OCR.model_copy(update={"parse_memory_bytes": 512 * MIB})).text == "Large paper\n"


@needs_ocr
def test_an_empty_page_stays_empty(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="no text layer"):
        parse(tmp_path, make_scanned([""]), OCR)


@needs_ocr
def test_a_language_that_is_not_installed_is_named(tmp_path: Path) -> None:
    limits = OCR.model_copy(update={"ocr_languages": "eng+tlh"})
    with pytest.raises(DocumentError, match=r"tesseract lacks the languages: tlh.*apt-get install tesseract-ocr"):
        parse(tmp_path, make_scanned([scan("Hidden")]), limits)
